"""The released key lists on the host's full-size models without weights: 278, 788 and 267 modules, all taken."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "use_checkpoint": False, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
CONFIGS = {
    "sd15": ("SD15", UNET | {
        "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "context_dim": 768,
        "adm_in_channels": None, "use_linear_in_transformer": False, "num_heads": 8,
    }),
    "sd21": ("SD20", UNET | {
        "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "context_dim": 1024,
        "adm_in_channels": None, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64,
    }),
    "sdxl": ("SDXL", UNET | {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential", "use_linear_in_transformer": True,
        "num_heads": -1, "num_head_channels": 64,
    }),
    "sd3": ("SD3", {
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 24, "input_size": None, "num_patches": 36864,
        "adm_in_channels": 2048, "pos_embed_max_size": 192, "pos_embed_scaling_factor": None,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    }),
}  # fmt: skip
# LoRA targets of train_pcm_lora_sd15.py and of the released SD3 files.
UNET_ENDS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
SD3_ENDS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_add_out", "ff.net.0.proj", "ff.net.2",
    "ff_context.net.0.proj", "ff_context.net.2", "norm1.linear", "norm1_context.linear", "context_embedder",
    "linear_1", "linear_2",
)  # fmt: skip
MODULES = {"sd15": 278, "sd21": 278, "sdxl": 788, "sd3": 267}


@pytest.fixture(scope="module", params=list(CONFIGS))
def full(host, request):
    """A full-size model on the meta device, and its released LoRA's names with the shapes of the weights they mean."""
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    name, unet = CONFIGS[request.param]
    config = getattr(comfy.supported_models, name)(dict(unet))
    config.set_inference_dtype(torch.float16, None)
    with torch.device("meta"):
        model = config.get_model({}, "", device=torch.device("meta"))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    sd3 = request.param == "sd3"
    mapped = comfy.utils.mmdit_to_diffusers(unet) if sd3 else comfy.utils.unet_to_diffusers(unet)
    names = {}
    for theirs, ours in mapped.items():
        key, *rest = ours if isinstance(ours, tuple) else (ours,)
        stem, key = theirs.removesuffix(".weight"), f"diffusion_model.{key}"
        if (
            stem == theirs
            or key not in shapes
            or not (stem.endswith(SD3_ENDS if sd3 else UNET_ENDS) or (sd3 and stem == "proj_out"))
        ):
            continue
        shape = shapes[key]
        names[stem] = (rest[0][2], *shape[1:]) if rest and rest[0] else shape
    return request.param, patcher, names


def spell(family, style, stem):
    if style == "kohya":
        return "lora_unet_" + stem.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"
    prefix = {"peft": "base_model.model.", "bare": "", "diffusers": "transformer." if family == "sd3" else "unet."}[
        style
    ]
    return prefix + stem, ".lora_A.weight", ".lora_B.weight"


@pytest.mark.parametrize("style", ["kohya", "peft", "diffusers", "bare"])
def test_every_module_is_taken(host, full, style):
    family, model, names = full
    assert len(names) == MODULES[family]
    tensors = {}
    for stem, shape in names.items():
        stem, down, up = spell(family, style, stem)
        tensors[stem + down] = torch.ones(1, *shape[1:], dtype=torch.float16)
        tensors[stem + up] = torch.ones(shape[0], 1, *[1] * (len(shape) - 2), dtype=torch.float16)
        if style == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(0.125, dtype=torch.float16)
    count = MODULES[family] * (3 if style == "kohya" else 2)
    assert len(tensors) == count
    path = host.base / "models" / "loras" / f"real_{family}_{style}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    loaded, report, *_ = host.call("PCMLoraLoader", model=model, lora_name=path.name, strength=1.0, allow_partial=False)
    assert f"tensors: {count} of {count} applied" in report
    fused = 2 * 24 if family == "sd3" else 0  # q, k and v share a weight
    assert len(loaded.patches) == MODULES[family] - fused
    assert f"alpha/rank: {0.125 if style == 'kohya' else 8 if style == 'peft' and family != 'sd3' else 1}" in report
