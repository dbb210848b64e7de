"""What only several nodes together give away: experts, halves of a schedule, LoRAs that nothing uses or too many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .files import FewStepFile
from .finding import Connect, Finding, Mend, SetWidget, set_value
from .graph import MODEL_TYPES, Graph, Node, Place, Port
from .judge_run import finding
from .runs import Run
from .sources import source_of
from .values import value_of

Consumers = dict[str, list[tuple[str, str]]]
_EXPERT = re.compile(r"(high|low)[-_ ]?noise|[-_ /](high|low)[-_. ]", re.IGNORECASE)
_MODEL_WIDGETS = ("unet_name", "ckpt_name", "model_name", "model", "gguf_name")


@dataclass(frozen=True)
class Expert:
    """A file of one of two experts, ``high`` or ``low``, and the widget that names it."""

    side: str
    name: str
    place: Place


def expert_of(name: str) -> str:
    """``high`` or ``low`` as a file name says; empty if it does not."""
    match = _EXPERT.search(name)
    return (match[1] or match[2]).lower() if match else ""


def pairs(graph: Graph, runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """KSamplerAdvanced after KSamplerAdvanced, each with a few-step file: two parts of one schedule."""
    by_node = {run.node.id: run for run in runs}
    found: list[tuple[Run, Run]] = []
    for run in runs:
        source = graph.source(run.node.id, "latent_image")
        first = by_node.get(source.node) if isinstance(source, Port) else None
        if first is not None and first is not run and first.end.known and run.start.known:
            found.append((first, run))
    chained = {first.node.id for first, _ in found} & {second.node.id for _, second in found}
    return [pair for pair in found if not chained & {pair[0].node.id, pair[1].node.id}]


def judge_experts(graph: Graph, run: Run, partner: Run | None, role: str) -> Iterator[Finding]:
    """A LoRA or a model of the other expert.

    Args:
        role: the half this run samples, ``high`` or ``low``; empty where it is not one of two.
    """
    file = next((file for file in run.files if file.profile.expert), None)
    if file is None:
        return
    yield from _expert_findings(graph, run, file, run.models, run.files, partner, role)


def judge_video_experts(graph: Graph, run: Run) -> Iterator[Finding]:
    """The same for PCM Video Sampler, which takes both experts."""
    for files, models, other, others, role in (
        (run.files, run.models, run.second, run.second_models, "high"),
        (run.second, run.second_models, run.files, run.models, "low"),
    ):
        file = next((file for file in files if file.profile.expert), None)
        if file is not None and run.second_models:
            mine = _experts(graph, models, files)
            theirs = _experts(graph, others, other)
            yield from _swaps(run, file, mine, theirs, role)


def _expert_findings(
    graph: Graph, run: Run, file: FewStepFile, models: Sequence[Node], files: Sequence[FewStepFile],
    partner: Run | None, role: str,
) -> Iterator[Finding]:  # fmt: skip
    mine = _experts(graph, models, files)
    theirs = _experts(graph, partner.models, partner.files) if partner else []
    if role:
        yield from _swaps(run, file, mine, theirs, role)
        return
    base = next((expert for expert in mine if expert.name != file.name), None)
    if base is not None and base.side != file.profile.expert:
        facts = {"have": file.profile.expert, "want": base.side, "model": base.name}
        yield finding(run, file, "expert", "wrong", node=file.node, facts=facts)


def _swaps(run: Run, file: FewStepFile, mine: list[Expert], theirs: list[Expert], role: str) -> Iterator[Finding]:
    """Whatever is of the other expert changes places with its like on the other side."""
    misplaced = [expert for expert in mine if expert.side != role]
    if not misplaced:
        return
    mends: list[Mend] = []
    for expert in misplaced:
        is_lora = expert.name == file.name
        twin = next((t for t in theirs if t.side == role and (_is_lora(t, theirs) == is_lora)), None)
        if twin is not None:
            mends += [
                SetWidget(expert.place.node, expert.place.widget, twin.name),
                SetWidget(twin.place.node, twin.place.widget, expert.name),
            ]
    names = ", ".join(expert.name for expert in misplaced)
    facts = {"have": misplaced[0].side, "want": role, "names": names}
    yield finding(run, file, "expert_half", "wrong", mends=tuple(mends), facts=facts)


def _is_lora(expert: Expert, experts: list[Expert]) -> bool:
    return expert is experts[0] if len(experts) > 1 else "lora" in expert.name.lower()


def _experts(graph: Graph, models: Sequence[Node], files: Sequence[FewStepFile]) -> list[Expert]:
    """The LoRA's and the model's file of one side, the LoRA first, as far as their names say an expert."""
    found = [Expert(f.profile.expert, f.name, f.place) for f in files if f.profile.expert]
    for node in reversed(models):
        for name in _MODEL_WIDGETS:
            value = value_of(graph, node, name)
            side = expert_of(value.text)
            if side and "lora" not in node.type.lower():
                found.append(Expert(side, value.text, value.place or Place(node.id, name)))
                return found
    return found


def judge_halves(first: Run, second: Run) -> Iterator[Finding]:
    """Two samplers that share a schedule: the second begins where the first ends, on the noise the first leaves."""
    file = first.files[0]
    total = file.profile.steps if first.sigmas.steps.known else 0
    end, start = first.end.count, second.start.count
    if not total or end is None or start is None:
        return
    split = split_of(first, second, total)
    mends: list[Mend] = []
    if end != split:
        mends += set_value(first.end, Place(first.node.id, "end_at_step"), split)
    if start != split:
        mends += set_value(second.start, Place(second.node.id, "start_at_step"), split)
    if mends and total > 1:
        facts = {"end": end, "start": start, "want": split}
        yield finding(first, file, "halves", "wrong", node=second.node, mends=tuple(mends), facts=facts)
    yield from _judge_leftover(first, second, file)


def split_of(first: Run, second: Run, total: int) -> int:
    """The step at which a pair should change over: the middle, or where one of the two says."""
    ends = [at for at in (first.end.count, second.start.count) if at is not None and 0 < at < total]
    return total // 2 if total // 2 in ends or not ends else ends[0]


def _judge_leftover(first: Run, second: Run, file: FewStepFile) -> Iterator[Finding]:
    wanted = (
        (first, "return_with_leftover_noise", ("enable", True)),
        (second, "add_noise", ("disable", False)),
    )
    for run, name, good in wanted:
        have = run.node.values.get(name)
        if have is not None and have not in good and name not in run.node.inputs:
            want = good[1] if isinstance(have, bool) else good[0]
            mends = (SetWidget(run.node.id, name, want),)
            yield finding(run, file, name, "wrong", facts={"have": str(have), "want": str(want)}, mends=mends)


def judge_extra(run: Run) -> tuple[FewStepFile, list[Finding]]:
    """The file a run is judged by, and a finding for every other one on the same model.

    PCM Settings says what a model is sampled with; the file it speaks of is no second one.
    """
    places = {node.id: place for place, node in enumerate(run.models)}
    files = sorted(
        run.files or run.second,
        key=lambda file: (not file.settings, *_fit(run, file, places.get(file.node.id, 0))),
    )
    kept, found = files[0], list[Finding]()
    for extra in files[1:]:
        if extra.title == kept.title and extra.node.id == kept.node.id:
            continue
        if kept.settings and (extra.profile.method, extra.profile.steps) == (kept.profile.method, kept.profile.steps):
            continue
        place = Place(extra.node.id, "strength_model")
        mends = set_value(extra.strength, place, 0) if extra.kind == "lora" and extra.strength.known else ()
        facts = {"other": kept.title}
        found.append(finding(run, extra, "two_files", "wrong", node=extra.node, facts=facts, mends=mends))
    return kept, found


def _fit(run: Run, file: FewStepFile, place: int) -> tuple[bool, bool, int]:
    """Sorts the file that fits a run best to the front: a checkpoint cannot be switched off."""
    steps = run.sigmas.steps.count or (len(run.sigmas.levels) - 1 if run.sigmas.levels else 0)
    return file.kind == "lora", bool(steps) and steps != file.profile.steps, -place


def judge_unused(graph: Graph, files: Sequence[FewStepFile], runs: Sequence[Run]) -> Iterator[Finding]:
    """A LoRA that is loaded beside the way of the model: its input goes to a sampler, its output to none."""
    used = {file.node.id for run in runs for file in (*run.files, *run.second)}
    consumers = graph.consumers()
    for file in files:
        chain = None if file.node.id in used else _dead_end(graph, consumers, file.node)
        if file.kind != "lora" or not file.active or file.mixed or chain is None:
            continue
        around = _around(graph, consumers, chain)
        if not around:
            continue
        last = chain[-1]
        yield Finding(
            rule="unused",
            level="wrong",
            node=file.node.id,
            title=file.node.name,
            file=file.title,
            facts={"family": file.profile.method, "file": file.title, "sampler": graph.nodes[around[0][0]].name},
            why=source_of(file),
            mends=tuple(Connect(target, name, last.id, _model_slot(last)) for target, name in around),
        )


def _around(graph: Graph, consumers: Consumers, chain: Sequence[Node]) -> list[tuple[str, str]]:
    """Inputs that take the model from before a chain of nodes instead of from behind it."""
    own = {node.id for node in chain}
    for node in chain:
        for name in node.model_inputs():
            source = graph.source(node.id, name)
            if isinstance(source, Port) and source.node not in own:
                others = [entry for entry in consumers.get(source.node, []) if entry[0] not in own]
                return [entry for entry in others if _takes_model(graph, *entry)]
    return []


def _takes_model(graph: Graph, target: str, name: str) -> bool:
    node = graph.nodes[target]
    return name in node.model_inputs() and node.mode == 0


def _model_slot(node: Node) -> int:
    return next((slot for slot, kind in enumerate(node.outputs) if kind in MODEL_TYPES), 0)


def _dead_end(graph: Graph, consumers: Consumers, node: Node) -> list[Node] | None:
    """The nodes behind this one that hand its model on to nobody; ``None`` where somebody takes it."""
    chain, waiting = {node.id: node}, [node.id]
    while waiting:
        for target, name in consumers.get(waiting.pop(), []):
            source, further = graph.source(target, name), graph.nodes[target]
            if target in chain or not isinstance(source, Port) or source.slot != _model_slot(graph.nodes[source.node]):
                continue
            passes = any(kind in MODEL_TYPES or kind in ("*", "") for kind in further.outputs) or not further.outputs
            if name not in further.model_inputs() or not passes or {"steps", "cfg"} & further.values.keys():
                return None  # a sampler, or a node that an API prompt says nothing about
            chain[target] = further
            waiting.append(target)
    return list(chain.values())
