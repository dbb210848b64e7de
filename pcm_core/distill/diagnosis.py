"""Validation of a matching stage without a data set: the student on held-out pairs of its bank."""

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
        distance: RMS distance between the student's results and the teacher's.
        spread: standard deviation of the student's results for one text, relative to the teacher's.
        fell: whether the spread is below 0.9 of its initial value: a loss of diversity raises accuracy, so it must
        show.
    """

    distance: float
    spread: float
    fell: bool


class Collapsed(PCMError):  # noqa: N818
    """Samples of one text have become much more alike than at the start."""

    def __init__(self, before: float, now: float) -> None:
        super().__init__(
            f"The spread of samples under one text fell from {before:.3g} to {now:.3g} of the teacher's.",
            "samples that stay apart.",
            "Lower the guidance or the updates of the matching stage, or raise its regression weight.",
        )


def diagnosis_of(ends: Tensor, held: Bank, first_spread: float | None) -> Diagnosis:
    """Diagnose the student's results [N, ...] for the pairs of ``held``; ``first_spread`` is the initial spread."""
    spread = spread_per_caption(ends, held.captions) / max(spread_per_caption(held.ends, held.captions), 1e-12)
    distance = (ends - held.ends).square().mean().sqrt()
    return Diagnosis(float(distance), spread, first_spread is not None and spread < _FALL * first_spread)


def spread_per_caption(ends: Tensor, captions: Tensor) -> float:
    """Standard deviation of the samples of each caption, averaged over captions."""
    numbers = dict.fromkeys(int(number) for number in captions)
    return float(torch.stack([ends[captions == number].var(0).mean().sqrt() for number in numbers]).mean())
