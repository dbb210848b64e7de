"""The PCM sampler: one flat loop with k-diffusion's call signature, and one arithmetic for eps, v, x0 and flow models.

With the model's x0 prediction ``denoised``, the paper's jump F(x, t, s) (Eq. 2, exact form of DDIM) in sigma space is

    variance exploding:  x = x0 + sigma eps              ->  x_s = x0 + sigma_s eps = lerp(x0, x, sigma_s / sigma)
    flow matching:       x = (1 - sigma) x0 + sigma eps  ->  x_s = x + (sigma_s - sigma)(eps - x0) = the same lerp

so one line works for every parametrization. F(x, t, t) = x holds exactly: the weight is one.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .errors import PCMError
from .sigma_table import SigmaTable

Model = Callable[..., Tensor]
NoiseSampler = Callable[[float, float], Tensor]


@torch.no_grad()
def sample_pcm(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    determinism: float | Sequence[float] = 1.0,
    flow: bool = False,
    noise_scale: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    final: bool = True,
    progress: Callable[[int], Iterable[int]] = range,
) -> Tensor:
    """Jump along ``sigmas``.

    Args:
        model: ``model(x, sigma [B], **extra_args) -> denoised``, the x0 prediction after guidance.
        x: noised latent of any rank and float dtype, batch first. Never modified.
        sigmas: [N + 1] strictly descending; N model evaluations.
        callback: receives ``x``, ``i``, ``sigma``, ``sigma_hat`` and ``denoised`` before each update.
        disable: accepted for compatibility; show progress through ``callback`` or ``progress``.
        determinism: r of the paper's Eq. 44, one number or one per step: 1 is the deterministic PCM jump, 0 renoises
            fully (LCM). The last step never adds noise. See ``gamma_to_determinism`` for TCD's gamma.
        flow: the model is a flow model (x = (1 - sigma) x0 + sigma eps). Used only for ``determinism`` below 1.
        noise_scale: standard deviation of a flow model's noise.
        noise_sampler: ``(sigma, sigma_next) -> noise`` like x; default: seeded by ``extra_args["seed"]`` on the CPU.
        final: False if another run continues from here, so that the last of these steps may add noise too.
        progress: wraps the range of steps, e.g. a progress bar.

    Returns:
        The latent at ``sigmas[-1]``, same shape as ``x``.

    Raises:
        PCMError: if ``sigmas`` has one entry or does not descend, or ``determinism`` is outside 0..1.
    """
    extra_args = extra_args or {}
    levels = check_sigmas(sigmas)
    r = _r_per_step(determinism, max(len(levels) - 1, 0), final=final)
    if noise_sampler is None and min(r, default=1.0) < 1:
        noise_sampler = seeded_noise(x, extra_args.get("seed"))
    for i in progress(len(r)):
        sigma, sigma_next = levels[i], levels[i + 1]
        denoised = model(x, x.new_full((len(x),), sigma), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if sigma_next == 0:
            x = denoised
        elif r[i] == 1:
            x = jump(x, denoised, sigma, sigma_next)
        else:
            assert noise_sampler is not None
            noise = noise_sampler(sigma, sigma_next)
            x = stochastic_jump(x, denoised, noise, sigma, sigma_next, r[i], flow=flow, noise_scale=noise_scale)
            del noise
        del denoised  # the next call of the model may need the memory
    return x


def jump(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The deterministic PCM jump from ``sigma`` to ``sigma_next`` (paper Eq. 2 in sigma space)."""
    return torch.lerp(denoised, x, sigma_next / sigma)


def stochastic_jump(
    x: Tensor,
    denoised: Tensor,
    noise: Tensor,
    sigma: float,
    sigma_next: float,
    determinism: float,
    *,
    flow: bool,
    noise_scale: float = 1.0,
) -> Tensor:
    """Eq. 44: land on ``sigma_next`` with ``sqrt(r)`` of the predicted noise and ``sqrt(1 - r)`` of fresh noise.

    ``noise`` has unit variance; ``noise_scale`` is the standard deviation of a flow model's. Memory: one new tensor.
    """
    predicted = math.sqrt(determinism) * sigma_next
    fresh = math.sqrt(1 - determinism) * sigma_next * noise_scale
    if flow:  # eps = (x - (1 - sigma) x0) / sigma
        weight = predicted / sigma
        if weight == 0:
            landing = denoised * (1 - sigma_next)
        else:
            landing = (weight * x).add_(denoised, alpha=(1 - sigma_next) - weight * (1 - sigma))
    else:
        landing = jump(x, denoised, sigma, predicted)
    return landing.add_(noise, alpha=fresh)


def seeded_noise(x: Tensor, seed: int | None) -> NoiseSampler:
    """Noise like ``x``, drawn on the CPU so that a seed gives the same image on every device.

    Equal to k-diffusion's default noise sampler on a CPU (seed + 1 makes it differ from the initial noise).
    """
    generator = torch.Generator(device="cpu")
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed((seed + 1) % 2**64)

    def sample(sigma: float, sigma_next: float) -> Tensor:
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        return noise.to(x.device)

    return sample


def gamma_to_determinism(gamma: float, sigmas: Tensor, table: SigmaTable | Tensor) -> tuple[float, ...]:
    """TCD's gamma as r of Eq. 44, one value per step of ``sigmas``.

    TCD goes to timestep ``s' = floor((1 - gamma) s)`` and forward-noises to s (``TCDScheduler.step``); in sigma space
    that is Eq. 44 with ``r = (sigma_s' / sigma_s)^2``. TCD is not defined for flow models. There we use the same
    fraction of the timestep index with the flow form, ``r = (sigma_s' (1 - sigma_s) / (sigma_s (1 - sigma_s')))^2``;
    this is our extension.

    Args:
        gamma: 0 (deterministic) to 1.
        sigmas: the schedule [N + 1].
        table: the model's table, or its [L] ascending sigmas.

    Raises:
        PCMError: if gamma is outside 0..1.
    """
    if not 0 <= gamma <= 1:
        raise PCMError(f"gamma is {gamma}.", "a number from 0 (deterministic) to 1.", "TCD recommends 0.3.")
    table = SigmaTable.of(table)
    r: list[float] = []
    for sigma in (float(s) for s in sigmas[1:]):
        if sigma <= 0 or gamma == 0:
            r.append(1.0)
            continue
        lower = table.sigmas[math.floor((1 - gamma) * table.nearest(sigma))]
        ratio = lower * (1 - sigma) / (sigma * (1 - lower)) if table.flow else lower / sigma
        r.append(min(1.0, ratio**2))
    return tuple(r)


def ancestral_to_determinism(sigmas: Tensor, *, flow: bool) -> tuple[float, ...]:
    """An ancestral step with eta 1 as r of Eq. 44, one value per step of ``sigmas`` [N + 1].

    k-diffusion's ancestral step goes down to ``d = s^2 / sigma`` and renoises to s: ``r = (s / sigma)^2``. The flow
    form (``sample_euler_ancestral_RF`` in ComfyUI) keeps x on the flow path: ``r = ((1 - s) / (1 - d) * d / s)^2``.
    """
    levels = [float(level) for level in sigmas.detach().flatten().cpu()]
    r: list[float] = []
    for sigma, lower in itertools.pairwise(levels):
        down = lower * lower / sigma
        r.append(1.0 if lower <= 0 else ((1 - lower) / (1 - down) * down / lower if flow else lower / sigma) ** 2)
    return tuple(r)


def is_finite(x: Tensor) -> bool:
    """Whether a tensor of any shape and float dtype contains neither NaN nor infinity.

    Reads the tensor once: ``torch.isfinite`` makes three temporaries and costs more than a step of the sampler.
    """
    if math.isfinite(float(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))):
        return True
    return bool(torch.isfinite(x).all())  # a sum of finite numbers may overflow


def check_sigmas(sigmas: Tensor) -> list[float]:
    """The sigmas as Python floats; an empty schedule means that there is nothing to do.

    Raises:
        PCMError: if there is exactly one sigma, or they do not strictly descend to a value of at least zero.
    """
    levels = cast(list[float], sigmas.flatten().tolist())  # pyright: ignore[reportUnknownMemberType]
    if len(levels) > 1 and math.isfinite(levels[0]) and all(map(operator.gt, levels, levels[1:])) and levels[-1] >= 0:
        return levels
    if len(levels) == 1:
        raise PCMError(
            f"The schedule has a single sigma, {levels[0]:.6g}.",
            "at least two: where to start and where to end.",
            "Use a schedule of more steps, or cut it elsewhere.",
        )
    for i, (high, low) in enumerate(itertools.pairwise(levels)):
        if not (math.isfinite(high) and high > low >= 0):
            raise PCMError(
                f"Sigma {i + 1} of the schedule is {low:.6g} after {high:.6g}.",
                "finite sigmas that strictly descend and stay at or above zero.",
                "Use those of a phase schedule, or check what edits them on the way.",
            )
    return levels


def _r_per_step(determinism: float | Sequence[float], steps: int, *, final: bool) -> list[float]:
    """One r per step; the last is 1 if no further step follows."""
    single = isinstance(determinism, (int, float))
    given = [float(determinism)] if single else [float(r) for r in determinism]
    if not single and len(given) != steps:
        raise PCMError(f"{len(given)} values of determinism for {steps} steps.", "one per step.", "Match the schedule.")
    for r in given:
        if not 0 <= r <= 1:
            raise PCMError(f"determinism is {r}.", "0 (full renoising) to 1 (deterministic).", "Use 1 for PCM.")
    given = given * steps if single else given
    return [*given[:-1], 1.0] if final and given else given
