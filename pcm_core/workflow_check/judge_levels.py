"""Shift, scheduler and written lists of one run against the noise levels its file wants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..profiles.shift_rules import sigmas_for_size
from .files import FewStepFile
from .finding import Bypass, Finding, Insert, Level, Mend, SetWidget, set_value
from .graph import Graph, Node, Place
from .host_names import SCHEDULERS
from .judge_run import finding
from .notes import Note
from .runs import Run
from .schedules import Schedules, base_models, furthest, own_shift, wanted_levels
from .values import UNKNOWN, Value, value_of

# Relative differences of a noise level: below the first the same one rounded or respaced, above the second another one.
DOUBTFUL, WRONG = 0.05, 0.12
_SHIFT_DOUBTFUL, _SHIFT_WRONG = 0.03, 0.10
_SHIFTS = {
    "ModelSamplingSD3": "shift", "ModelSamplingAuraFlow": "shift", "MiniMaxH3SigmaShift": "shift_video",
    "WanVideoSampler": "shift",
}  # fmt: skip


# Nodes that set the shift of the file they name.
_OURS = ("PCMLoraLoader", "PCMSettings")
_OWN_SHIFT = {"PCMVideoSampler": "shift", "WanVideoSampler": "shift", "WanMoeKSampler": "sigma_shift"}


@dataclass(frozen=True)
class Shift:
    """A linear shift that a node sets; ``value`` unknown where it depends on something else."""

    node: Node
    value: Value
    number: float | None


def shifts_on(graph: Graph, models: Sequence[Node], files: Sequence[FewStepFile]) -> list[Shift]:
    """Every node on the way that sets the shift, the one that counts first."""
    found: list[Shift] = []
    for node in models:
        if node.type in _SHIFTS:
            value = value_of(graph, node, _SHIFTS[node.type])
            found.append(Shift(node, value, value.number))
        elif node.type == "ModelSamplingFlux":
            found.append(Shift(node, UNKNOWN, _flux_shift(graph, node)))
        elif node.type.startswith("ModelSampling"):
            found.append(Shift(node, UNKNOWN, None))
        elif node.type in _OURS:
            own = next((file for file in files if file.node.id == node.id), None)
            if own is None and node.type == "PCMSettings":  # which reads the name of the checkpoint
                own = next((file for file in files if file.kind == "checkpoint"), None)
            if own is not None and own.profile.shift is not None:
                found.append(Shift(node, Value(own.profile.shift, True), own.profile.shift))
    return found


def _flux_shift(graph: Graph, node: Node) -> float | None:
    """The linear shift ModelSamplingFlux makes of its widgets: mu grows with the picture, the shift is e^mu."""
    numbers = [value_of(graph, node, name).number for name in ("max_shift", "base_shift", "width", "height")]
    most, base, width, height = numbers
    if most is None or base is None:
        return None
    if most == base:
        return math.exp(base)
    if width is None or height is None:
        return None
    slope = (most - base) / (4096 - 256)
    return math.exp(width * height / 256 * slope + base - slope * 256)


def judge_shift(graph: Graph, run: Run, file: FewStepFile) -> Iterator[Finding]:
    """Another shift than the file wants, none where it wants one, or two nodes that set it."""
    profile = file.profile
    models = run.sigmas.models or run.models
    shifts = [shift for shift in shifts_on(graph, models, run.files) if shift.node.mode == 0]
    patches = [shift for shift in shifts if shift.node.type not in _OURS]
    asked = value_of(graph, run.node, _OWN_SHIFT.get(run.node.type, ""))
    if profile.shift is None or run.sigmas.kind == "list":
        return
    if len(patches) > 1:
        last = patches[0].node
        mends = tuple(Bypass(shift.node.id) for shift in patches[1:])
        yield finding(run, file, "shift_twice", "doubtful", node=last, facts={"count": len(patches)}, mends=mends)
    checkpoint = profile.method if file.kind == "checkpoint" else ""
    have, node, value = own_shift(profile.base_model, checkpoint), run.node, UNKNOWN
    if asked.number:
        have, value = asked.number, asked
    elif shifts:
        have, node, value = shifts[0].number, shifts[0].node, shifts[0].value
    elif run.ours and run.node.type == "PCMVideoSampler":
        return
    if have is None or have <= 0:
        return
    level = _shift_level(have, profile.shift, profile.steps)
    if level is None:
        return
    rule = "shift" if value.known or shifts else "shift_missing"
    facts = {"have": f"{have:.4g}", "want": f"{profile.shift:g}"}
    mends = _shift_mends(run, file, node, value, bool(shifts))
    yield finding(run, file, rule, level, node=node, mends=mends, facts=facts)


def _shift_level(have: float, want: float, steps: int) -> Level | None:
    """How far equal steps at one shift lie from those at another."""
    parts = [k / steps for k in range(1, steps)] or [0.5]
    worst = max(abs(_level(have, part) / _level(want, part) - 1) for part in parts)
    if abs(have / want - 1) <= 0.005:
        return None
    return "wrong" if worst > _SHIFT_WRONG else "doubtful" if worst > _SHIFT_DOUBTFUL else "note"


def _level(shift: float, part: float) -> float:
    return shift * part / (1 + (shift - 1) * part)


def _shift_mends(run: Run, file: FewStepFile, node: Node, value: Value, patched: bool) -> tuple[Mend, ...]:
    want = file.profile.shift
    assert want is not None
    if run.node.type in _OWN_SHIFT:
        return set_value(value, Place(run.node.id, _OWN_SHIFT[run.node.type]), want)
    if node.type in _SHIFTS:
        return set_value(value, Place(node.id, _SHIFTS[node.type]), want)
    if node.type == "ModelSamplingFlux":
        mu = round(math.log(want), 6)
        return SetWidget(node.id, "max_shift", mu), SetWidget(node.id, "base_shift", mu)
    if patched:
        return ()
    patch = base_models().get(file.profile.base_model, {}).get("patch")
    if patch is None:
        return ()
    inputs = [(run.model_node or run.node.id, run.model_input)]
    made = run.sigmas.node
    if made is not None and made.id != run.node.id and "model" in made.inputs:
        inputs.append((made.id, "model"))
    return tuple(Insert(target, name, patch, (("shift", want),)) for target, name in inputs)


def judge_levels(graph: Graph, run: Run, file: FewStepFile, schedules: Schedules, skipped: list[Note]) -> list[Finding]:
    """A scheduler or a list whose noise levels are not the file's; what cannot be judged goes to ``skipped``."""
    if file.profile.sampling_class == "unsupported" or run.sigmas.kind == "ours":
        return []
    if run.sigmas.kind == "list":
        return list(_judge_list(run, file, schedules))
    if run.sigmas.kind == "scheduler" and run.sigmas.scheduler.text:
        return list(_judge_scheduler(graph, run, file, schedules, skipped))
    node = run.sigmas.node or run.node
    if node.type == "Flux2Scheduler" and file.profile.dynamic_shift == "flux2":
        return list(_judge_size(graph, run, file, schedules, node))
    skipped.append(Note.of("levels", node=node.name, id=node.id))
    return []


def _judge_size(graph: Graph, run: Run, file: FewStepFile, schedules: Schedules, node: Node) -> Iterator[Finding]:
    """Flux2Scheduler, which shifts equal parts by the size of the image; some methods shift levels of their own."""
    profile = file.profile
    table = schedules.table(profile.base_model, None)
    width, height = (value_of(graph, node, name).count or 1024 for name in ("width", "height"))
    if table is None or min(width, height) < 16:
        return
    wanted = profile.resolved(table, profile.steps, pixels=width * height).sigmas or ()
    count = len(wanted) - 1
    if count < 1:
        return
    have = sigmas_for_size("flux2", [part / count for part in range(count, -1, -1)], width * height)
    off = furthest(have, wanted)
    if off > DOUBTFUL:
        level: Level = "wrong" if off > WRONG else "doubtful"
        facts = {"have": node.type, "off": f"{min(off, 99):.0%}"}
        yield finding(run, file, "scheduler", level, node=node, facts=facts)


def _judge_scheduler(
    graph: Graph, run: Run, file: FewStepFile, schedules: Schedules, skipped: list[Note]
) -> Iterator[Finding]:
    profile, name = file.profile, run.sigmas.scheduler.text
    node = run.sigmas.node or run.node
    if any(n.type == "ModelSamplingDiscrete" and n.values.get("sampling") == "lcm" for n in run.models):
        return  # its own table of 50 entries is the grid of LCM; every scheduler picks from it
    if name == profile.scheduler or (profile.dynamic_shift and shifts_on(graph, run.models, run.files)):
        return  # the authors' own, or a shift for a size that only the run knows
    steps = run.sigmas.steps.count or profile.steps
    table = schedules.table(profile.base_model, profile.shift)
    exact = profile.sigmas or profile.phases or profile.levels
    wanted = wanted_levels(profile, table, profile.steps if exact else steps) if table else None
    # A count that is wrong is another finding's: judge the scheduler at the right one.
    count = len(wanted) - 1 if wanted else steps
    have = schedules.sigmas(profile.base_model, profile.shift, name, count)
    mends = _scheduler_mends(run, file, schedules, node)
    if have is None or wanted is None:
        if name in ("simple", "pcm", "sgm_uniform"):
            return
        if name in SCHEDULERS and not (profile.sigmas and name == "linear_quadratic"):
            yield finding(run, file, "scheduler_name", "doubtful", node=node, facts={"have": name}, mends=mends)
        skipped.append(Note.of("scheduler", name=name, node=node.name, id=node.id))
        return
    off = furthest(have, wanted)
    if off > DOUBTFUL:
        level: Level = "wrong" if off > WRONG else "doubtful"
        percent = f"{min(off, 99):.0%}" if math.isfinite(off) else ""
        rule = "scheduler" if percent else "scheduler_count"
        yield finding(run, file, rule, level, node=node, facts={"have": name, "off": percent}, mends=mends)


def _scheduler_mends(run: Run, file: FewStepFile, schedules: Schedules, node: Node) -> tuple[Mend, ...]:
    """The first usual scheduler whose levels are the file's; none if the stock ones cannot make them."""
    profile = file.profile
    table = schedules.table(profile.base_model, profile.shift)
    wanted = wanted_levels(profile, table, profile.steps) if table else None
    if profile.scheduler:
        return set_value(run.sigmas.scheduler, Place(node.id, "scheduler"), profile.scheduler)
    for name in ("simple", "linear_quadratic", "normal", "sgm_uniform"):
        have = schedules.sigmas(profile.base_model, profile.shift, name, len(wanted) - 1) if wanted else None
        if wanted is None or (have is not None and furthest(have, wanted) <= DOUBTFUL):
            return set_value(run.sigmas.scheduler, Place(node.id, "scheduler"), name)
    return ()


def _judge_list(run: Run, file: FewStepFile, schedules: Schedules) -> Iterator[Finding]:
    """A written list, whole or the end of one; where it enters is the user's choice."""
    profile, have, node = file.profile, run.sigmas.levels, run.sigmas.node or run.node
    table = schedules.table(profile.base_model, profile.shift)
    if len(have) < 2 or table is None:
        return
    wanted = wanted_levels(profile, table, len(have) - 1)
    if wanted is None:
        return
    start = max(len(wanted) - len(have), 0)
    entering = have[0] < wanted[0] * (1 - DOUBTFUL)
    tail = wanted[start:]
    off = furthest(have[1:], tail[1:]) if entering or start else furthest(have, wanted)
    if off <= DOUBTFUL:
        return
    text = ", ".join(f"{level:g}" for level in wanted)
    mends = (SetWidget(node.id, "sigmas", text),) if not entering else ()
    level: Level = "wrong" if off > WRONG else "doubtful"
    yield finding(run, file, "list", level, node=node, facts={"want": text}, mends=mends)
