"""Noise levels without a model: sigma tables of the base models, and what a scheduler makes of them.

Only ``simple`` is worked out here, the one that few-step files are made for. Every other scheduler is the host's
business: ``Schedules`` is what a host offers, ``nodes/host/schedules.py`` the one of a running ComfyUI.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from ..errors import PCMError
from ..profiles import PCMProfile
from ..sigma_table import SigmaTable

Levels = tuple[float, ...]
_MOST_STEPS = 200


class Schedules(Protocol):
    """What somebody knows about base models and schedulers."""

    def table(self, base: str, shift: float | None) -> SigmaTable | None:
        """The table of a base model at a linear shift (``None``: its own); ``None`` if not known."""
        ...

    def sigmas(self, base: str, shift: float | None, scheduler: str, steps: int) -> Levels | None:
        """What a scheduler makes of it, with the final 0; ``None`` if that is not known here."""
        ...


class ClosedForm:
    """What is known without ComfyUI: the tables of the usual base models, and the scheduler ``simple``."""

    def table(self, base: str, shift: float | None) -> SigmaTable | None:
        facts = base_models().get(base)
        if facts is None:
            return None if shift is None else flow_table(shift)  # only flow models have one
        if facts.get("table") == "discrete":
            return discrete_table()
        return flow_table(facts["shift"] if shift is None else shift)

    def sigmas(self, base: str, shift: float | None, scheduler: str, steps: int) -> Levels | None:
        table = self.table(base, shift)
        if table is None or scheduler not in ("simple", "pcm") or not 1 <= steps <= _MOST_STEPS:
            return None
        return simple(table, steps)


@cache
def base_models() -> Mapping[str, Mapping[str, Any]]:
    """Base models by the names of ``PCMProfile.base_model``: own linear shift, and the stock node that changes it."""
    return json.loads(Path(__file__).with_name("base_models.json").read_text(encoding="utf-8"))


def own_shift(base: str, checkpoint: str = "") -> float | None:
    """The linear shift a base model has in ComfyUI when no node sets one; ``None`` if it has none or is not known.

    Args:
        checkpoint: the method of a few-step checkpoint, which ComfyUI may know as a model of its own.
    """
    facts = base_models().get(base, {})
    return facts.get("checkpoints", {}).get(checkpoint, facts.get("shift"))


@cache
def discrete_table() -> SigmaTable:
    """Stable Diffusion: scaled linear betas from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return SigmaTable.from_alphas_cumprod(torch.cumprod(1 - betas, 0))


@lru_cache(maxsize=200)
def flow_table(shift: float) -> SigmaTable:
    """A flow model at a linear shift."""
    return SigmaTable.shifted_flow(shift)


def simple(table: SigmaTable, steps: int) -> Levels:
    """The host's ``simple``: equal parts of the table, rounded down."""
    stride = len(table) / steps
    return (*(table.sigmas[-(1 + int(i * stride))] for i in range(steps)), 0.0)


def wanted_levels(profile: PCMProfile, table: SigmaTable, steps: int) -> Levels | None:
    """The noise levels a file is made for, on a table, with the final 0; ``None`` if it has none for that many steps.

    Args:
        table: of the model as it will be sampled.
        steps: a count the file can be sampled with; its own list may hold another number.
    """
    try:
        fixed = profile.resolved(table, steps).sigmas
        levels = cast(Any, None if fixed else profile.schedule(steps).sigmas(table))
        return fixed or tuple(cast(list[float], levels.tolist()))
    except PCMError:
        return None


def furthest(levels: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest relative difference between two lists of as many levels; infinite if they are not as many."""
    if len(levels) != len(wanted):
        return math.inf
    return max((abs(a - b) / b for a, b in zip(levels[:-1], wanted[:-1], strict=True) if b), default=0.0)
