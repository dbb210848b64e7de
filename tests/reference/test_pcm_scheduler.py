"""``PCMScheduler`` step by step against ``sample_pcm`` and diffusers' own schedulers, and inside their pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pcm_core.denoiser import Denoiser
from pcm_core.errors import PCMError
from pcm_core.plan import plan, sample
from pcm_core.profiles import PCMProfile, profile_from_name
from pcm_core.sigma_table import SigmaTable

diffusers = pytest.importorskip("diffusers", reason="install requirements-dev.txt")
PCMScheduler = pytest.importorskip("pcm_core.diffusers_scheduler").PCMScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PCM4 = PCMProfile(method="PCM", base_model="sd15", phases=4, steps=4)
TOLERANCE = 1e-6


def network(x: Tensor, t: float) -> Tensor:
    return torch.sin(1.7 * x + t / 300) + 0.2 * torch.cos(x.flip(-1) - t / 100)


class Network(torch.nn.Module):
    """The same function as a module that diffusers' pipelines can call."""

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        assert sample.dtype == torch.float32 and not return_dict
        return (network(sample, float(timestep[0])),)


@pytest.fixture
def start() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def walk(scheduler: Any, x: Tensor, timesteps: Any = None, **options: Any) -> list[Tensor]:
    states: list[Tensor] = []
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(network(x, float(t)), t, x, return_dict=False, **options)[0]
        states.append(x)
    return states


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = ((a - b).norm() / b.norm()).item()
        assert error < TOLERANCE, f"step {step} of {len(ours)}: relative error {error:.2e}"


@pytest.mark.parametrize("phases", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("terminal", ["zero", "alpha0"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_trailing(phases: int, terminal: Any, prediction: str, start: Tensor) -> None:
    ddim = diffusers.DDIMScheduler(
        **BETAS, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=terminal == "zero",
        prediction_type=prediction,
    )  # fmt: skip
    ours = PCMScheduler.from_profile(replace(PCM4, phases=phases, steps=phases, terminal=terminal), ddim.config)
    ours.set_timesteps(phases)
    ddim.set_timesteps(phases)
    assert ours.timesteps.tolist() == ddim.timesteps.tolist() and ours.init_noise_sigma == ddim.init_noise_sigma
    assert_same(walk(ours, start), walk(ddim, start))
    # Image to image: a pipeline noises to a later timestep and tells where it starts.
    for first in range(1, phases):
        noised = ours.add_noise(start * 0.3, start, ours.timesteps[first : first + 1])
        ddim.set_timesteps(phases)
        ours.set_timesteps(phases)
        torch.testing.assert_close(
            noised, ddim.add_noise(start * 0.3, start, ddim.timesteps[first : first + 1]), rtol=1e-6, atol=1e-6
        )
        ours.set_begin_index(first)
        rest = ours.timesteps[first:]
        assert_same(walk(ours, noised, rest), walk(ddim, noised, rest))


def test_tcd(start: Tensor) -> None:
    tcd = diffusers.TCDScheduler(**BETAS, set_alpha_to_one=False)
    profile = replace(PCM4, phases=8, steps=8, spacing="tcd", terminal="alpha0", gamma=0.3)
    ours = PCMScheduler.from_profile(profile, tcd.config)
    tcd.set_timesteps(8)
    assert ours.timesteps.tolist() == tcd.timesteps.tolist()
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    assert_same(
        walk(ours, start, generator=generators[0]), walk(tcd, start, eta=0.3, generator=generators[1])
    )  # fmt: skip


@pytest.mark.parametrize("spacing", ["trailing", "aligned", "tcd"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(spacing: Any, shift: float, start: Tensor) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    ours = PCMScheduler.from_profile(replace(PCM4, spacing=spacing, shift=shift), theirs.config)
    theirs.set_timesteps(sigmas=ours.sigmas[:-1].tolist())
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    assert_same(walk(ours, start), walk(theirs, start, theirs.timesteps))
    theirs.set_timesteps(sigmas=ours.sigmas[:-1].tolist())
    noised = ours.scale_noise(start * 0.3, ours.timesteps[2:3], start)
    torch.testing.assert_close(noised, theirs.scale_noise(start * 0.3, theirs.timesteps[2:3], start))


@pytest.mark.parametrize("spacing", ["trailing", "aligned", "tcd"])
@pytest.mark.parametrize("terminal", ["zero", "alpha0"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("r", [{}, {"determinism": 0.4}, {"gamma": 0.3}])
def test_sample_pcm(spacing: Any, terminal: Any, prediction: str, r: dict[str, float], start: Tensor) -> None:
    flow = prediction == "flow"
    if flow:
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        theirs = diffusers.DDIMScheduler(**BETAS, prediction_type=prediction)
    profile = replace(PCM4, spacing=spacing, terminal=terminal, **r)  # pyright: ignore[reportArgumentType]
    scheduler = PCMScheduler.from_profile(profile, theirs)
    scheduler.set_timesteps(4)
    model = Denoiser.from_diffusers(Network(), theirs)
    made = plan(profile, model.sigmas)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    expected = sample(
        model, made, start, noise_sampler=lambda sigma, sigma_next: torch.randn(start.shape, generator=generators[0])
    )
    assert_same(walk(scheduler, start, generator=generators[1])[-1:], [expected])
    latent, entered = start.flip(0) * 0.5, plan(profile, model.sigmas, denoise=0.5)
    if made.sigmas[2] == entered.sigmas[0]:  # the pipelines enter on the grid
        noise = [torch.Generator().manual_seed(3) for _ in range(2)]
        draw = lambda sigma, sigma_next: torch.randn(start.shape, generator=noise[0])  # noqa: E731
        expected = sample(model, entered, start, latent=latent, noise_sampler=draw)
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(2)
        x = scheduler.add_noise(latent, start, scheduler.timesteps[2:3])
        assert_same(walk(scheduler, x, scheduler.timesteps[2:], generator=noise[1])[-1:], [expected])


def test_half_precision_stays_and_is_worked_in_float32(start: Tensor) -> None:
    scheduler = PCMScheduler.from_profile(PCM4, diffusers.DDIMScheduler(**BETAS).config)
    scheduler.set_timesteps(4)
    result = scheduler.step(network(start, 999).half(), scheduler.timesteps[0], start.half())
    assert result.prev_sample.dtype == result.pred_original_sample.dtype == torch.float16
    expected = PCMScheduler.from_profile(PCM4, diffusers.DDIMScheduler(**BETAS).config)
    (exact, _) = expected.step(network(start, 999), expected.timesteps[0], start, return_dict=False)
    torch.testing.assert_close(result.prev_sample.float(), exact, rtol=4e-3, atol=4e-3)


def test_it_is_saved_and_loaded(tmp_path: Any, start: Tensor) -> None:
    profile = replace(PCM4, spacing="aligned", gamma=0.2, shift=4.0)
    scheduler = PCMScheduler.from_profile(profile, diffusers.FlowMatchEulerDiscreteScheduler())
    scheduler.save_pretrained(tmp_path)
    again = PCMScheduler.from_pretrained(tmp_path)
    assert again.plan.r == scheduler.plan.r and torch.equal(again.timesteps, scheduler.timesteps)
    assert again.sigma_table == scheduler.sigma_table and len(again) == 1000
    plain = PCMScheduler()
    assert plain.timesteps.tolist() == [999, 749, 499, 249]


# Pipelines


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=2,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def pipeline(kind: str, unet: Any, scheduler: Any) -> Any:
    made = getattr(diffusers, kind)(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def prompts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = ("prompt_embeds", "negative_prompt_embeds")
    return {name: torch.randn(1, 5, 8, generator=generator) for name in names}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_pipeline_is_the_library(guidance: float, unet: Any) -> None:
    theirs = diffusers.PNDMScheduler(**BETAS)  # what Stable Diffusion 1.5 comes with
    profile = profile_from_name("pcm_sd15_normalcfg_4step_converted")
    assert profile is not None
    scheduler = PCMScheduler.from_profile(profile, theirs.config)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    pipe = pipeline("StableDiffusionPipeline", unet, scheduler)
    images = pipe(
        num_inference_steps=4, guidance_scale=guidance, latents=noise, output_type="latent", **prompts()
    ).images  # fmt: skip
    model = Denoiser.from_diffusers(unet, theirs, **prompts())
    expected = sample(model, plan(profile, model.sigmas, cfg=guidance), noise)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5 * 5 ** (guidance > 1))  # guided as eps


def test_an_image_to_image_pipeline_enters_on_the_grid(unet: Any) -> None:
    theirs = diffusers.DDIMScheduler(**BETAS)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    latent = noise.flip(-1) * 0.2
    pipe = pipeline("StableDiffusionImg2ImgPipeline", unet, PCMScheduler.from_profile(PCM4, theirs.config))
    images = pipe(
        image=latent, strength=0.5, num_inference_steps=4, guidance_scale=0, output_type="latent",
        generator=torch.Generator().manual_seed(2), **prompts(),
    ).images  # fmt: skip
    model = Denoiser.from_diffusers(unet, theirs, **prompts())
    expected = sample(model, plan(PCM4, model.sigmas, denoise=0.5), noise, latent=latent)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("scheduler", "options", "found"),
    [
        ("EDMEulerScheduler", {}, "EDMEulerScheduler has no betas"),
        ("CogVideoXDDIMScheduler", {}, "CogVideoXDDIMScheduler has no betas"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_schedulers_that_cannot_be_read(scheduler: str, options: dict[str, Any], found: str) -> None:
    theirs = getattr(diffusers, scheduler)(**options)
    with pytest.raises(PCMError, match=found):
        PCMScheduler.from_profile(PCM4, theirs)
    with pytest.raises(PCMError, match=found.replace(scheduler, "The scheduler")):
        PCMScheduler.from_profile(PCM4, theirs.config)
    if scheduler.startswith("CogVideoX"):  # its config says too little, its alphas are what it samples with
        return
    with pytest.raises(PCMError, match=scheduler):
        Denoiser.from_diffusers(Network(), theirs)


@pytest.mark.parametrize("shift", [-1.0, 0.0])
def test_a_shift_that_cannot_be(shift: float) -> None:
    theirs = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift)
    with pytest.raises(PCMError, match="The shift is"):
        Denoiser.from_diffusers(Network(), theirs)
    with pytest.raises(PCMError, match="The shift is"):
        PCMScheduler.from_profile(PCM4, diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))


def test_a_dynamic_shift_is_fixed_by_the_lora() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler = PCMScheduler.from_profile(replace(PCM4, shift=5.0), theirs.config)
    assert scheduler.sigma_table == SigmaTable.shifted_flow(5.0)
    scheduler.set_timesteps(4, mu=1.15)


def test_more_steps_than_phases_are_refused() -> None:
    scheduler = PCMScheduler.from_profile(PCM4, diffusers.DDIMScheduler(**BETAS).config)
    with pytest.raises(PCMError, match="num_inference_steps is 50"):
        scheduler.set_timesteps(50)
    scheduler.set_timesteps(2)  # said, not refused
    assert scheduler.timesteps.tolist() == [999, 499]


def test_a_denoiser_without_a_negative_prompt(unet: Any) -> None:
    model = Denoiser.from_diffusers(unet, diffusers.DDIMScheduler(**BETAS), prompts()["prompt_embeds"])
    with pytest.raises(PCMError, match="needs a negative prompt"):
        model(torch.zeros(1, 4, 8, 8), torch.ones(1), cfg=2.0)


def test_a_denoiser_with_prompts_for_another_batch(unet: Any) -> None:
    model = Denoiser.from_diffusers(unet, diffusers.DDIMScheduler(**BETAS), torch.zeros(2, 5, 8))
    with pytest.raises(PCMError, match="A batch of 3 latents has 2 prompts"):
        model(torch.zeros(3, 4, 8, 8), torch.ones(3))
