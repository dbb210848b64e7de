"""The other mend: our loader and sampler in the place of the stock ones, with the same links, prompts and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..profiles import method_choices, profile_of_method
from .check import Report
from .files import FewStepFile
from .finding import Bypass, Mend
from .graph import Graph, Node, Port
from .judge_graph import pairs
from .judge_levels import shifts_on
from .runs import Run
from .schedules import ClosedForm, base_models, furthest
from .values import value_of

_LOADERS = ("LoraLoaderModelOnly", "LoraLoader", "LoraLoader|pysssh", "LoraLoaderBypassModelOnly", "LoraLoaderBypass")
_SAME = 1e-3  # relative difference of a noise level that was rounded
_VIDEO = ("wan", "hunyuan-video", "hunyuan-video-1.5", "mochi", "ltxv", "ltx-2")


@dataclass(frozen=True, kw_only=True)
class Replace:
    """A new node in the place of others.

    Attributes:
        at: the node whose place and size it takes.
        removes: nodes that go, this one among them.
        type: of the new node; ``values`` its widgets, the others keep their defaults.
        inputs: (input of the new node, old node, old input): it is fed from what fed that.
        outputs: (old node, old output, new output): it feeds what that fed.
        through: (old node, old output, old input): what that output fed is fed from what feeds that input.
    """

    at: str
    removes: tuple[str, ...]
    type: str
    values: tuple[tuple[str, Any], ...] = ()
    inputs: tuple[tuple[str, str, str], ...] = ()
    outputs: tuple[tuple[str, int, int], ...] = ()
    through: tuple[tuple[str, int, str], ...] = ()


def pcm_nodes(graph: Graph, report: Report, file: FewStepFile) -> tuple[Replace | Mend, ...]:
    """What to do for a file to be loaded and sampled by our nodes; empty where that cannot be done by replacing.

    A checkpoint keeps its loader: our samplers recognize it by its name.
    """
    runs = [run for run in report.runs if file in run.files]
    if not runs or any(run.ours for run in runs) or not _served(file):
        return ()
    steps: list[Replace | Mend] = []
    pair = next((pair for pair in pairs(graph, report.runs) if runs[0] in pair), None)
    sampled = list(pair) if pair else runs
    loaders = {other.node.id: other for run in sampled for other in run.files}
    if not all(map(_served, loaders.values())):
        return ()
    steps += [_loader(other) for other in loaders.values() if other.kind == "lora"]
    made = [_pair(graph, *pair)] if pair else [_sampler(graph, run) for run in runs]
    if any(replacement is None for replacement in made):
        return ()
    steps += [replacement for replacement in made if replacement is not None]
    steps += _shift_nodes(graph, sampled, file)
    return tuple(steps) if _one_graph(steps) else ()


def _served(file: FewStepFile) -> bool:
    """Whether our nodes can take its place as it is loaded now."""
    known = file.kind == "checkpoint" or file.node.type in _LOADERS
    return known and file.profile.sampling_class != "unsupported"


def _one_graph(steps: Sequence[Replace | Mend]) -> bool:
    """Links cannot be made from one subgraph into another."""
    for step in steps:
        names = [*step.removes, *(old for _, old, _ in step.inputs)] if isinstance(step, Replace) else []
        if len({name.rpartition(":")[0] for name in names}) > 1:
            return False
    return True


def _loader(file: FewStepFile) -> Replace:
    node = file.node.id
    through = ((node, 1, "clip"),) if "clip" in file.node.inputs else ()
    return Replace(
        at=node,
        removes=(node,),
        type="PCMLoraLoader",
        values=(("lora_name", file.name),),
        inputs=(("model", node, "model"),),
        outputs=((node, 0, 0),),
        through=through,
    )


def _shift_nodes(graph: Graph, runs: Sequence[Run], file: FewStepFile) -> Iterator[Mend]:
    """A ModelSampling node goes before the file's own shift in our nodes: one that says another is taken out."""
    want, seen = file.profile.shift, set[str]()
    for run in runs:
        for shift in shifts_on(graph, run.models, run.files):
            same = want is not None and shift.number is not None and abs(shift.number / want - 1) <= 0.005
            if want is not None and not same and shift.node.id not in seen:
                seen.add(shift.node.id)
                yield Bypass(shift.node.id)


def _is_video(run: Run) -> bool:
    return any(file.profile.base_model in _VIDEO for file in run.files) and bool(base_models())


def _sampler(graph: Graph, run: Run) -> Replace | None:
    node = run.node
    kind = "PCMVideoSampler" if _is_video(run) else "PCMSampler"
    values = _entry(run)
    removes, words = [node.id], node
    if node.type == "SamplerCustomAdvanced":
        words = graph.nodes[run.model_node]
        noise = _source(graph, node, "noise")
        seed = value_of(graph, noise, "noise_seed") if noise is not None else None
        removes += [part.id for part in (words, noise) if part is not None and _only_for(graph, part, node)]
    else:
        seed = value_of(graph, node, "seed" if "seed" in node.values or "seed" in node.inputs else "noise_seed")
    alone = words.type == "BasicGuider"
    if (alone and any(file.profile.cfg != 1 for file in run.files)) or not run.sigmas.whole or run.start.known:
        return None  # no negative prompt to hand on where one is needed, or a part of a schedule
    if seed is not None and seed.count is not None:
        values.append(("seed", seed.count))
    for name in ("sampler", "sigmas"):
        part = _source(graph, node, name)
        removes += [part.id] if part is not None and _only_for(graph, part, node) else []
    source = run.model_node or node.id
    inputs = [("model", source, run.model_input)]
    inputs += [(name, words.id, "conditioning" if alone else name) for name in ("positive", "negative")]
    inputs.append(("latent_image", node.id, "latent_image"))
    slots = [slot for slot, kind in enumerate(node.outputs) if kind == "LATENT"]
    outputs = [(node.id, slot, min(index, 1)) for index, slot in enumerate(slots)]
    through = [(node.id, slot, run.model_input) for slot, name in enumerate(node.outputs) if name == "MODEL"]
    if kind == "PCMVideoSampler":
        outputs = [(old, slot, 0) for old, slot, _ in outputs]
    return Replace(
        at=node.id, removes=tuple(dict.fromkeys(removes)), type=kind, values=tuple(values), inputs=tuple(inputs),
        outputs=tuple(outputs), through=tuple(through),
    )  # fmt: skip


def _entry(run: Run) -> list[tuple[str, Any]]:
    """Where a later stage enters: by ``denoise``, or by a method of its own for a written list that the table has."""
    denoise = run.sigmas.denoise.number
    if denoise is not None and denoise < 1:
        return [("denoise", denoise)]
    levels, profile = run.sigmas.levels, run.files[0].profile
    table = ClosedForm().table(profile.base_model, profile.shift)
    if run.sigmas.kind != "list" or table is None or len(levels) < 2 or levels[0] >= table.top * 0.995:
        return []
    for choice in method_choices():
        other = profile_of_method(choice)
        if other.base_model == profile.base_model and furthest(levels, other.sigmas or ()) < _SAME:
            return [("method", choice)]
    return [("denoise", round((table.index(levels[0]) + 1) / len(table), 4))]


def _pair(graph: Graph, first: Run, second: Run) -> Replace | None:
    """Two samplers of one schedule become PCM Video Sampler with both experts."""
    one, two = first.node.id, second.node.id
    seed = value_of(graph, first.node, "noise_seed").count
    return Replace(
        at=one,
        removes=(one, two),
        type="PCMVideoSampler",
        values=(("seed", seed),) if seed is not None else (),
        inputs=(
            ("model", one, "model"),
            ("second_model", two, "model"),
            ("positive", one, "positive"),
            ("negative", one, "negative"),
            ("latent_image", one, "latent_image"),
        ),
        outputs=((two, 0, 0),),
    )


def _source(graph: Graph, node: Node, name: str) -> Node | None:
    source = graph.source(node.id, name)
    return graph.nodes[source.node] if isinstance(source, Port) else None


def _only_for(graph: Graph, part: Node, node: Node) -> bool:
    """Whether a node that is no longer needed, a scheduler or a guider, feeds this sampler alone."""
    return {target for target, _ in graph.consumers().get(part.id, [])} == {node.id}
