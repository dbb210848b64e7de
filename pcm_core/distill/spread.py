"""Samples of one text must stay as far apart as the teacher's.

Guidance and regression both draw them together, and no loss of single pairs can see it: regression to ends that it
cannot hit learns their mean. This part compares variances, of the student's ends and of the teacher's from the same
noises, along the principal directions of the latter. Directions in which the student varies too little are stretched,
the others shortened. It needs no evaluation of a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank import Bank
from .loop import Processes
from .matching import matching_loss

_ELEMENTS = 1024
_DIRECTIONS = 256
_SAMPLES = 3200
_PER_TEXT = 4


def coarse(x: Tensor, elements: int = _ELEMENTS) -> Tensor:
    """Latents [B, C, ...] averaged over areas until a sample has at most ``elements`` or one per channel, [B, D]."""
    x = x[:, None] if x.ndim == 2 else x
    sizes = list(x.shape[2:])
    while x.shape[1] * math.prod(sizes) > elements and max(sizes) > 1:
        longest = sizes.index(max(sizes))
        sizes[longest] = (sizes[longest] + 1) // 2
    return (F.interpolate(x, sizes, mode="area") if sizes != list(x.shape[2:]) else x).flatten(1)


@dataclass
class Spread:
    """The student's variances against the bank's. All tensors are on the CPU, float32. Ours, from no paper.

    Attributes:
        bank: with the teacher's ends.
        groups: of each pair, the row of its mean, [pairs].
        means: of the teacher's coarse ends, one for each text, [texts, D]; a single one where texts have fewer than
            four pairs.
        axes, variances: the principal directions of the ends around their means, [D, K], and their variances, [K].
        excess: the student's variance less the teacher's along each axis, relative to the latter, [K]: an average over
            about 3,200 samples.
        seen: updates of that average.
    """

    bank: Bank
    groups: Tensor
    means: Tensor
    axes: Tensor
    variances: Tensor
    excess: Tensor
    seen: int = 0

    @classmethod
    def of(cls, bank: Bank) -> Spread:
        ends = torch.cat([coarse(bank.ends[i : i + 64].float()) for i in range(0, len(bank), 64)])
        texts = int(bank.captions.max()) + 1
        groups = bank.captions if len(bank) >= _PER_TEXT * texts else torch.zeros_like(bank.captions)
        counts = torch.bincount(groups)
        means = torch.zeros(len(counts), ends.shape[1]).index_add(0, groups, ends) / counts.clamp(min=1)[:, None]
        apart = ends - means[groups]
        covariance = (apart.mT @ apart / len(apart)).double()
        variances, axes = cast(tuple[Tensor, Tensor], torch.linalg.eigh(covariance))  # pyright: ignore[reportUnknownMemberType]
        count = min(_DIRECTIONS, int((variances > 1e-4 * variances[-1]).sum()))
        kept = slice(len(variances) - count, None)
        return cls(bank, groups, means, axes[:, kept].float(), variances[kept].float(), torch.zeros(count))

    def loss(self, landing: Tensor, rows: Tensor, processes: Processes) -> Tensor:
        """A loss whose gradient moves the landings [B, ...] of the bank's ``rows`` along the axes.

        The paired difference of variances has far less noise than either: that of a small batch is in both.
        """
        means = self.means[self.groups[rows]]
        x = coarse(landing.float())
        student, teacher = (
            (y.detach().cpu() - means) @ self.axes for y in (x, coarse(self.bank.ends[rows].float()))
        )  # fmt: skip
        excess = (student.square() - teacher.square()).mean(0) / self.variances
        processes.average([excess])
        self.seen += 1
        share = len(rows) * processes.count / _SAMPLES
        self.excess = self.excess.lerp(excess, min(1.0, max(1 / self.seen, share)))
        return matching_loss(x, ((student * self.excess) @ self.axes.mT).to(x))

    def state(self) -> dict[str, Any]:
        return {"excess": self.excess, "seen": self.seen}

    def load(self, state: dict[str, Any]) -> None:
        self.excess, self.seen = state["excess"], int(state["seen"])
