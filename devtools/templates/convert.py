"""A template with the nodes of this pack, as an API prompt: what "Use PCM nodes" of the workflow check makes of it.

Both forms are prompts of the part that samples, from the loaders to the samplers, so that a test can run them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcm_core.workflow_check.check import check_graph
from pcm_core.workflow_check.files import FewStepFile
from pcm_core.workflow_check.finding import Mend, Remove, Replace, SetWidget
from pcm_core.workflow_check.graph import Constant, Graph, Node, Port
from pcm_core.workflow_check.mend import apply_mends
from pcm_core.workflow_check.pcm_nodes import Exchanges
from pcm_core.workflow_check.read import read_workflow
from pcm_core.workflow_check.runs import Run
from pcm_core.workflow_check.schedules import ClosedForm
from pcm_core.workflow_check.values import chosen_input, value_of

from .graph import SWITCHES

Prompt = dict[str, dict[str, Any]]
_SAMPLERS = ("PCMSampler", "PCMVideoSampler")


@dataclass(frozen=True)
class Converted:
    """A template both ways.

    Attributes:
        official: the template's own nodes. Each sampler that is converted has an output node ``take:ID``.
        ours: the same with our nodes.
        files: few-step files of the samplers.
        kinds: types of the outputs of every node, by id; empty where the template does not say them.
    """

    official: Prompt
    ours: Prompt
    files: tuple[FewStepFile, ...]
    kinds: Mapping[str, tuple[str, ...]]


def convert(workflow: Mapping[str, Any]) -> Converted | None:
    """Both forms of a template with its few-step files switched on; ``None`` where it cannot be converted."""
    data = _switched_on(workflow)
    graph = read_workflow(data)
    report = check_graph(graph, ClosedForm())
    used = [file for file in report.files if any(file in run.files for run in report.runs)]
    exchanges = Exchanges(graph, report, ClosedForm())
    for file in used:
        steps = exchanges.of(file).steps
        runs = [run for run in report.runs if file in run.files]
        if not steps:
            continue
        replaced = [step for step in steps if isinstance(step, Replace) and step.type in _SAMPLERS]
        ends = [old for step in replaced for old, slot, _ in step.outputs if slot == 0]
        official = _prompt(graph, ends)
        official |= {f"take:{end}": {"class_type": "Take", "inputs": {"value": [end, 0]}} for end in ends}
        ours, _ = apply_mends(official, steps)  # what does not lead to a sampler is not in the prompt
        files = tuple({f.node.id: f for run in (*runs, *_others(report.runs, steps)) for f in run.files}.values())
        return Converted(official, ours, files, {node.id: node.outputs for node in graph.nodes.values()})
    return None


def _others(runs: Sequence[Run], steps: Sequence[Mend]) -> list[Run]:
    """The runs of all that is removed: both halves of a pair."""
    gone = {step.node for step in steps if isinstance(step, Remove)}
    return [run for run in runs if run.node.id in gone]


def _switched_on(workflow: Mapping[str, Any]) -> Any:
    """With every switch on: the templates put the few-step LoRA there."""
    graph = read_workflow(workflow)
    mends: list[Mend] = []
    for node in graph.nodes.values():
        if node.type in SWITCHES:
            value = value_of(graph, node, "switch")
            if value.place is not None and value.value is False:
                mends.append(SetWidget(value.place.node, value.place.widget, True))
    return apply_mends(dict(workflow), mends)[0]


def _prompt(graph: Graph, ends: Iterable[str]) -> Prompt:
    """The API prompt of some nodes and all that feeds them; switches are followed to what they let through."""
    made: Prompt = {}
    waiting = list(ends)
    while waiting:
        node = graph.nodes[waiting.pop()]
        if node.id in made:
            continue
        inputs: dict[str, Any] = {name: value for name, value in node.values.items() if not name.startswith("#")}
        for name, entry in node.inputs.items():
            if entry.link is None:
                continue
            source = _through(graph, graph.source(node.id, name))
            if isinstance(source, Port):
                inputs[name] = [source.node, source.slot]
                waiting.append(source.node)
            elif isinstance(source, Constant):
                inputs[name] = source.value
        made[node.id] = {"class_type": node.type, "inputs": inputs}
    return made


def _through(graph: Graph, source: Port | Constant | None) -> Port | Constant | None:
    """Past switches and primitives."""
    while isinstance(source, Port):
        node: Node = graph.nodes[source.node]
        if node.type in SWITCHES and (branch := chosen_input(graph, node)):
            found = graph.source(node.id, branch)
            if found is None and branch in node.values:
                return Constant(node.values[branch], value_of(graph, node, branch).place)  # pyright: ignore
            source = found
        elif node.type.startswith("Primitive") and (value := value_of(graph, node, "value")).known:
            assert value.place is not None
            return Constant(value.value, value.place)
        else:
            return source
    return source
