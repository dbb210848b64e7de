"""The bar of one of our nodes, from its widgets and the file upstream, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import video
from ..errors import PCMError
from ..plan import AUTO, Plan, check_r, plan
from ..profiles import PCMProfile, profile_of_method
from ..sigma_table import SigmaTable
from .bars import Bar, numbers, plan_bar
from .files import FewStepFile, Lookup, few_step_files
from .graph import Graph, Node, Port
from .judge_levels import shifts_on
from .model_path import model_path
from .schedules import Schedules, discrete_table, flow_table
from .values import Value, value_of

NONE = "none"
_UNSET = -1.0
# Widgets that say something about the steps, with the value that asks the file.
_WIDGETS: dict[str, Any] = {
    "steps": 0, "cfg": AUTO, "denoise": 1.0, "phases": 0, "spacing": AUTO, "terminal": AUTO, "grid": 0,
    "spend_extra_steps": False,
}  # fmt: skip
_MORE: dict[str, Any] = {
    "determinism": _UNSET, "gamma": _UNSET, "preset": AUTO, "method": AUTO, "shift": 0.0, "start_step": 0,
    "end_step": 10000, "return_with_leftover_noise": False, "boundary": 875, "window": 0, "overlap": 16,
}  # fmt: skip
_VIDEO_FILES = (
    ("hunyuan.?video.?1.?5", "HunyuanVideo 1.5"), ("hunyuan", "HunyuanVideo"), ("ltx.?2", "LTX-2"), ("ltx", "LTXV"),
    ("mochi", "Mochi"), ("wan", "Wan"),
)  # fmt: skip


def node_bar(graph: Graph, node: Node, schedules: Schedules, lookup: Lookup | None = None) -> Bar:
    """What one of our nodes will run.

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
    asked = {name: _asked(graph, node, name, usual) for name, usual in (_WIDGETS | _MORE).items()}
    profile, notes = _profile(graph, node, models, files, asked)
    table = _table(graph, models, files, profile, asked["shift"], schedules)
    check_r(*(None if asked[name] == _UNSET else asked[name] for name in ("determinism", "gamma")))
    clip = _video_model(graph, models, profile) if node.type == "PCMVideoSampler" else None
    if clip is not None:
        profile = video.with_sigmas(clip, profile, table, asked["steps"])
    made = plan(profile, table, **{name: asked[name] for name in _WIDGETS})
    bar = plan_bar(replace(made, notes=(*notes, *made.notes)))
    if node.type == "PCMVideoSampler":
        return _clip(bar, made, clip, asked, two=isinstance(graph.source(node.id, "second_model"), Port))
    return _part(bar, made, asked)


def _asked(graph: Graph, node: Node, name: str, usual: Any) -> Any:
    """The value of a widget; what asks the file where another node computes it."""
    value = value_of(graph, node, name)
    if not value.known:
        return usual
    if not _fits(value, usual):
        raise PCMError(f"{name} is no value of its kind.", "what the widget takes.", f"Correct {name}.")
    return value.count if isinstance(usual, int) and not isinstance(usual, bool) else value.value


def _fits(value: Value, usual: Any) -> bool:
    if isinstance(usual, bool):
        return isinstance(value.value, bool)
    if isinstance(usual, str):
        return isinstance(value.value, (str, int, float))
    whole = not isinstance(usual, int) or value.number == value.count
    return isinstance(value.value, (int, float)) and value.number is not None and whole


def _profile(
    graph: Graph, node: Node, models: Sequence[Node], files: Sequence[FewStepFile], asked: dict[str, Any]
) -> tuple[PCMProfile, tuple[str, ...]]:
    """The settings that count, and what they set aside, as the node says it."""
    own = files[0].profile if files else None
    method, preset = asked["method"], asked["preset"]
    if method != AUTO and preset != AUTO:
        raise PCMError(f"preset is {preset} and method is {method}.", "one of them.", "Set the other to auto.")
    if method == NONE:
        return PCMProfile(), (f"method is none: the settings of {own.method} are not used.",) if own else ()
    if method != AUTO:
        other = own is not None and own.method != profile_of_method(method).method
        notes = (f"Used {method}, not {own.method}, which the model carries.",) if own and other else ()
        return profile_of_method(method), notes
    clip = _video_model(graph, models, own, preset) if node.type == "PCMVideoSampler" else None
    return (own or PCMProfile(), ()) if clip is None else video.choose(clip, own, preset)


def _video_model(
    graph: Graph, models: Sequence[Node], profile: PCMProfile | None, preset: str = AUTO
) -> video.VideoModel | None:
    """The video model as far as a workflow says it: by the few-step file, the name of the checkpoint, or the preset."""
    known = video.video_models()
    base = profile.base_model if profile is not None else ""
    found = next((model for model in known.values() if base and base in model.bases), None)
    if found is not None:
        return found
    texts = [value_of(graph, node, name).text for node in models for name in ("unet_name", "ckpt_name")]
    for pattern, name in _VIDEO_FILES:
        if any(re.search(rf"(?<![a-z]){pattern}", text, re.IGNORECASE) for text in texts):
            return known[name]
    return next((model for model in known.values() if preset in model.presets), None)


def _table(
    graph: Graph, models: Sequence[Node], files: Sequence[FewStepFile], profile: PCMProfile, asked: float,
    schedules: Schedules,
) -> SigmaTable:  # fmt: skip
    """The model's table as far as a workflow says it; any table shows where equal parts lie."""
    shifts = shifts_on(graph, models, files)
    shift = asked or (shifts[0].number if shifts else None) or profile.shift
    found = schedules.table(profile.base_model, shift if shift is None or shift > 0 else None)
    return found or (flow_table(profile.shift or 3.0) if profile.sigmas or profile.levels else discrete_table())


def _part(bar: Bar, made: Plan, asked: dict[str, Any]) -> Bar:
    """The steps that start_step and end_step leave."""
    start, end = int(asked["start_step"]), int(asked["end_step"])
    if not 0 <= start < end:
        raise PCMError(
            f"start_step is {start} and end_step is {end}.", "0 <= start_step < end_step.",
            "Use 0 and 10000 to take every step.",
        )  # fmt: skip
    if (start == 0 and end >= made.steps) or not made.steps:
        return bar
    notes = bar.notes
    if start >= made.steps:
        notes = (*notes, f"start_step is {start} of {made.steps} steps: nothing runs.")
    elif end < made.steps:
        after = "leaves the noise of the next step" if asked["return_with_leftover_noise"] else "denoises fully"
        notes = (*notes, f"Step {end} is the last of {made.steps} and {after}.")
    return replace(bar, ran=(min(start, made.steps), min(end, made.steps)), notes=notes)


def _clip(bar: Bar, made: Plan, clip: video.VideoModel | None, asked: dict[str, Any], *, two: bool) -> Bar:
    """The steps of the second expert, and the context windows."""
    if two and made.steps:
        edge, note = video.expert_edge(numbers(made.whole), asked["boundary"], made.table)
        second = sum(level > edge * (1 + 1e-6) for level in numbers(made.sigmas)[:-1])
        bar = replace(bar, second=second, notes=(*bar.notes, note))
    window, overlap = int(asked["window"]), int(asked["overlap"])
    if not window:
        return bar
    length = clip.latent_frames(window, "window") if clip is not None else window
    stride = clip.stride if clip is not None else 1
    if not 0 <= -(-overlap // stride) < length:
        raise PCMError(
            f"window is {window} frames and overlap is {overlap}.", "a window longer than its overlap.",
            f"Use overlap {window // 4 // stride * stride}.",
        )  # fmt: skip
    return replace(bar, windows=(window, overlap))
