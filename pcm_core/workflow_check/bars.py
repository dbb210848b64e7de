"""The steps of a file or of a plan as a bar: what is drawn in the panel and on our sampler nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ..guidance import phase_at
from ..plan import Plan
from ..profiles import PCMProfile
from ..sigma_table import SigmaTable
from .schedules import Levels, Schedules, wanted_levels


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Steps on the way from pure noise (1) to the picture (0).

    Attributes:
        levels: noise levels, with the final one.
        places: where each level lies between noise and picture, as a fraction of the model's timesteps.
        phases: phase of each step, 0 for the noisiest.
        cfg: of each phase.
        notes: what is snapped, overridden or assumed, one sentence each.
        ran: the steps of them that run, from and up to, where these are not all.
        second: the first step that the second expert takes.
        windows: frames in one context window, and frames that two share.
    """

    levels: Levels
    places: tuple[float, ...]
    phases: tuple[int, ...]
    cfg: tuple[float, ...]
    notes: tuple[str, ...] = ()
    ran: tuple[int, int] | None = None
    second: int | None = None
    windows: tuple[int, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "levels": [round(level, 5) for level in self.levels],
            "places": [round(place, 5) for place in self.places],
            "phases": list(self.phases),
            "cfg": list(self.cfg),
            "notes": list(self.notes),
            "ran": self.ran,
            "second": self.second,
            "windows": self.windows,
        }


def file_bar(profile: PCMProfile, schedules: Schedules) -> Bar | None:
    """The steps a file is made for; ``None`` where its base model is not known."""
    table = schedules.table(profile.base_model, profile.shift)
    levels = wanted_levels(profile, table, profile.steps) if table else None
    if table is None or levels is None:
        return None
    steps = tuple(range(len(levels) - 1))
    phases = steps if profile.sampling_class == "phased" else (0,) * len(steps)
    count = max(phases, default=0) + 1
    return Bar(levels=levels, places=_places(levels, table), phases=phases, cfg=(profile.cfg,) * count)


def plan_bar(made: Plan) -> Bar:
    """The steps of a plan."""
    levels = tuple(numbers(made.sigmas))
    return Bar(
        levels=levels,
        places=_places(levels, made.table),
        phases=tuple(phase_at(level, made.phase_tops) for level in levels[:-1]),
        cfg=made.cfg,
        notes=made.notes,
    )


def numbers(sigmas: Tensor) -> list[float]:
    """A tensor as numbers, with their type."""
    return cast(list[float], cast(Any, sigmas).tolist())


def _places(levels: Sequence[float], table: SigmaTable) -> tuple[float, ...]:
    """Where levels lie in a table, as a fraction of its length; 0 below its first entry."""
    low = table.sigmas[0] * (1 - 1e-6)
    return tuple(0.0 if level < low else (table.index(level) + 1) / len(table) for level in levels)
