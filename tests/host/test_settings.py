"""PCM Settings: the settings of a few-step method without its weights, for LoRAs that other nodes apply."""

from __future__ import annotations

import pytest
import released
import torch
from safetensors.torch import load_file, save_file

from pcm_core.errors import PCMError
from pcm_core.profiles import PCMProfile, profile_to_metadata
from phased_consistency.nodes import host as api

LIGHTNING = "Qwen-Image-Lightning-4steps-V1.0.safetensors"
HYPER = "Hyper-SD15-4steps-lora.safetensors"


def named(model, name):
    clone = model.clone()
    clone.cached_patcher_init = (None, (f"/models/diffusion_models/{name}",))
    return clone


def settings(host, model, **inputs):
    return host.call("PCMSettings", model=model, **inputs)[0]


def lora_file(host, zoo, family, name, metadata=None):
    folder = host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    released.lora(folder / name, zoo[family], family)
    if metadata:
        save_file(load_file(folder / name), folder / name, metadata)
    return name


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_behind_another_loader_it_leaves_what_our_loader_leaves(host, zoo, strength):
    """LoraLoaderModelOnly and PCM Settings beside Load PCM LoRA: the same profile, table, and picture, to the bit."""
    tiny, name = zoo["sd3"], lora_file(host, zoo, "sd3", "pcm_deterministic_4step_shift1.safetensors")
    ours = host.call("PCMLoraLoader", model=tiny.model, lora_name=name, strength=strength)[0]
    (theirs,) = host.call("LoraLoaderModelOnly", model=tiny.model, lora_name=name, strength_model=strength)
    theirs = settings(host, theirs, file_name=name)
    assert api.profile_of(theirs) == api.profile_of(ours) and api.profile_of(ours).phases == 4
    assert api.flow_shift(theirs) == api.flow_shift(ours) == pytest.approx(1.0)
    inputs = {"positive": tiny.positive, "negative": tiny.negative, "latent_image": tiny.latent(), "seed": 3}
    pictures = [host.call("PCMSampler", model=model, cfg="auto", **inputs)[0]["samples"] for model in (ours, theirs)]
    assert torch.equal(*pictures)
    assert api.profile_of(tiny.model) is None, "the caller's model stays as it was"


def test_every_way_to_sample_reads_it(host, zoo):
    tiny = zoo["qwen_image"]
    model = settings(host, tiny.model, file_name=LIGHTNING)
    right = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    texts = {"positive": tiny.positive, "negative": tiny.negative}
    for scheduler in ("simple", "pcm"):
        (levels,) = host.call("BasicScheduler", model=model, scheduler=scheduler, steps=4, denoise=1.0)
        torch.testing.assert_close(levels, right, atol=1e-4, rtol=0)
    levels, *_ = host.call("PCMPhaseScheduler", model=model)
    torch.testing.assert_close(levels, right, atol=1e-4, rtol=0)
    (guider,) = host.call("PCMGuider", model=model, **texts, cfg="auto")
    assert guider.cfg == 1.0
    common = {**texts, "latent_image": tiny.latent(), "seed": 5}
    ours, *_ = host.call("PCMSampler", model=model, cfg="auto", **common)
    for name in ("euler", "pcm"):
        (stock,) = host.call(
            "KSampler", model=model, steps=4, cfg=1.0, sampler_name=name, scheduler="simple", denoise=1.0, **common
        )
        torch.testing.assert_close(stock["samples"], ours["samples"], rtol=1e-5, atol=1e-5)


def test_the_video_sampler_reads_it(host, zoo):
    tiny = zoo["wan"]
    model = settings(host, tiny.model, method="LightX2V-Wan2.1")
    _, report, *_ = host.call(
        "PCMVideoSampler", model=model, positive=tiny.positive, negative=tiny.negative, latent_image=tiny.latent(),
        cfg="auto",
    )  # fmt: skip
    assert "LightX2V-Wan2.1, 4 steps, sigmas 1 0.9375 0.833333 0.625 0" in report


def test_a_method_is_chosen_and_its_strength_is_told(host, zoo, caplog):
    with caplog.at_level("WARNING"):
        model = settings(host, zoo["flux"].model, method="Hyper-FLUX 8 steps")
    assert api.profile_of(model).steps == 8 and api.profile_of(model).embedded_guidance == 3.5
    assert "Hyper-FLUX is made for strength 0.125: set that where the LoRA is applied." in caplog.text


@pytest.mark.parametrize("name", ["z_image_turbo_bf16.safetensors", r"turbo\z_image_turbo_bf16.safetensors"])
def test_auto_reads_the_name_of_the_checkpoint_for_the_stock_nodes(host, zoo, name):
    model = settings(host, named(zoo["z_image"].model, name))
    assert api.profile_of(model).method == "Z-Image-Turbo" and api.flow_shift(model) == pytest.approx(3.0, rel=1e-4)


def test_a_lora_on_the_disk_says_of_itself_what_its_name_does_not(host, zoo):
    told = profile_to_metadata(PCMProfile(method="PCM", base_model="sd15", phases=3, steps=3, cfg=2.0))
    folder = host.base / "models" / "loras" / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    lora_file(host, zoo, "sd15", "mine/fox_in_snow.safetensors", told)
    for name in ("mine/fox_in_snow.safetensors", r"mine\fox_in_snow.safetensors", "Fox_in_snow"):
        profile = api.profile_of(settings(host, zoo["sd15"].model, file_name=name))
        assert (profile.steps, profile.phases, profile.cfg) == (3, 3, 2.0)
        assert host.node("PCMSettings").fingerprint_inputs(file_name=name)[0] == "mine/fox_in_snow.safetensors"
    assert host.node("PCMSettings").fingerprint_inputs(file_name="nothing") is None


def test_refusals(host, zoo):
    for inputs, found in (
        ({"file_name": "my_style.safetensors"}, '"my_style.safetensors" is no few-step file that is known'),
        ({"method": "Hyper-SD SD1.5 4 steps"}, "is a method for sd15, and the model is sd3"),
        ({"file_name": "z_image_turbo_bf16"}, "is a method for z-image, and the model is sd3"),
        ({"method": "PCM SD3 4 steps shift 3", "file_name": LIGHTNING}, "method is PCM SD3 4 steps shift 3 and file"),
        ({"file_name": "wan_meanflow"}, "wan_meanflow is MeanFlow"),
        ({}, "method is auto, file_name is empty, and the checkpoint"),
        ({"method": "magic"}, 'method is "magic"'),
    ):
        with pytest.raises(PCMError, match=found):
            settings(host, named(zoo["sd3"].model, "my_model.safetensors"), **inputs)


def test_a_style_lora_on_the_disk_is_none_whatever_checkpoint_its_name_holds(host, zoo):
    name = lora_file(host, zoo, "sd15", "pixel_art_style_z_image_turbo.safetensors")
    with pytest.raises(PCMError, match="no few-step file"):
        settings(host, zoo["z_image"].model, file_name=name)


def test_a_model_that_carries_another_method_is_refused_unless_replaced(host, zoo, caplog):
    carrying = settings(host, zoo["sd15"].model, file_name=HYPER)
    assert settings(host, carrying, file_name=HYPER) is not carrying  # the same again is no harm
    for other in ("lcm-lora-sdv1-5.safetensors", "Hyper-SD15-8steps-lora.safetensors"):
        with pytest.raises(PCMError, match="already carries Hyper-SD, 4 steps"):
            settings(host, carrying, file_name=other)
        assert api.profile_of(settings(host, carrying, file_name=other, replace=True)).steps in (4, 8)
    assert "Used lcm-lora-sdv1-5.safetensors, not Hyper-SD, which the model carries." in caplog.text


def test_our_loader_refuses_a_second_method_behind_it(host, zoo):
    name = lora_file(host, zoo, "sd15", "pcm_sd15_smallcfg_2step_converted.safetensors")
    carrying = settings(host, zoo["sd15"].model, file_name=HYPER)
    with pytest.raises(PCMError, match="already carries one of Hyper-SD"):
        host.call("PCMLoraLoader", model=carrying, lora_name=name, strength=1.0)


def test_no_weight_is_touched(host, zoo):
    model = zoo["qwen_image"].model
    done = settings(host, model, file_name=LIGHTNING)
    assert done.patches == model.patches and done.model is model.model
    assert set(done.object_patches) - set(model.object_patches) <= {"model_sampling"}


def test_it_runs_in_a_prompt_with_only_the_model(host, zoo, stand_ins):
    taken = stand_ins(GiveModel=("MODEL", named(zoo["z_image"].model, "z_image_turbo_bf16.safetensors")))
    prompt = {
        "1": {"class_type": "GiveModel", "inputs": {}},
        "2": {"class_type": "PCMSettings", "inputs": {"model": ["1", 0], "method": "auto"}},
        "3": {"class_type": "PCMPhaseScheduler", "inputs": {"model": ["2", 0]}},
        "4": {"class_type": "Take", "inputs": {"value": ["3", 0]}},
    }
    assert host.run_prompt(prompt).success
    assert len(taken[-1]) == 9
