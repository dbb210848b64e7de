"""Graphs that people build around the names ``pcm``, on the demo world: PCM Sampler's result, no untrue warning."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from demo.world import embed, parse_prompt
from devtools.base import link_file
from phased_consistency.nodes.sampling import function as sampler_function
from phased_consistency.nodes.sampling import plan as node_plan

ROOT = Path(__file__).resolve().parent.parent.parent
# Another order of float32 arithmetic over four steps; the latents go up to about 4.
NOISE = 1e-4


@pytest.fixture(scope="module")
def demo(host):
    """The demo's teacher with its four-phase LoRA, a prompt, an empty latent."""
    for folder, file in (("diffusion_models", "demo_sd3"), ("loras", "demo_pcm_4phase"), ("loras", "demo_lcm")):
        target = host.base / "models" / folder / f"{file}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        link_file(target, ROOT / "demo" / "weights" / f"{file}.safetensors")
    (base,) = host.call("UNETLoader", unet_name="demo_sd3.safetensors", weight_dtype="default")
    model, *_ = host.call("PCMLoraLoader", model=base, lora_name="demo_pcm_4phase.safetensors")
    context, pooled = embed([parse_prompt("a red circle on white")])
    positive = [[context, {"pooled_output": pooled}]]
    (latent,) = host.call("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    profile = host.pack("nodes.host").profile_of(model)
    return SimpleNamespace(host=host, base=base, model=model, latent=latent, cfg=profile.cfg,
                           common={"model": model, "positive": positive, "negative": positive})  # fmt: skip


@pytest.fixture
def said(monkeypatch):
    """What the nodes showed below their widgets, but for the plain count of steps and phases."""
    shown = []

    def show(text):
        if not re.fullmatch(r"\d+ steps?, \d+ phases?", text):
            shown.append(text)

    monkeypatch.setattr(sampler_function, "show_on_node", show)
    monkeypatch.setattr(node_plan, "show_on_node", show)
    return shown


def ours(demo, **settings):
    return demo.host.call("PCMSampler", **demo.common, **{"latent_image": demo.latent, "seed": 7, **settings})[0]


def ksampler(demo, latent=None, **settings):
    names = {"sampler_name": "pcm", "scheduler": "pcm", "steps": 4, "cfg": demo.cfg, "denoise": 1.0, "seed": 7}
    return demo.host.call("KSampler", **demo.common, latent_image=latent or demo.latent, **names | settings)[0]


def advanced(demo, latent, start, end, *, first=True, leftover="enable", **settings):
    names = {"sampler_name": "pcm", "scheduler": "pcm", "steps": 4, "cfg": demo.cfg, "noise_seed": 7}
    return demo.host.call(
        "KSamplerAdvanced", **demo.common, latent_image=latent, start_at_step=start, end_at_step=end,
        add_noise="enable" if first else "disable", return_with_leftover_noise=leftover, **names | settings,
    )[0]  # fmt: skip


def same(made, right):
    assert (made["samples"] - right["samples"]).abs().max() < NOISE


@pytest.mark.parametrize("names", [{}, {"scheduler": "simple"}])
def test_ksampler(demo, said, names):
    """faults.md 36: ``simple`` for packs whose lists lack ``pcm``."""
    same(ksampler(demo, **names), ours(demo))
    assert said[0] == "", "nothing to say"


def test_ksampler_with_its_default_cfg_says_so(demo, said):
    ksampler(demo, cfg=8.0)
    assert "cfg is 8, and PCM is made for" in said[0]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_ksampler_advanced_in_two_parts(demo, said, split):
    """faults.md 20: a part of a schedule is a part."""
    half = advanced(demo, demo.latent, 0, split)
    same(advanced(demo, half, split, 10000, first=False, leftover="disable"), ours(demo))
    assert not any(said)


def test_a_regional_sampler_goes_step_by_step(demo, said):
    """As the Impact Pack's RegionalSampler: KSampler (Advanced) for one step at a time."""
    latent = demo.latent
    for step in range(4):
        leftover = "disable" if step == 3 else "enable"
        latent = advanced(demo, latent, step, step + 1, first=step == 0, leftover=leftover)
    same(latent, ours(demo))
    assert not any(said)


def test_split_sigmas(demo, said):
    host = demo.host
    (sigmas,) = host.call("BasicScheduler", model=demo.model, scheduler="pcm", steps=4, denoise=1.0)
    high, low = host.call("SplitSigmas", sigmas=sigmas, step=2)
    (sampler,) = host.call("KSamplerSelect", sampler_name="pcm")
    (guider,) = host.call("CFGGuider", **demo.common, cfg=demo.cfg)
    (noise,), (none,) = host.call("RandomNoise", noise_seed=7), host.call("DisableNoise")
    latent = demo.latent
    for part, given in ((high, noise), (low, none)):
        latent = host.call("SamplerCustomAdvanced", noise=given, guider=guider, sampler=sampler, sigmas=part,
                           latent_image=latent)[0]  # fmt: skip
    same(latent, ours(demo))
    assert not any(said)


def test_a_second_pass(demo, said):
    """Half of the schedule on what the first pass made: by name, steps = phases x denoise."""
    first = ours(demo)
    made = ksampler(demo, first, steps=2, denoise=0.5, seed=8)
    assert not any(said)
    same(made, ours(demo, latent_image=first, denoise=0.5, seed=8))


def test_the_sampler_node_with_the_scheduler_node(demo, said):
    host = demo.host
    sigmas, *_ = host.call("PCMPhaseScheduler", model=demo.model)
    (sampler,) = host.call("SamplerPCM")
    made = host.call("SamplerCustom", **demo.common, add_noise=True, noise_seed=7, cfg=demo.cfg, sampler=sampler,
                     sigmas=sigmas, latent_image=demo.latent)[0]  # fmt: skip
    same(made, ours(demo))
    assert said[0] == ""


def test_another_loader_of_the_same_file_is_noticed(demo):
    """faults.md 25: the host's loader first, then ours."""
    (once,) = demo.host.call("LoraLoaderModelOnly", model=demo.base, lora_name="demo_pcm_4phase.safetensors",
                             strength_model=1.0)  # fmt: skip
    _, report, *_ = demo.host.call("PCMLoraLoader", model=once, lora_name="demo_pcm_4phase.safetensors")
    assert "applied twice" in report


def test_a_second_few_step_lora_says_the_ways_out(demo):
    """faults.md 33."""
    with pytest.raises(ValueError, match=r"Remove one of the two loaders, or set settings to \"keep the model's\""):
        demo.host.call("PCMLoraLoader", model=demo.model, lora_name="demo_lcm.safetensors")


def test_new_noise_in_every_step_is_the_whole_batchs_as_in_the_hosts_lcm(demo):
    """faults.md 34: an item alone differs, in the host's own sampler as in ours; the help says so."""
    (batch,) = demo.host.call("EmptySD3LatentImage", width=64, height=64, batch_size=2)
    item = {"samples": batch["samples"][1:], "batch_index": [1]}

    def apart(sample):
        return float((sample(batch)["samples"][1:] - sample(item)["samples"]).abs().max())

    assert apart(lambda latent: ours(demo, latent_image=latent)) < NOISE
    assert apart(lambda latent: ours(demo, latent_image=latent, determinism=0.0)) > 100 * NOISE
    assert apart(lambda latent: ksampler(demo, latent, sampler_name="lcm", scheduler="simple")) > 100 * NOISE
    page = (ROOT / "web" / "docs" / "PCMSampler.md").read_text("utf-8")
    assert "*An image of a batch looks different when sampled alone.*" in page


def with_table(model, table):
    """As RES4LYF's ModelSamplingAdvanced leaves it: a table of its own in an object whose ``shift`` says 3."""
    import comfy.model_sampling

    class Replaced(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = Replaced(model.model.model_config)
    sampling.set_parameters(shift=3.0)
    sampling.register_buffer("sigmas", table)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def test_the_shift_is_the_tables_not_what_the_object_says(demo):
    """faults.md 21: exponential 3 leaves ``.shift = 3`` on a table of exp(3)."""
    u = torch.arange(1, 1001) / 1000
    strong = torch.exp(torch.tensor(3.0))
    patched = with_table(demo.base, strong * u / (1 + (strong - 1) * u))
    assert demo.host.pack("nodes.host").flow_shift(patched) == pytest.approx(float(strong), rel=1e-3)
    loaded, report, *_ = demo.host.call("PCMLoraLoader", model=patched, lora_name="demo_pcm_4phase.safetensors")
    assert "shift was 20.09" in report
    common = demo.common | {"model": loaded}
    made = demo.host.call("PCMSampler", **common, latent_image=demo.latent, seed=7)[0]
    same(made, ours(demo))


def test_a_table_that_belongs_to_no_model_is_said_once(demo, said):
    """faults.md 21: beta and exponential tables have no shift at all."""
    u = torch.arange(1, 1001) / 1000
    model = with_table(demo.model, 0.5 * u**3 + 0.5 * u)
    demo.host.call("PCMSampler", **demo.common | {"model": model}, latent_image=demo.latent, seed=7)
    demo.host.call("KSampler", **demo.common | {"model": model}, latent_image=demo.latent, seed=7, steps=4,
                   cfg=demo.cfg, sampler_name="pcm", scheduler="pcm", denoise=1.0)  # fmt: skip
    for text in said:
        assert text.count("not those it was trained with") == 1 and "shift" not in text


def test_windows_of_animatediff_evolved_are_its_own(host, zoo):
    """faults.md 22: its motion module hangs on the model as an additional one."""
    given = zoo["eps"]
    model = given.model.clone()
    model.additional_models["ADE"] = []
    inputs = {"positive": given.positive, "negative": given.negative, "latent_image": given.latent(16), "seed": 1}
    with pytest.raises(ValueError, match=r"AnimateDiff-Evolved\. Expected: window 0.*its Context Options"):
        host.call("PCMVideoSampler", model=model, window=16, overlap=4, steps=2, **inputs)
    assert len(host.call("PCMVideoSampler", model=model, window=0, steps=2, **inputs)[0]["samples"]) == 16


def test_other_betas_are_told_by_sigma_max_in_the_image_sampler_too(host, zoo, said):
    """faults.md 23: AnimateDiff's linear betas end at sigma 25.15."""
    api = host.pack("nodes.host")
    profile = host.pack("pcm_core.profiles").profile_from_name("pcm_sd15_smallcfg_4step_converted")
    given = zoo["linear_beta"]
    host.call("PCMSampler", model=api.attach_profile(given.model, profile), positive=given.positive,
              negative=given.negative, latent_image=given.latent(), seed=1)  # fmt: skip
    assert "goes up to sigma 25.15" in said[0] and '"use existing" in AnimateDiff-Evolved' in said[0]
