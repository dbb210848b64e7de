"""A distilled checkpoint in PCM Sampler with no loader of ours: recognized by its name, whoever loaded it."""

from __future__ import annotations

import shutil

import pytest
import released
from safetensors.torch import load_file

OFFICIAL = {"sd3.5_large_turbo": 4, "sd_xl_turbo_1.0_fp16": 1}
SAID = {"sd3.5_large_turbo": "Recognized by its file name: SD3.5L-Turbo, 4 steps, cfg 1, shift 3.",
        "sd_xl_turbo_1.0_fp16": "Recognized by its file name: SD-Turbo, 1 steps, cfg 1."}  # fmt: skip


def quantized_loader(host, zoo):
    """As ComfyUI-GGUF and Nunchaku load: from tensors, so that the host does not know the file."""

    class UnetLoaderGGUF:
        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", "test"
        NAME = "unet_name"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {cls.NAME: ("STRING", {}), "dequant_dtype": ("STRING", {"default": "default"})}}

        def load(self, dequant_dtype, **names):
            import comfy.sd

            model = comfy.sd.load_diffusion_model_state_dict(load_file(str(zoo["sd3"].path)))
            assert model.cached_patcher_init is None
            return (model.clone(),)

    class NunchakuFluxDiTLoader(UnetLoaderGGUF):
        NAME = "model_path"

    return {cls.__name__: cls for cls in (UnetLoaderGGUF, NunchakuFluxDiTLoader)}


def loader(host, zoo, kind, name):
    """The loader's node in a prompt, with the file it wants on the disk."""
    models = host.base / "models"
    if kind == "UNETLoader":
        path = models / "diffusion_models" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(zoo["sd3"].path, path)
        return {"class_type": kind, "inputs": {"unet_name": f"{name}.safetensors", "weight_dtype": "default"}}
    if kind == "CheckpointLoaderSimple":
        path = models / "checkpoints" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        released.checkpoint(path, zoo["sdxl"], 4)
        return {"class_type": kind, "inputs": {"ckpt_name": f"{name}.safetensors"}}
    widget = "unet_name" if kind == "UnetLoaderGGUF" else "model_path"
    return {"class_type": kind, "inputs": {widget: name, "dequant_dtype": "default"}}


def run(host, zoo, monkeypatch, stand_ins, node):
    """Load, pass a patch of the host, sample; returns the sigmas that PCM Phase Scheduler makes."""
    for name, cls in quantized_loader(host, zoo).items():
        monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, name, cls)
    tiny = zoo["sdxl" if node["class_type"] == "CheckpointLoaderSimple" else "sd3"]
    taken = stand_ins(
        GivePositive=("CONDITIONING", tiny.positive), GiveNegative=("CONDITIONING", tiny.negative),
        GiveLatent=("LATENT", tiny.latent()),
    )  # fmt: skip
    inputs = {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 1}
    prompt = {
        "1": node,
        "2": {"class_type": "CFGZeroStar", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "GivePositive", "inputs": {}},
        "4": {"class_type": "GiveNegative", "inputs": {}},
        "5": {"class_type": "GiveLatent", "inputs": {}},
        "6": {"class_type": "PCMSampler", "inputs": inputs},
        "7": {"class_type": "PCMPhaseScheduler", "inputs": {"model": ["2", 0]}},
        "8": {"class_type": "Take", "inputs": {"value": ["6", 0]}},
        "9": {"class_type": "Take", "inputs": {"value": ["7", 0]}},
    }
    done = host.run_prompt(prompt)
    assert done.success, [data for kind, data in done.status_messages if kind == "execution_error"]
    (sigmas,) = [value for value in taken if not isinstance(value, dict)]
    return sigmas


@pytest.mark.parametrize(
    ("kind", "name", "known"),
    [
        pytest.param("UNETLoader", "sd3.5_large_turbo", "sd3.5_large_turbo", marks=pytest.mark.long),
        ("UNETLoader", "few steps/sd3.5_large_turbo_fp8_scaled", "sd3.5_large_turbo"),
        ("CheckpointLoaderSimple", "sd_xl_turbo_1.0_fp16", "sd_xl_turbo_1.0_fp16"),
        pytest.param("CheckpointLoaderSimple", "turbo/SD_XL_Turbo_1.0", "sd_xl_turbo_1.0_fp16", marks=pytest.mark.long),
        pytest.param("UnetLoaderGGUF", "sd3.5_large_turbo-Q4_K_M.gguf", "sd3.5_large_turbo", marks=pytest.mark.long),
        ("UnetLoaderGGUF", r"few steps\sd3.5_large_turbo-Q8_0.gguf", "sd3.5_large_turbo"),
        ("NunchakuFluxDiTLoader", "svdq-int4_r32-sd3.5_large_turbo.safetensors", "sd3.5_large_turbo"),
    ],
)
def test_a_checkpoint_runs_on_auto_under_its_own_name(host, zoo, monkeypatch, stand_ins, caplog, kind, name, known):
    with caplog.at_level("WARNING"):
        sigmas = run(host, zoo, monkeypatch, stand_ins, loader(host, zoo, kind, name))
    assert len(sigmas) == OFFICIAL[known] + 1
    assert f"PCM Sampler: {SAID[known]}" in caplog.text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("UNETLoader", "my_model"),
        pytest.param("CheckpointLoaderSimple", "folder/my_model", marks=pytest.mark.long),
        ("UnetLoaderGGUF", "my_model-Q8_0.gguf"),
        pytest.param("NunchakuFluxDiTLoader", "svdq-int4_r32-my_model.safetensors", marks=pytest.mark.long),
    ],
)
def test_a_neutral_name_says_that_nothing_is_known_and_what_to_set(
    host, zoo, monkeypatch, stand_ins, caplog, kind, name
):
    with caplog.at_level("WARNING"):
        sigmas = run(host, zoo, monkeypatch, stand_ins, loader(host, zoo, kind, name))
    assert len(sigmas) == 5 and "Recognized" not in caplog.text
    assert "carries no PCM settings" in caplog.text and "choose a method, or set steps" in caplog.text
