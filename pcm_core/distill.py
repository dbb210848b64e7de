"""The phased consistency objective, for any model that can be called.

One training step (paper Algorithm 1 and Eq. 7; ``train_pcm_lora_sd15.py``): noise a clean latent to a solver grid point
i, let the *student* jump from there to the lower edge of its phase, let the *teacher* take one guided solver step to
point i - 1 and the student (no gradient) jump from there to the same edge. The two landings must agree.

Everything happens in sigma space on x0 predictions, so eps, v, x0 and flow models differ only in how x is noised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .phases import Terminal, phase_edges, table_scale

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SolverGrid:
    """The teacher's solver points and what each must reach; float32 [n], ascending, on the CPU.

    Attributes:
        sigma: noise level of point i.
        below: noise level of point i - 1; the bottom edge for i = 0.
        edge: noise level of the lower edge of the phase that point i lies in. ``edge <= below < sigma``, except that
            a grid of every timestep has nothing below point 0 but itself (``alpha0``).
    """

    sigma: Tensor
    below: Tensor
    edge: Tensor

    def __len__(self) -> int:
        return len(self.sigma)

    @classmethod
    def from_table(
        cls, table: Tensor, phases: int, grid: int = 50, terminal: Terminal = "alpha0", train_steps: int = 1000
    ) -> SolverGrid:
        """Build the grid of ``phase_edges(phases, grid)`` from a model's ascending sigma table.

        ``terminal`` says what the lowest edge is: the sigma of timestep 0 (``alpha0``, official) or 0 (``zero``). Train
        on the edges that will be sampled: choose ``grid`` so that sampling's timesteps are grid points.

        Raises:
            PCMError: as ``phase_edges``, or if the table cannot be indexed by timestep.
        """
        edges = phase_edges(phases, grid, train_steps)
        ascending = table.detach().flatten().to("cpu", torch.float32)
        stride, scale = train_steps // grid, table_scale(ascending, train_steps)
        lowest = ascending[scale - 1]
        bottom = lowest if terminal == "alpha0" else torch.zeros_like(lowest)
        sigma = ascending[stride * scale - 1 :: stride * scale]
        below = torch.cat([bottom.reshape(1), sigma[:-1]])
        # The phase of point i starts at the highest edge not above the point below it.
        lower = [max(stride * i - 1, 0) for i in range(grid)]
        target = [max(edge for edge in edges if edge <= low) for low in lower]
        edge = torch.stack([ascending[(t + 1) * scale - 1] if t else bottom for t in target])
        return cls(sigma, below, edge)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor, *, flow: bool) -> Tensor:
    """x at noise level ``sigma`` [B]: ``(1 - sigma) x0 + sigma eps`` for flow models, ``x0 + sigma eps`` otherwise."""
    level = _like(sigma, clean)
    return torch.lerp(clean, noise, level) if flow else clean + level * noise


def jump_batch(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """``sampling.jump`` with one pair of noise levels per sample; ``sigma`` may be 0 where ``sigma_next`` is."""
    weight = torch.where(sigma > 0, sigma_next / sigma.clamp(min=torch.finfo(sigma.dtype).tiny), 1.0)
    return torch.lerp(denoised, x, _like(weight, x))


def pseudo_huber(error: Tensor, c: float = 1e-3) -> Tensor:
    """``mean(sqrt(e^2 + c^2) - c)``, the official loss; quadratic below ``c``, absolute above."""
    return (torch.sqrt(error.square() + c * c) - c).mean()


def phased_loss(
    student: Denoiser,
    teacher: Denoiser,
    target: Denoiser,
    clean: Tensor,
    noise: Tensor,
    index: Tensor,
    grid: SolverGrid,
    *,
    flow: bool,
    huber_c: float = 1e-3,
) -> Tensor:
    """The multiphase consistency loss of one batch.

    Args:
        student: ``(x, sigma [B]) -> x0``, with gradient.
        teacher: the frozen model, guidance included (ComfyUI's convention ``uncond + cfg (cond - uncond)``).
        target: the student without gradient, or its moving average.
        clean: latents [B, ...] of any rank; ``noise`` alike.
        index: grid points [B], int64, on the CPU.
        flow: how x is noised.
        huber_c: the loss's transition from quadratic to absolute.
    """
    sigma, below, edge = (row[index].to(clean) for row in (grid.sigma, grid.below, grid.edge))
    x = add_noise(clean, noise, sigma, flow=flow)
    prediction = jump_batch(x, student(x, sigma), sigma, edge)
    with torch.no_grad():
        x_below = jump_batch(x, teacher(x, sigma), sigma, below)
        # On an edge the landing is the solver step itself: the jump there is the identity by construction.
        landing = jump_batch(x_below, target(x_below, below), below, edge)
        landing = torch.where(_like(below == edge, x), x_below, landing)
        # Latents of variance exploding models grow with sigma; compare them in the unit-variance space of the paper.
        scale = 1.0 if flow else _like((1 + edge.square()).rsqrt(), x)
    return pseudo_huber((prediction.float() - landing.float()) * scale, huber_c)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """[B] to [B, 1, ...] of x's rank."""
    return values.reshape(-1, *[1] * (x.ndim - 1))
