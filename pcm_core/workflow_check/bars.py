"""The steps of a file or of a plan as a bar: what is drawn in the panel and on our sampler nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..errors import PCMError
from ..guidance import phase_at
from ..plan import AUTO, Plan, plan
from ..profiles import PCMProfile, profile_of_method
from ..sigma_table import SigmaTable
from .files import FewStepFile, Lookup, few_step_files
from .graph import Graph, Node
from .judge_levels import shifts_on
from .model_path import model_path
from .schedules import Levels, Schedules, discrete_table, flow_table, wanted_levels
from .values import value_of

# Widgets that say something about the steps, with the value that asks the file.
_WIDGETS: dict[str, Any] = {
    "steps": 0, "cfg": AUTO, "denoise": 1.0, "phases": 0, "spacing": AUTO, "terminal": AUTO, "grid": 0,
    "spend_extra_steps": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Steps on the way from pure noise (1) to the picture (0).

    Attributes:
        levels: noise levels, with the final one.
        places: where each level lies between noise and picture, as a fraction of the model's timesteps.
        phases: phase of each step, 0 for the noisiest.
        cfg: of each phase.
        notes: what is snapped, overridden or assumed, one sentence each.
    """

    levels: Levels
    places: tuple[float, ...]
    phases: tuple[int, ...]
    cfg: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "levels": [round(level, 5) for level in self.levels],
            "places": [round(place, 5) for place in self.places],
            "phases": list(self.phases),
            "cfg": list(self.cfg),
            "notes": list(self.notes),
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
    levels = tuple(cast(list[float], cast(Any, made.sigmas).tolist()))
    return Bar(
        levels=levels,
        places=_places(levels, made.table),
        phases=tuple(phase_at(level, made.phase_tops) for level in levels[:-1]),
        cfg=made.cfg,
        notes=made.notes,
    )


def node_bar(graph: Graph, node: Node, schedules: Schedules, lookup: Lookup | None = None) -> Bar:
    """What one of our nodes will run, from its widgets and the file upstream, before anything is loaded.

    Args:
        graph: of the workflow.
        node: PCM Sampler, PCM Video Sampler or PCM Phase Scheduler.
        schedules: what knows the base models.
        lookup: what a file says of itself.

    Raises:
        PCMError: as the node will, for settings it refuses.
    """
    models = model_path(graph, node, "model")
    above = {entry.id for entry in models}
    files = [file for file in few_step_files(graph, lookup) if file.active and not file.mixed and file.node.id in above]
    files.sort(key=lambda file: not file.settings)  # PCM Settings speaks for the files of other loaders
    profile = files[0].profile if files else PCMProfile()
    for widget in ("preset", "method"):
        chosen = value_of(graph, node, widget).text
        if chosen not in ("", AUTO):
            profile = PCMProfile() if chosen == "none" else profile_of_method(chosen)
    asked = {name: value_of(graph, node, name) for name in _WIDGETS}
    settings = {name: value.value if value.known else _WIDGETS[name] for name, value in asked.items()}
    wrong = next((name for name, value in settings.items() if not _fits(value, _WIDGETS[name])), None)
    if wrong is not None:
        raise PCMError(f"{wrong} is no value of its kind.", "what the widget takes.", f"Correct {wrong}.")
    return plan_bar(plan(profile, _table(graph, node, models, files, profile, schedules), **settings))


def _fits(value: Any, usual: Any) -> bool:
    if isinstance(usual, bool):
        return isinstance(value, bool)
    if isinstance(usual, str):
        return isinstance(value, (str, int, float))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _table(
    graph: Graph, node: Node, models: Sequence[Node], files: Sequence[FewStepFile], profile: PCMProfile,
    schedules: Schedules,
) -> SigmaTable:  # fmt: skip
    """The model's table as far as a workflow says it; any table shows where equal parts lie."""
    set_here = value_of(graph, node, "shift").number
    shifts = shifts_on(graph, models, files)
    shift = set_here or (shifts[0].number if shifts else None) or profile.shift
    found = schedules.table(profile.base_model, shift if shift is None or shift > 0 else None)
    return found or (flow_table(profile.shift or 3.0) if profile.sigmas or profile.levels else discrete_table())


def _places(levels: Sequence[float], table: SigmaTable) -> tuple[float, ...]:
    """Where levels lie in a table, as a fraction of its length; 0 below its first entry."""
    low = table.sigmas[0] * (1 - 1e-6)
    return tuple(0.0 if level < low else (table.index(level) + 1) / len(table) for level in levels)
