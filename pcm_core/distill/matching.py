"""Distribution matching inside a phase: the student's results ("landings") must look like the guided teacher's.

Where consistency says *this* noise must land *there*, matching says that all landings together must have the teacher's
distribution. Its gradient is the difference of two scores (DMD, arXiv 2311.18828, Eq. 7; DMD2, arXiv 2405.14867): the
teacher's and that of the student's own landings, which a *fake* network learns beside the training.

A phase may end above zero noise. The landings at level s are then renoised to a level t inside the phase, and the fake
learns the score of that: the subinterval objective of Phased DMD (arXiv 2510.27684). The teacher is guided, and
guidance drives the method (Decoupled DMD, arXiv 2511.22677): the two parts may use their own noise ranges.

Everything happens in sigma space on x0 predictions, so eps, v, x0 and flow models differ only in how x is noised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import checkpoint

from ..phases import eval_timesteps
from ..sigma_table import SigmaTable
from .adversarial import renoise, renoise_std
from .objective import Denoiser, add_noise, jump_batch


def stratified_levels(
    table: SigmaTable | Tensor, low: float, high: float, count: int, generator: torch.Generator,
    span: tuple[float, float] = (0.02, 0.98), *, flow: bool,
) -> Tensor:  # fmt: skip
    """Noise levels [count] on the CPU, one from each of ``count`` equal stretches of a part of ``low`` to ``high``.

    ``span`` is that part, 0 at ``low`` and 1 at ``high``. Uniform in sigma for flow models, in timesteps otherwise,
    where ``table`` is the model's sigma table.
    """
    place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    place = span[0] + (span[1] - span[0]) * place
    if flow:
        return low + (high - low) * place
    # Timesteps, between the entries of the table; sigma 0 lies below its first entry.
    levels = torch.tensor([0.0, *SigmaTable.of(table).sigmas])
    bottom, top = (torch.searchsorted(levels, torch.tensor([edge])).clamp(max=len(levels) - 1) for edge in (low, high))
    index = bottom + (top - bottom) * place
    floor = index.long().clamp(max=len(levels) - 2)
    return torch.lerp(levels[floor], levels[floor + 1], index - floor)


def subinterval_target(landing: Tensor, edge: Tensor, level: Tensor, noise: Tensor, *, flow: bool) -> Tensor:
    """The x0 whose mean over all landings and noises is the score of the renoised landings.

    ``x_t = a x_s + q eps`` has the conditional score ``-eps / q``. An x0 prediction D stands for the score
    ``((1 - t) D - x_t) / t^2`` in flow models and ``(D - x_t) / t^2`` otherwise. Solved for D, with
    ``t^2 - q^2 = a^2 s^2``:

        flow       D = (x_s - a s^2 / q eps) / (1 - s),   a = (1 - t) / (1 - s)
        otherwise  D =  x_s -   s^2 / q eps

    At s = 0 it is the landing itself, and learning it is ordinary denoising.

    Args:
        landing: x_s [B, ...]; ``edge`` s [B], ``level`` t [B] above it, ``noise`` eps as in ``renoise``.
    """
    shape = (-1, *[1] * (landing.ndim - 1))
    scale = (1 - level) / (1 - edge) if flow else torch.ones_like(edge)
    wobble = scale * edge.square() / renoise_std(edge, level, flow=flow).clamp(min=torch.finfo(edge.dtype).tiny)
    target = landing - wobble.reshape(shape) * noise
    return target / (1 - edge).reshape(shape) if flow else target


def fake_loss(
    fake: Denoiser, landing: Tensor, edge: Tensor, level: Tensor, noise: Tensor, *, flow: bool
) -> Tensor:  # fmt: skip
    """What the fake learns from the student's landings: the mean squared error to ``subinterval_target``.

    Weighted by ``(q / t^2)^2``, times ``(1 - s)^2`` for flow models: at s = 0 that is the usual loss of the velocity or
    of eps, and above it keeps the variance of the target at most 1 where it would grow without bound.
    """
    shape = (-1, *[1] * (landing.ndim - 1))
    noised = renoise(landing, edge, level, noise, flow=flow)
    target = subinterval_target(landing, edge, level, noise, flow=flow)
    weight = renoise_std(edge, level, flow=flow) / level.square()
    weight = weight * (1 - edge) if flow else weight
    return (weight.reshape(shape) * (fake(noised, level) - target)).square().mean()


@dataclass(frozen=True)
class Scores:
    """The networks' predictions for renoised landings, each an x0 [B, ...] without gradient.

    Attributes:
        fake: the score of the student's landings.
        real: the teacher's, under the guidance that is matched.
        guidance: what is left of the guidance, ``(cfg - matched cfg) (cond - uncond)``, at levels of its own; 0 if
            the same levels serve both.
    """

    fake: Tensor
    real: Tensor
    guidance: Tensor | float = 0.0


def matching_gradient(scores: Scores, denoised: Tensor, floor: float = 0.05) -> Tensor:
    """The direction away from the teacher, ``fake - real``, normalized per sample.

    Divided by ``mean |x0 - real|`` of each sample (DMD Eq. 8), so that all noise levels have equal weight; ``floor``
    limits the factor for samples that are already right.

    Args:
        denoised: the x0 [B, ...] of the student's last jump.
    """
    size = (denoised.detach() - scores.real).abs().flatten(1).mean(1).clamp(min=floor)
    return (scores.fake - scores.real - scores.guidance) / size.reshape(-1, *[1] * (denoised.ndim - 1))


def matching_loss(landing: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient with respect to the landing is ``gradient``, up to the mean over elements."""
    return 0.5 * (landing - (landing - gradient).detach()).square().mean()


def unroll(
    student: Denoiser, x: Tensor, edges: Sequence[float], *, recompute: bool = False,
    noises: Sequence[Tensor] | None = None, flow: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The student's jumps along descending ``edges`` from ``x`` at the first of them, all with gradient.

    ``recompute`` keeps the activations of one jump at a time in the backward pass, for one more forward per jump.
    With ``noises``, one [B, ...] for each edge between the first and the last, every jump but the last renoises its x0
    to that edge, as LCM samples; ``flow`` says how.

    Returns:
        The landing at the last edge, and the x0 of the last jump, both [B, ...].
    """
    denoised, last = x, len(edges) - 2
    for i, (above, below) in enumerate(pairwise(edges)):
        sigma = x.new_full((len(x),), above)
        denoised = _recomputed(student, x, sigma) if recompute else student(x, sigma)
        sigma_next = torch.full_like(sigma, below)
        if noises is not None and i < last:
            x = add_noise(denoised, noises[i].to(x), sigma_next, flow=flow)
        else:
            x = jump_batch(x, denoised, sigma, sigma_next)
    return x, denoised


def renoised_path(table: SigmaTable | Tensor, steps: int, bottom: float) -> tuple[float, ...]:
    """Descending noise levels of ``steps`` trailing timesteps, as LCM samples them, and ``bottom``."""
    return (*(SigmaTable.of(table).sigma(timestep) for timestep in eval_timesteps(steps)), bottom)


def _recomputed(student: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    run = cast(Callable[..., Tensor], cast(Any, checkpoint).checkpoint)
    return run(student, x, sigma, use_reentrant=False)
