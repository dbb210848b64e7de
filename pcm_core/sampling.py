"""The PCM sampler: one flat loop, the k-diffusion call contract, the same arithmetic for eps, v, x0 and flow models.

With ``denoised`` the model's x0, the paper's jump F(x, t, s) (Eq. 2, exact-solution form of DDIM) is in sigma space

    variance exploding:  x = x0 + sigma eps              ->  x_s = x0 + sigma_s eps = lerp(x0, x, sigma_s / sigma)
    flow matching:       x = (1 - sigma) x0 + sigma eps  ->  x_s = x + (sigma_s - sigma)(eps - x0) = the same lerp

so one line serves every parametrisation. F(x, t, t) = x holds identically: the weight is one.
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

Model = Callable[..., Tensor]
NoiseSampler = Callable[[float, float], Tensor]
_LARGE = 1 << 16  # numbers in a latent whose memory is used again; making a smaller one costs less than asking


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
        x: noised latent of any rank and float dtype, batch first. Never written to.
        sigmas: [N + 1] strictly descending; N model evaluations.
        callback: receives ``x``, ``i``, ``sigma``, ``sigma_hat`` and ``denoised`` before each update.
        disable: accepted for the contract; show progress through ``callback`` or ``progress``.
        determinism: r of the paper's Eq. 44, one number or one per step: 1 is the deterministic PCM jump, 0 renoises
            fully (LCM). The last step never adds noise. See ``gamma_to_determinism`` for TCD's gamma.
        flow: the model is a flow model (x = (1 - sigma) x0 + sigma eps). Matters only for ``determinism`` below 1.
        noise_scale: standard deviation of a flow model's noise.
        noise_sampler: ``(sigma, sigma_next) -> noise`` like x; default: seeded by ``extra_args["seed"]`` on the CPU.
        final: False if another run goes on from here, so that the last of these steps may add noise too.
        progress: wraps the range of steps, e.g. a progress bar.

    Returns:
        The latent at ``sigmas[-1]``, same shape as ``x``.

    Raises:
        PCMError: if ``sigmas`` has one entry or does not descend, or ``determinism`` is outside 0..1.
    """
    extra_args = extra_args or {}
    levels = check_sigmas(sigmas)
    steps = max(len(levels) - 1, 0)
    rates = _rates(determinism, steps)
    if noise_sampler is None and min(rates[:-1] if final else rates, default=1.0) < 1:
        noise_sampler = seeded_noise(x, extra_args.get("seed"))
    # A sigma per sample for every step at once, in memory of its own.
    inputs = x.new_empty(len(levels), x.shape[0]).copy_(sigmas.unsqueeze(1)).unbind()
    entries = sigmas.unbind()
    large = x.numel() >= _LARGE
    for i in progress(steps):
        sigma, sigma_next = levels[i], levels[i + 1]
        shown = x.detach() if large else x
        denoised = model(shown, inputs[i], **extra_args)
        if callback is not None:
            callback({"x": shown, "i": i, "sigma": entries[i], "sigma_hat": entries[i], "denoised": denoised})
        del shown  # whoever kept it keeps the memory from being written to
        if sigma_next == 0.0:
            x = denoised
        elif rates[i] == 1.0 or (final and i + 1 == steps):
            weight = sigma_next / sigma  # of the jump
            if large and i > 0 and _unshared(x):
                torch.lerp(denoised, x, weight, out=x)  # landing in the memory of x
            else:
                x = torch.lerp(denoised, x, weight)
        else:
            assert noise_sampler is not None
            x = _land(x, denoised, sigma, sigma_next, rates[i], flow=flow)  # before the noise: a latent less at once
            noise = noise_sampler(sigma, sigma_next)
            x = _add_noise(x, noise, sigma_next, rates[i], flow=flow, scale=noise_scale)
            del noise
        del denoised  # a latent less while the model runs
    return x


def jump(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The deterministic PCM jump from ``sigma`` to ``sigma_next`` (paper Eq. 2 in sigma space)."""
    return torch.lerp(denoised, x, sigma_next / sigma)


# Builds of torch before 2.8 without CUDA lack it; there every step lands in new memory.
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)  # pyright: ignore[reportPrivateUsage]


def _unshared(x: Tensor) -> bool:
    """Whether no other tensor or array shares the memory of ``x``; False where that cannot be known."""
    storage = x.untyped_storage()  # a second handle, beside x
    return _use_count is not None and _use_count(storage._cdata) == 2  # pyright: ignore[reportPrivateUsage]


def stochastic_jump(
    x: Tensor, denoised: Tensor, noise: Tensor, sigma: float, sigma_next: float, determinism: float, *, flow: bool
) -> Tensor:
    """Eq. 44: land on ``sigma_next`` with ``sqrt(r)`` of the predicted noise and ``sqrt(1 - r)`` of fresh noise."""
    landing = _land(x, denoised, sigma, sigma_next, determinism, flow=flow)
    return _add_noise(landing, noise, sigma_next, determinism, flow=flow, scale=1.0)


def _land(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, determinism: float, *, flow: bool) -> Tensor:
    """The part of Eq. 44 without the fresh noise: new memory, or ``denoised`` itself where nothing of x stays."""
    if determinism == 0:
        return denoised
    kept = math.sqrt(determinism) * sigma_next
    if not flow:
        return jump(x, denoised, sigma, kept)
    weight = kept / sigma
    return (weight * x).add_(denoised, alpha=(1 - sigma_next) - weight * (1 - sigma))


def _add_noise(
    landing: Tensor, noise: Tensor, sigma_next: float, determinism: float, *, flow: bool, scale: float
) -> Tensor:
    fresh = math.sqrt(1 - determinism) * sigma_next * scale
    if determinism > 0:
        return landing.add_(noise, alpha=fresh)  # landing is nobody else's
    # The model's own x0 must not be written to.
    return (landing * (1 - sigma_next)).add_(noise, alpha=fresh) if flow else torch.add(landing, noise, alpha=fresh)


def seeded_noise(x: Tensor, seed: int | None) -> NoiseSampler:
    """Noise like ``x`` drawn on the CPU, so that a seed gives the same picture on every device.

    Equal to k-diffusion's default noise sampler on a CPU (seed + 1 keeps it apart from the initial noise).
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


def gamma_to_determinism(gamma: float, sigmas: Tensor, table: Tensor) -> tuple[float, ...]:
    """TCD's gamma as r of Eq. 44, one value per step of ``sigmas``.

    TCD goes to timestep ``s' = floor((1 - gamma) s)`` and forward-noises to s (``TCDScheduler.step``); in sigma space
    that is Eq. 44 with ``r = (sigma_s' / sigma_s)^2``. For flow tables, where TCD is not defined, the same fraction of
    the timestep index is used and the flow form of the identity, ``r = (sigma_s' (1 - sigma_s) / (sigma_s (1 -
    sigma_s')))^2``; this is our extension.

    Args:
        gamma: 0 (deterministic) to 1.
        sigmas: [N + 1] the schedule.
        table: [L] the model's ascending sigma table; a flow table ends at 1.

    Raises:
        PCMError: if gamma is outside 0..1.
    """
    if not 0 <= gamma <= 1:
        raise PCMError(f"gamma is {gamma}.", "a number from 0 (deterministic) to 1.", "TCD recommends 0.3.")
    flow = bool(table[-1] <= 1 + 1e-5)  # the host's shifts round
    values = [float(s) for s in sigmas]
    ascending = table.detach().flatten().to("cpu", torch.float64)
    rates: list[float] = []
    for sigma in values[1:]:
        if sigma <= 0 or gamma == 0:
            rates.append(1.0)
            continue
        s = int((ascending - sigma).abs().argmin())
        lower = float(ascending[math.floor((1 - gamma) * s)])
        ratio = lower * (1 - sigma) / (sigma * (1 - lower)) if flow else lower / sigma
        rates.append(min(1.0, ratio**2))
    return tuple(rates)


def ancestral_to_determinism(sigmas: Tensor, *, flow: bool) -> tuple[float, ...]:
    """An ancestral step with eta 1 as r of Eq. 44, one value per step of ``sigmas`` [N + 1].

    k-diffusion's ancestral step goes down to ``d = s^2 / sigma`` and renoises to s: ``r = (s / sigma)^2``. The flow
    form (``sample_euler_ancestral_RF`` of the host) keeps x on the path: ``r = ((1 - s) / (1 - d) * d / s)^2``.
    """
    levels = [float(level) for level in sigmas.detach().flatten().cpu()]
    rates: list[float] = []
    for sigma, lower in itertools.pairwise(levels):
        down = lower * lower / sigma
        rates.append(1.0 if lower <= 0 else ((1 - lower) / (1 - down) * down / lower if flow else lower / sigma) ** 2)
    return tuple(rates)


def is_finite(x: Tensor) -> bool:
    """Whether a tensor of any shape and float dtype holds neither NaN nor infinity.

    One pass that reads it: ``torch.isfinite`` makes three temporaries, and costs more than a step of the sampler.
    """
    if math.isfinite(float(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))):
        return True
    return bool(torch.isfinite(x).all())  # a sum of finite numbers may overflow


def check_sigmas(sigmas: Tensor) -> list[float]:
    """Sigmas as Python floats; an empty schedule means nothing to do.

    Raises:
        PCMError: if there is exactly one, or they do not strictly descend to a value of at least zero.
    """
    levels = cast(list[float], sigmas.flatten().tolist())  # pyright: ignore[reportUnknownMemberType]
    if len(levels) > 1 and math.isfinite(levels[0]) and all(map(operator.gt, levels, levels[1:])) and levels[-1] >= 0:
        return levels
    if len(levels) == 1:
        raise PCMError(
            f"The schedule has a single sigma, {levels[0]:.6g}.",
            "at least two: where to start and where to end.",
            "Raise steps, or move the split of SplitSigmas.",
        )
    for i, (high, low) in enumerate(itertools.pairwise(levels)):
        if not (math.isfinite(high) and high > low >= 0):
            raise PCMError(
                f"Sigma {i + 1} of the schedule is {low:.6g} after {high:.6g}.",
                "finite sigmas that strictly descend and stay at or above zero.",
                "Use the PCM Phase Scheduler, or check what edits the SIGMAS on the way.",
            )
    return levels


def _rates(determinism: float | Sequence[float], steps: int) -> list[float]:
    single = isinstance(determinism, (int, float))
    given = [float(determinism)] if single else [float(rate) for rate in determinism]
    if not single and len(given) != steps:
        raise PCMError(f"{len(given)} values of determinism for {steps} steps.", "one per step.", "Match the schedule.")
    for rate in given:
        if not 0 <= rate <= 1:
            raise PCMError(f"determinism is {rate}.", "0 (full renoising) to 1 (deterministic).", "Use 1 for PCM.")
    return given * steps if single else given
