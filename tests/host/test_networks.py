"""InstaFlow and NitroFusion: the host's networks called as their authors call them, step by step by their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phased_consistency.nodes import host
from phased_consistency.nodes.sampling.columns import parse_columns
from phased_consistency.nodes.sampling.comparison import Sampling
from phased_consistency.nodes.sampling.function import walk
from phased_consistency.pcm_core.profiles import PCMProfile, profile_from_name

CPU = torch.device("cpu")


def recognized(model, name: str):
    profile = profile_from_name(name, "checkpoint")
    assert profile is not None and profile.sampling_class != "unsupported"
    return host.attach_profile(model, profile)


def sampled(given, model, column: str, noise: Tensor, fresh=None, cfg: str = "") -> Tensor:
    """Latents of the host's own scale, as PCM Compare, ``pcm generate`` and PCM Sampler sample them."""
    (parsed,) = parse_columns(f"{column}{cfg}")
    latent = {"samples": torch.zeros_like(noise)}
    sampling = Sampling(parsed, model, latent, name="test")
    if fresh is not None:
        sampling.sampler = host.ksampler(walk, r=sampling.plan.r, noise_sampler=fresh)
    guider = sampling.guider(given.positive, given.negative)
    result, _ = host.sample(guider, sampling.sampler, sampling.sigmas, latent, seed=5, noise=noise)
    return model.model.process_latent_in(result["samples"])


def network(given):
    """The bare network: (x, timestep, conditioning) to its output."""
    model = given.model.model

    @torch.inference_mode()
    def call(x: Tensor, timestep: float, conditioning) -> Tensor:
        ((text, values),) = conditioning
        arguments = {}
        if values.get("pooled_output") is not None:
            arguments["y"] = model.encode_adm(
                device=CPU, pooled_output=values["pooled_output"], width=8 * x.shape[-1], height=8 * x.shape[-2]
            )
        return model.diffusion_model(x, torch.full((len(x),), timestep), context=text, **arguments).float()

    return call


@pytest.mark.parametrize("name", ["instaflow_0_9B.safetensors", "2_rectified_flow_from_sd_1_5.safetensors"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cfg", [1.0, 1.5])
def test_instaflow_is_sampled_as_its_pipeline_does(zoo, name, steps, cfg):
    """pipeline_rf.py: t = 1000 (1 - i / N), latents += v / N, from noise of variance 1."""
    given = zoo["sd15"]
    noise = given.latent(1, seed=3)["samples"]
    call, x = network(given), noise
    for i in range(steps):
        t = 1000 * (1 - i / steps)
        velocity = call(x, t, given.positive)
        if cfg != 1:
            negative = call(x, t, given.negative)
            velocity = negative + cfg * (velocity - negative)
        x = x + velocity / steps
    found = sampled(given, recognized(given.model, name), str(steps), noise, cfg=f" cfg {cfg:g}")
    assert found.std() > 0.1 and torch.allclose(found, x, atol=1e-5), (found - x).abs().max()


@pytest.mark.parametrize(("name", "told"), [("nitrosd-realism_comfyui", 250), ("nitrosd-vibrant_comfyui", 500)])
@pytest.mark.parametrize("steps", [1, 4])
def test_nitrofusion_is_sampled_as_its_scheduler_does(zoo, name, told, steps, monkeypatch):
    """TimestepShiftLCMScheduler of its README around diffusers' LCMScheduler, with the same noise."""
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_lcm")

    class Shifted(scheduling.LCMScheduler):
        """As its authors' README describes it: the network is told a part of the timestep, the step uses both."""

        def set_timesteps(self, *arguments, **options):
            super().set_timesteps(*arguments, **options)
            self.real = self.timesteps.clone()
            self.timesteps = self.told = (self.real * told / 1000).long()

        def step(self, output, timestep, sample):
            if self.step_index is None:
                self._init_step_index(timestep)
            self.timesteps = self.real
            found = super().step(output, timestep, sample)
            self.timesteps = self.told
            return found

    given = zoo["sdxl"]
    noise = given.latent(1, seed=3)["samples"]
    fresh = [given.latent(1, seed=10 + n)["samples"] for n in range(steps)]
    scheduler = Shifted(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", original_inference_steps=4,
                        clip_sample=False, set_alpha_to_one=False)  # fmt: skip
    drawn = iter(fresh)
    monkeypatch.setattr(scheduling, "randn_tensor", lambda *_, **__: next(drawn))
    scheduler.set_timesteps(steps)
    call, x = network(given), noise
    for t in scheduler.told:
        x = scheduler.step(call(x, float(t), given.positive), t, x).prev_sample
    ours = iter(fresh)
    found = sampled(given, recognized(given.model, name), str(steps), noise, fresh=lambda *_: next(ours))
    assert found.std() > 0.1 and torch.allclose(found, x, atol=1e-5, rtol=1e-5), (found - x).abs().max()


def test_the_sampling_object_is_on_the_clone_alone_and_may_be_set_again(zoo):
    given = zoo["sdxl"]
    before = type(host.model_sampling(given.model))
    once = recognized(given.model, "nitrosd-realism")
    twice = recognized(once, "nitrosd-vibrant")
    assert type(host.model_sampling(given.model)) is before
    sigma = torch.tensor([host.model_sampling(given.model).sigma_max])
    assert host.model_sampling(once).timestep(sigma).item() == 249
    assert host.model_sampling(twice).timestep(sigma).item() == 499
    plain = host.attach_profile(given.model, PCMProfile(method="PCM"))
    assert type(host.model_sampling(plain)) is before
    assert host.is_flow(recognized(zoo["sd15"].model, "instaflow")) and not host.is_flow(once)
