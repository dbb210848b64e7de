"""The method of a model: by its checkpoint's name, by choice; two shifts and embedded guidance."""

from __future__ import annotations

import pytest
import torch

from pcm_core.errors import PCMError
from pcm_core.profiles import profile_from_name
from phased_consistency.nodes import host as api
from phased_consistency.nodes.sampling.settings import with_method, with_own_guidance, with_settings


def named(model, name, folder="diffusion_models"):
    """A clone that says it was loaded from that file."""
    clone = model.clone()
    clone.cached_patcher_init = (None, (f"/models/{folder}/{name}.safetensors",))
    return clone


def sigmas(host, model, **inputs):
    return host.call("PCMPhaseScheduler", model=model, **inputs)[0]


@pytest.mark.parametrize(
    ("tiny", "name", "steps", "said"),
    [
        ("z_image", "z_image_turbo_bf16", 8, "Recognized by its file name: Z-Image-Turbo, 8 steps, cfg 1, shift 3"),
        ("krea2", "krea2_turbo_fp8_scaled", 8, "Krea2-Turbo"),
        ("sdxl", "juggernautXL_v9_lightning", 8, "A merge, recognised by its name alone"),
        ("mage_flow", "mage_flow_edit_turbo_int8_convrot", 4, "Mage-Flow-Turbo"),
    ],
)
def test_a_checkpoint_is_recognized_by_its_name(host, zoo, caplog, tiny, name, steps, said):
    model = named(zoo[tiny].model, name)
    with caplog.at_level("WARNING"):
        assert len(sigmas(host, model)) == steps + 1
    assert said in caplog.text
    assert api.profile_of(model) is None, "the caller's model stays as it was"


def test_the_checkpoint_samples_as_its_template(host, zoo):
    """image_z_image_turbo: KSampler, 8 steps, euler, simple, behind ModelSamplingAuraFlow 3."""
    tiny = zoo["z_image"]
    (shifted,) = host.call("ModelSamplingAuraFlow", model=tiny.model, shift=3.0)
    common = {"positive": tiny.positive, "negative": tiny.negative, "latent_image": tiny.latent(), "seed": 7}
    (official,) = host.call(
        "KSampler", model=shifted, steps=8, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0, **common
    )
    ours, *_ = host.call("PCMSampler", model=named(tiny.model, "z_image_turbo_bf16"), cfg="auto", **common)
    torch.testing.assert_close(ours["samples"], official["samples"], rtol=1e-5, atol=1e-5)


def test_a_neutral_name_says_what_to_set(host, zoo, caplog):
    sigmas(host, named(zoo["z_image"].model, "my_model"))
    assert "choose a method, or set steps" in caplog.text


def test_the_shift_of_a_node_stays(host, zoo, caplog):
    (shifted,) = host.call("ModelSamplingAuraFlow", model=zoo["z_image"].model, shift=4.0)
    found = sigmas(host, named(shifted, "z_image_turbo_bf16"))
    assert "A ModelSampling node set shift 4, which stays." in caplog.text
    assert float(found[4]) == pytest.approx(4 * 0.5 / (1 + 3 * 0.5), abs=1e-5)


def test_a_method_is_chosen_or_switched_off(host, zoo, caplog):
    model = named(zoo["z_image"].model, "z_image_turbo_bf16")
    assert len(sigmas(host, model, method="none")) == 5
    assert "carries no PCM settings" in caplog.text
    assert len(sigmas(host, zoo["qwen_image"].model, method="Qwen-Image-Lightning 8 steps")) == 9
    with pytest.raises(PCMError, match="is a method for z-image, and the model is qwen-image"):
        sigmas(host, zoo["qwen_image"].model, method="Z-Image-Turbo")
    carrying = with_method(model, "Z-Image-Turbo")[0]
    caplog.clear()
    sigmas(host, carrying, method="none")
    assert "the settings of Z-Image-Turbo are not used" in caplog.text


@pytest.mark.parametrize("node", ["PCMSampler", "PCMVideoSampler", "PCMPhaseScheduler", "PCMGuider"])
def test_a_causal_forcing_checkpoint_is_refused_by_every_node(host, zoo, node):
    tiny = zoo["wan"]
    inputs = {"model": named(tiny.model, "causal_forcing-framewise")}
    if node != "PCMPhaseScheduler":
        inputs |= {"positive": tiny.positive, "negative": tiny.negative, "cfg": "auto"}
    if node.endswith("Sampler"):
        inputs["latent_image"] = tiny.latent()
    with pytest.raises(PCMError, match=r"block by block.*SamplerARVideo"):
        host.call(node, **inputs)


def test_causal_forcing_is_refused_by_name(host, zoo):
    with pytest.raises(PCMError, match="SamplerARVideo"):
        with_settings(zoo["wan"].model, profile_from_name("causal_forcing-framewise", None), "causal_forcing-framewise")


@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (1408, 1408), (1536, 640)])
def test_klein_walks_the_sigmas_of_the_hosts_own_scheduler(host, zoo, size):
    width, height = size
    latent = {"samples": torch.zeros(1, 128, height // 16, width // 16)}
    (official,) = host.call("Flux2Scheduler", steps=4, width=width, height=height)
    found = sigmas(host, named(zoo["flux2"].model, "flux-2-klein-4b"), latent=latent)
    torch.testing.assert_close(found, official, rtol=1e-5, atol=1e-5)


def test_embedded_guidance_is_set_and_one_that_is_there_stays(host, zoo, caplog):
    tiny = zoo["flux2"]
    model, _ = with_method(tiny.model, "FLUX.2-Turbo")
    positive, negative, notes = with_own_guidance(model, tiny.positive, tiny.negative)
    assert positive[0][1]["guidance"] == negative[0][1]["guidance"] == 2.5 and notes == ()
    (guided,) = host.call("FluxGuidance", conditioning=tiny.positive, guidance=4.0)
    positive, _, (note,) = with_own_guidance(model, guided, tiny.negative)
    assert positive[0][1]["guidance"] == 4.0 and "guidance 4; FLUX.2-Turbo is made for 2.5" in note


def test_the_sampler_runs_at_the_embedded_guidance_of_the_method(host, zoo):
    """faults.md 18: it ran at the 3.5 of the host while the report said 2.5."""
    tiny = zoo["flux2"]
    model, _ = with_method(tiny.model, "FLUX.2-Turbo")
    common = {"negative": tiny.negative, "latent_image": tiny.latent(), "seed": 3, "steps": 2}
    plain = host.call("PCMSampler", model=model, positive=tiny.positive, **common)[0]["samples"]
    for guidance in (2.5, 3.5):
        (guided,) = host.call("FluxGuidance", conditioning=tiny.positive, guidance=guidance)
        made = host.call("PCMSampler", model=model, positive=guided, **common)[0]["samples"]
        assert torch.equal(made, plain) == (guidance == 2.5)


@pytest.mark.parametrize("first", ["node", "settings"])
def test_minimax_h3_is_told_both_shifts(host, zoo, first):
    """faults.md 17. As MiniMaxH3SigmaShift sets them, in either order: the network maps the audio's level with them."""
    h3 = pytest.importorskip("comfy_extras.nodes_minimax_h3")
    tiny = zoo["minimax_h3_av"]
    right = h3.MiniMaxH3SigmaShift.execute(tiny.model, 6.0, 3.0).args[0]
    before = h3.MiniMaxH3SigmaShift.execute(tiny.model, 12.0, 5.0).args[0] if first == "node" else tiny.model
    ours, _ = with_method(before, "MiniMax-H3-Turbo 4 steps shift 6")
    for name in ("minimax_h3_sigma_shift_video", "minimax_h3_sigma_shift_audio"):
        told = [model.model_options["transformer_options"][name] for model in (ours, right)]
        assert told[0] == pytest.approx(told[1], abs=1e-7)
    (levels,) = host.call("BasicScheduler", model=right, scheduler="simple", steps=4, denoise=1.0)
    torch.testing.assert_close(sigmas(host, ours), levels, rtol=1e-5, atol=1e-6)
    common = {"latent_image": tiny.latent(), "positive": tiny.positive, "negative": tiny.negative}
    (noise,) = host.call("RandomNoise", noise_seed=7)
    (guider,) = host.call("CFGGuider", model=right, positive=tiny.positive, negative=tiny.negative, cfg=1.0)
    (sampler,) = host.call("KSamplerSelect", sampler_name="euler")
    official, _ = host.call(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=levels, latent_image=tiny.latent()
    )
    found, *_ = host.call("PCMSampler", model=ours, seed=7, cfg="auto", **common)
    for ours_part, right_part in zip(found["samples"].unbind(), official["samples"].unbind(), strict=True):
        torch.testing.assert_close(ours_part, right_part, rtol=1e-5, atol=1e-5)
