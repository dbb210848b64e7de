"""What steers a matching stage, without any data set: the student on held-out pairs of its bank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PCMError
from .bank import Bank

_FALL = 0.9


@dataclass(frozen=True)
class Diagnosis:
    """The student against the teacher on the same pairs.

    Attributes:
        distance: RMS between the student's ends and the teacher's.
        spread: standard deviation of the student's ends under one text, as a part of the teacher's.
        fell: whether that is below 0.9 of what it was at the start: contraction raises accuracy, and must be seen.
    """

    distance: float
    spread: float
    fell: bool


class Collapsed(PCMError):  # noqa: N818
    """Samples under one text have come much closer to each other than they were."""

    def __init__(self, before: float, now: float) -> None:
        super().__init__(
            f"The spread of samples under one text fell from {before:.3g} to {now:.3g} of the teacher's.",
            "samples that stay apart.",
            "Lower the guidance or the updates of the matching stage, or raise its regression weight.",
        )


def diagnosis_of(ends: Tensor, held: Bank, first_spread: float | None) -> Diagnosis:
    """Of the student's ends [N, ...] for the pairs of ``held``; ``first_spread`` is that of the start, if known."""
    spread = spread_per_caption(ends, held.captions) / max(spread_per_caption(held.ends, held.captions), 1e-12)
    distance = (ends - held.ends).square().mean().sqrt()
    return Diagnosis(float(distance), spread, first_spread is not None and spread < _FALL * first_spread)


def spread_per_caption(ends: Tensor, captions: Tensor) -> float:
    """Mean over the captions of the standard deviation of their samples."""
    numbers = dict.fromkeys(int(number) for number in captions)
    return float(torch.stack([ends[captions == number].var(0).mean().sqrt() for number in numbers]).mean())
