"""The phased consistency objective, for any callable model.

One training step (paper Algorithm 1 and Eq. 7; ``train_pcm_lora_sd15.py``): noise a clean latent to a solver grid point
i, let the *student* jump from there to the lower edge of its phase; let the *teacher* take one guided solver step to
point i - 1, and the student (no gradient) jump from there to the same edge. The two results must agree.

Everything happens in sigma space on x0 predictions, so eps, v, x0 and flow models differ only in how x is noised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Prediction as Prediction
from ..denoiser import add_noise as add_noise
from ..denoiser import as_denoiser as as_denoiser
from ..denoiser import per_sample
from ..phases import Spacing, Terminal, eval_timesteps, phase_edges
from ..sigma_table import SigmaTable

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SolverGrid:
    """The teacher's solver points and their target levels; float32 [n], ascending, on the CPU.

    Attributes:
        sigma: noise level of point i.
        below: noise level of point i - 1; the bottom edge for i = 0.
        edge: noise level of the lower edge of the phase of point i. ``edge <= below < sigma``, except at point 0 of a
            grid of every timestep with ``alpha0``, where all three are equal.
    """

    sigma: Tensor
    below: Tensor
    edge: Tensor

    def __len__(self) -> int:
        return len(self.sigma)

    @classmethod
    def from_table(
        cls,
        table: SigmaTable | Tensor,
        phases: int,
        grid: int = 50,
        terminal: Terminal = "alpha0",
        train_steps: int = 1000,
    ) -> SolverGrid:
        """Build the grid of ``phase_edges(phases, grid)`` from a model's ascending sigma table.

        ``terminal`` is the lowest edge: the sigma of timestep 0 (``alpha0``, official) or 0 (``zero``). Train on the
        edges that will be sampled: choose ``grid`` so that the sampler's timesteps are grid points.

        Raises:
            PCMError: see ``phase_edges``; also if the table cannot be indexed by timestep.
        """
        edges = phase_edges(phases, grid, train_steps)
        table, stride = SigmaTable.of(table, train_steps=train_steps), train_steps // grid
        bottom = table.bottom if terminal == "alpha0" else 0.0
        sigma = [table.sigma(stride * (i + 1) - 1) for i in range(grid)]
        below = [bottom, *sigma[:-1]]
        # The phase of point i starts at the highest edge not above the point below it.
        lower = [max(stride * i - 1, 0) for i in range(grid)]
        target = [max(edge for edge in edges if edge <= low) for low in lower]
        edge = [table.sigma(t) if t else bottom for t in target]
        return cls(*(torch.tensor(row, dtype=torch.float32) for row in (sigma, below, edge)))


def jump_batch(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """``sampling.jump`` with noise levels per sample; ``sigma`` may be 0 if ``sigma_next`` is 0 too."""
    weight = torch.where(sigma > 0, sigma_next / sigma.clamp(min=torch.finfo(sigma.dtype).tiny), 1.0)
    return torch.lerp(denoised, x, per_sample(weight, x))


def pseudo_huber(error: Tensor, c: float = 1e-3) -> Tensor:
    """``mean(sqrt(e^2 + c^2) - c)``, the official loss; quadratic below ``c``, absolute above."""
    return (torch.sqrt(error.square() + c * c) - c).mean()


def matching_grid(phases: int, train_steps: int = 1000) -> tuple[int, Spacing]:
    """The solver grid whose phase edges are the timesteps that will be sampled, and the spacing that samples them.

    ``trailing`` if a grid of 40 or 50 points has these edges (phases that divide 40 or 50: 1, 2, 4, 5, 8, 10, ...);
    otherwise 50 points and ``aligned``, where the trained edges themselves are sampled. The official scripts train on
    other edges than they sample for 4, 8 and 16 phases on 50 points.

    Raises:
        PCMError: if ``phases`` does not fit on 50 points.
    """
    trailing = eval_timesteps(phases, train_steps=train_steps)[1:]
    for grid in (50, 40):
        if phases <= grid and tuple(reversed(phase_edges(phases, grid, train_steps)[1:])) == trailing:
            return grid, "trailing"
    phase_edges(phases, 50, train_steps)
    return 50, "aligned"


def guided(conditional: Tensor, unconditional: Tensor, cfg: Tensor) -> Tensor:
    """Guidance in ComfyUI's convention, ``uncond + cfg (cond - uncond)`` with ``cfg`` [B]; 1 is the conditional.

    The official code writes ``cond + w (cond - uncond)``: its w is ``cfg - 1``.
    """
    return unconditional + per_sample(cfg, conditional) * (conditional - unconditional)


@dataclass(frozen=True)
class PhasedPair:
    """Two latents at the lower edge of a phase that must agree.

    Attributes:
        prediction: the result of the student's jump, [B, ...] in sigma space, with gradient.
        landing: the result of the teacher's solver step and the target's jump.
        edge: noise level of both, [B].
        flow: whether latents are noised as in flow models.
    """

    prediction: Tensor
    landing: Tensor
    edge: Tensor
    flow: bool

    @property
    def error(self) -> Tensor:
        """The difference in the unit-variance space of the paper, float32.

        Latents of variance exploding models grow with sigma; flow latents do not.
        """
        error = self.prediction.float() - self.landing.float()
        return error if self.flow else error * per_sample((1 + self.edge.square()).rsqrt(), error)


def phased_pair(
    student: Denoiser,
    teacher: Denoiser,
    target: Denoiser,
    clean: Tensor,
    noise: Tensor,
    index: Tensor,
    grid: SolverGrid,
    *,
    flow: bool,
) -> PhasedPair:
    """Run student, teacher and target once; arguments as in ``phased_loss``.

    If the solver step already ends on the edge, the target's jump is the identity, so the result of the solver step is
    used; a batch of such samples only does not call the target.
    """
    sigma, below, edge = (row[index].to(clean) for row in (grid.sigma, grid.below, grid.edge))
    x = add_noise(clean, noise, sigma, flow=flow)
    prediction = jump_batch(x, student(x, sigma), sigma, edge)
    with torch.no_grad():
        landing = jump_batch(x, teacher(x, sigma), sigma, below)
        if bool((below > edge).any()):
            landing = torch.where(
                per_sample(below == edge, x), landing, jump_batch(landing, target(landing, below), below, edge)
            )
    return PhasedPair(prediction, landing, edge, flow)


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
        clean: latents [B, ...] of any rank; ``noise`` has the same shape.
        index: indices of grid points [B], int64, on the CPU.
        flow: whether x is noised as in flow models.
        huber_c: transition of the loss from quadratic to absolute.
    """
    pair = phased_pair(student, teacher, target, clean, noise, index, grid, flow=flow)
    return pseudo_huber(pair.error, huber_c)
