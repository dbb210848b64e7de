"""Parity with diffusers' schedulers, step by step: DDIM (trailing), TCD and LCM, for eps and v prediction.

diffusers computes alphas in float32, ComfyUI in float64: their sigmas differ by up to 1.3e-5, hence the 2e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pcm_core.phases import PhaseSchedule, Spacing, build_schedule, eval_timesteps
from pcm_core.sampling import gamma_to_determinism, sample_pcm

diffusers = pytest.importorskip("diffusers", reason="install requirements-dev.txt")

Prediction = Literal["epsilon", "v_prediction"]
TOLERANCE = 2e-5
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction")


def network(x: Tensor, t: int) -> Tensor:
    """The network that both samplers call: any bounded function of the unit-variance latent and the timestep."""
    return torch.sin(1.7 * x + t / 300) + 0.2 * torch.cos(x.flip(-1) - t / 100)


def as_denoiser(prediction: Prediction, table: Tensor) -> Callable[..., Tensor]:
    """``network`` as a k-diffusion model, parametrised as in ComfyUI."""

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[0].item()
        t = int((table.log() - sigma[0].log()).abs().argmin())
        alpha = (1 + level**2) ** -0.5
        output = network(x * alpha, t)
        return x - level * output if prediction == "epsilon" else x * alpha**2 - level * alpha * output

    return model


def trajectory(
    schedule: PhaseSchedule, prediction: Prediction, table: Tensor, start: Tensor, **options: Any
) -> list[Tensor]:
    """Our unit-variance latent after every step, and the x0 that the callback saw before each."""
    sigmas = schedule.sigmas(table)
    states: list[Tensor] = []
    result = sample_pcm(
        as_denoiser(prediction, table), start * (1 + sigmas[0] ** 2).sqrt(), sigmas,
        callback=lambda entry: states.append(entry["x"]), **options,
    )  # fmt: skip
    return [x / (1 + sigma**2).sqrt() for x, sigma in zip([*states[1:], result], sigmas[1:], strict=True)]


def reference(scheduler: Any, steps: int, start: Tensor, **step_options: Any) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    x, states = start, []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, int(t)), int(t), x, **step_options)[0]
        states.append(x)
    return states


def assert_same_steps(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = ((a - b).norm() / b.norm()).item()
        assert error < TOLERANCE, f"step {step} of {len(ours)}: relative error {error:.2e}"


@pytest.fixture
def start() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def shared_noise(seed: int, like: Tensor) -> Callable[[float, float], Tensor]:
    """The noise that diffusers' randn_tensor draws from a generator with this seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(like.shape, generator=generator)


# Timesteps


def ddim(**config: Any) -> Any:
    return diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing", clip_sample=False, **config)


@pytest.mark.parametrize("steps", [n for n in range(1, 65) if n != 61])
def test_trailing_timesteps_are_those_of_ddim(steps: int) -> None:
    scheduler = ddim()
    scheduler.set_timesteps(steps)
    assert eval_timesteps(steps) == tuple(scheduler.timesteps.tolist())


def test_trailing_takes_61_steps_where_ddim_takes_62() -> None:
    scheduler = ddim()
    scheduler.set_timesteps(61)
    assert scheduler.timesteps.tolist() == [*eval_timesteps(61), -1]


@pytest.mark.parametrize("grid", [20, 25, 40, 50, 100])
def test_tcd_timesteps_are_those_of_tcd(grid: int) -> None:
    scheduler = diffusers.TCDScheduler(**BETAS, original_inference_steps=grid)
    for steps in range(1, min(grid, 64) + 1):
        scheduler.set_timesteps(steps)
        assert eval_timesteps(steps, spacing="tcd", grid=grid) == tuple(scheduler.timesteps.tolist()), f"{steps} steps"


# Steps


# Of the other counts diffusers' DDIM steps to a timestep next to the one it evaluates next.
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50])
@pytest.mark.parametrize("terminal", ["zero", "alpha0"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_trailing(
    steps: int, terminal: Literal["zero", "alpha0"], prediction: Prediction, sd_table: Tensor, start: Tensor
) -> None:
    scheduler = ddim(set_alpha_to_one=terminal == "zero", prediction_type=prediction)
    ours = trajectory(build_schedule(steps, terminal=terminal), prediction, sd_table, start)
    assert_same_steps(ours, reference(scheduler, steps, start))


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_tcd(steps: int, eta: float, prediction: Prediction, sd_table: Tensor, start: Tensor) -> None:
    scheduler = diffusers.TCDScheduler(**BETAS, set_alpha_to_one=False, prediction_type=prediction)
    schedule = build_schedule(steps, spacing="tcd", terminal="alpha0")
    rates = gamma_to_determinism(eta, schedule.sigmas(sd_table), sd_table)
    ours = trajectory(
        schedule, prediction, sd_table, start, determinism=rates, noise_sampler=shared_noise(7, start)
    )  # fmt: skip
    theirs = reference(scheduler, steps, start, eta=eta, generator=torch.Generator().manual_seed(7))
    assert_same_steps(ours, theirs)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lcm(steps: int, prediction: Prediction, sd_table: Tensor, start: Tensor) -> None:
    # LCM's boundary coefficients c_skip and c_out at these timesteps are 0 and 1 to 7e-6 or better.
    scheduler = diffusers.LCMScheduler(**BETAS, prediction_type=prediction)
    schedule = build_schedule(steps, spacing="tcd")
    noise = shared_noise(7, start)
    ours = trajectory(schedule, prediction, sd_table, start, determinism=0.0, noise_sampler=noise)
    assert_same_steps(ours, reference(scheduler, steps, start, generator=torch.Generator().manual_seed(7)))


def test_the_initial_latent_has_the_same_scale(sd_table: Tensor) -> None:
    assert ddim().init_noise_sigma == 1.0  # start * sqrt(1 + sigma^2) above is ComfyUI's noise at full denoise
    alphas = ddim().alphas_cumprod
    ours = 1 / (1 + sd_table**2)
    assert ((ours - alphas) / alphas).abs().max() < TOLERANCE


def test_terminal_alpha0_is_set_alpha_to_one_false(sd_table: Tensor) -> None:
    last = build_schedule(4, terminal="alpha0").sigmas(sd_table)[-1]
    assert last.item() == pytest.approx(0.0291672, rel=1e-5)
    rescale = (1 + last.double() ** 2).rsqrt().item()
    assert rescale == pytest.approx(0.99957491, abs=1e-8)
    assert rescale == pytest.approx(ddim(set_alpha_to_one=False).final_alpha_cumprod.sqrt().item(), abs=1e-7)


# The authors' flow schedules (pcm_fm_deterministic_scheduler.py)


def official_flow(shift: float, points: int, steps: int) -> list[float]:
    """PCMFMScheduler: every (points / steps)-th of ``points`` shifted levels, counted from the top."""
    levels = np.arange(1, 1001, dtype=np.float64)[::-1][:: 1000 // points] / 1000
    shifted = shift * levels / (1 + (shift - 1) * levels)
    return [*shifted[np.floor(np.linspace(0, points, steps, endpoint=False)).astype(int)], 0.0]


def flow_sigmas(shift: float, steps: int, spacing: Spacing, grid: int) -> list[float]:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    table = shift * t / (1 + (shift - 1) * t)
    return build_schedule(steps, spacing=spacing, grid=grid).sigmas(table).tolist()


SD3 = [
    (1, 50, 2, [1, 0.5, 0]),
    (1, 100, 2, [1, 0.5, 0]),
    (1, 50, 4, [1, 0.76, 0.5, 0.26, 0]),
    (1, 100, 4, [1, 0.75, 0.5, 0.25, 0]),
    (3, 50, 2, [1, 0.75, 0]),
    (3, 100, 2, [1, 0.75, 0]),
    (3, 50, 4, [1, 0.904762, 0.75, 0.513158, 0]),
    (3, 100, 4, [1, 0.9, 0.75, 0.5, 0]),
    (3, 50, 8, [1, 0.956522, 0.904762, 0.842105, 0.75, 0.647727, 0.513158, 0.328125, 0]),
    (3, 100, 8, [1, 0.956522, 0.9, 0.836283, 0.75, 0.647727, 0.5, 0.309524, 0]),
]


@pytest.mark.parametrize(("shift", "points", "steps", "sigmas"), SD3)
def test_sd3_tables(shift: float, points: int, steps: int, sigmas: list[float]) -> None:
    assert official_flow(shift, points, steps) == pytest.approx(sigmas, abs=1e-6)
    assert flow_sigmas(shift, steps, "tcd", points) == pytest.approx(sigmas, abs=1e-6)
    # The default spacing is the authors' 100-point grid where that grid holds the phase edges.
    if points == 100 and steps < 8:
        assert flow_sigmas(shift, steps, "trailing", 50) == pytest.approx(sigmas, abs=1e-6)


@pytest.mark.parametrize("points", [50, 100])
@pytest.mark.parametrize("shift", [1.0, 3.0, 17.0])
def test_flow_tables_of_any_length(shift: float, points: int) -> None:
    for steps in range(1, 51):
        ours = flow_sigmas(shift, steps, "tcd", points)
        assert ours == pytest.approx(official_flow(shift, points, steps), abs=1e-6), f"{steps} steps"


def test_trailing_eight_steps_are_on_no_100_point_grid() -> None:
    trailing, official = flow_sigmas(3, 8, "trailing", 50), official_flow(3, 100, 8)
    assert trailing[1] == pytest.approx(3 * 0.875 / (1 + 2 * 0.875), abs=1e-6)
    assert abs(trailing[1] - official[1]) > 1e-3


def test_fasthunyuan_is_trailing_to_a_timestep() -> None:
    # linspace(1, 0, 7) shifted by 17; a timestep is at most half of 1/1000 off a sixth.
    official = [1, 0.988372, 0.971429, 0.944444, 0.894737, 0.772727, 0]
    ours = flow_sigmas(17, 6, "trailing", 50)
    assert ours == pytest.approx(official, abs=4.3e-4)
    assert ours == pytest.approx([1, 0.988345, 0.971470, 0.944444, 0.894595, 0.773148, 0], abs=1e-6)
