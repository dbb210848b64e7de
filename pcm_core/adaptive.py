"""Phase edges fitted to a model: the few points from which its jumps miss its own trajectory least.

Uniform edges spend as many evaluations where the path is straight as where it bends. One run of the solver over a fine
grid, on a few starting points, prices every jump there is: from each point the model's x0 says where a jump to any
later point would land, and the run says where it should have. The cheapest chain of M jumps is then found exactly by
dynamic programming. (The paper leaves adaptive phases to future work.)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .errors import PCMError
from .sampling import check_sigmas, jump

Denoiser = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def jump_errors(model: Denoiser, x: Tensor, sigmas: Tensor, *, flow: bool) -> Tensor:
    """What every jump along ``sigmas`` costs, at one model evaluation per point.

    Args:
        model: ``(x, sigma [B]) -> x0``.
        x: starting points [B, ...] at ``sigmas[0]``; some tens are enough.
        sigmas: [n + 1] strictly descending, the fine grid; its own run is the reference.
        flow: a flow model; the others are compared at unit variance, since their latents grow with sigma.

    Returns:
        float64 [n + 1, n + 1]; entry (i, j) with i < j is the root mean square distance between the jump from point i
        to point j and the run at point j. The rest is infinite.

    Raises:
        PCMError: as ``check_sigmas``.
    """
    levels = check_sigmas(sigmas)
    states: list[Tensor] = [x]
    predictions: list[Tensor] = []
    for sigma, below in pairwise(levels):
        predictions.append(model(states[-1], sigma * x.new_ones(len(x))))
        states.append(jump(states[-1], predictions[-1], sigma, below))
    errors = torch.full((len(levels), len(levels)), torch.inf, dtype=torch.float64)
    for i, predicted in enumerate(predictions):
        for j in range(i + 1, len(levels)):
            miss = jump(states[i], predicted, levels[i], levels[j]) - states[j]
            scale = 1.0 if flow else (1 + levels[j] ** 2) ** -0.5
            errors[i, j] = miss.double().square().mean().sqrt() * scale
    return errors


def cheapest_chain(errors: Tensor, jumps: int) -> tuple[int, ...]:
    """The points to jump from, descending in noise, so that the summed cost to the last point is least.

    Args:
        errors: [n + 1, n + 1], cost of the jump from point i to point j.
        jumps: how many, 1 to n.

    Raises:
        PCMError: if there are not that many points.
    """
    points = len(errors) - 1
    if not 1 <= jumps <= points:
        raise PCMError(f"{jumps} jumps on {points} points.", f"1 to {points}.", "Use fewer phases or a finer grid.")
    best = torch.full((points + 1,), torch.inf, dtype=torch.float64)
    best[0] = 0
    origins: list[Tensor] = []
    for _ in range(jumps):
        best, origin = (best[:, None] + errors).min(0)
        origins.append(origin)
    chain = [points]
    for origin in reversed(origins):
        chain.append(int(origin[chain[-1]]))
    return tuple(reversed(chain[1:]))
