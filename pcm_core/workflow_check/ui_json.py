"""The UI form of a workflow, as the frontend saves it: versions 0.4 and 1, subgraphs, virtual and bypassed nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from .graph import ACTIVE, BYPASSED, MUTED, Constant, Graph, Input, Link, Node, Place
from .host_names import is_sampler_name, is_scheduler_name
from .notes import Note
from .shapes import at, is_object, items, objects

_EVERYWHERE = ("Anything Everywhere", "Anything Everywhere3", "Prompts Everywhere")
_ANY = ("*", "COMFY_MATCHTYPE_V3")
_CONTROLS = ("fixed", "increment", "decrement", "randomize")
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_IN, _OUT = "-10", "-20"  # the two ends of a subgraph, as node ids
_DEEPEST = 20
_MOST_NODES = 20_000


@cache
def widget_names() -> Mapping[str, tuple[str, ...]]:
    """Widgets, in their order, of the nodes this check reads; other nodes say the names themselves or are guessed."""
    text = Path(__file__).with_name("widgets.json").read_text(encoding="utf-8")
    return {name: tuple(names) for name, names in json.loads(text).items()}


@dataclass
class _Scope:
    """One graph of the file: the top one, or an instance of a subgraph."""

    links: dict[Any, Link]
    graph: str = ""
    instance: str = ""
    outer: str = ""
    inputs: list[str] = field(default_factory=list[str])
    outputs: dict[int, Link] = field(default_factory=dict[int, Link])
    types: dict[Any, str] = field(default_factory=dict[Any, str])

    def input(self, slot: Mapping[str, Any]) -> Input:
        """A slot of a node; one of any type has the type of its link."""
        name, kind = _key(slot.get("link")), str(slot.get("type"))
        return Input(self.types.get(name, kind) if kind in _ANY else kind, self.links.get(name))


class _Reader:
    """Opens the subgraphs of one file into one graph, and later follows links through them."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.graph = Graph(form="ui", step=self.step)
        self.scopes: dict[str, _Scope] = {}
        self.subgraphs = {str(entry.get("id")): entry for entry in objects(at(data, "definitions", "subgraphs"))}
        self.setters: dict[str, Link] = {}
        self.passed: dict[str, tuple[Input, ...]] = {}
        self.open(data, "", None, ACTIVE, 0)

    def open(self, data: Mapping[str, Any], prefix: str, instance: Node | None, mode: int, depth: int) -> None:
        scope = _Scope(links=_links(data, prefix), types=_types(data), graph=str(data.get("id", "")) if prefix else "")
        if instance is not None:
            scope.instance, scope.outer = instance.id, instance.id.rpartition(":")[0]
            scope.outer += ":" if scope.outer else ""
            scope.inputs = [str(entry.get("name")) for entry in objects(data.get("inputs"))]
        for origin, target, slot in _ends(data, prefix):
            if target == _OUT:
                scope.outputs.setdefault(slot, origin)
        self.scopes[prefix] = scope
        for entry in objects(data.get("nodes")):
            if len(self.graph.nodes) >= _MOST_NODES:
                self.graph.notes.append(Note.of("too_many", count=_MOST_NODES))
                return
            self.add(entry, prefix, scope, mode, depth)
        if any(entry.get("type") in _EVERYWHERE for entry in objects(data.get("nodes"))):
            self.spread([self.graph.nodes[f"{prefix}{entry.get('id')}"] for entry in objects(data.get("nodes"))])

    def spread(self, own: Iterable[Node]) -> None:
        """What "Anything Everywhere" gets feeds every free input of its type in the same graph."""
        own = list(own)
        given: dict[str, Link] = {}
        for node in own:
            if node.type in _EVERYWHERE and node.mode == ACTIVE:
                given |= {entry.type: entry.link for entry in node.inputs.values() if entry.link is not None}
        for node in own if given else ():
            for name, entry in list(node.inputs.items()):
                if entry.link is None and entry.type in given and entry.type not in _WIDGET_TYPES:
                    cast(dict[str, Input], node.inputs)[name] = Input(entry.type, given[entry.type])
            self.passed[node.id] = tuple(node.inputs.values())

    def add(self, entry: Mapping[str, Any], prefix: str, scope: _Scope, mode: int, depth: int) -> None:
        kind = str(entry.get("type"))
        inner = self.subgraphs.get(kind)
        own = entry.get("mode")
        own = own if own in (MUTED, BYPASSED) else ACTIVE
        slots = objects(entry.get("inputs"))
        inputs = {str(slot.get("name")): scope.input(slot) for slot in slots}
        raw: Any = entry.get("widgets_values")
        node = Node(
            id=f"{prefix}{entry.get('id')}",
            type=kind,
            mode=own or mode,
            title=str(entry.get("title") or (inner or {}).get("name") or ""),
            values=_instance_values(entry, inner) if inner is not None else _values(kind, slots, raw),
            raw=tuple(items(raw)),
            inputs=inputs,
            outputs=tuple(str(output.get("type")) for output in objects(entry.get("outputs"))),
            subgraph=inner is not None,
            stored=f"{scope.graph}:{entry.get('id')}",
        )
        self.graph.nodes[node.id] = node
        self.passed[node.id] = tuple(inputs.values())
        if kind in ("SetNode", "easy setNode") and node.raw and self.passed[node.id]:
            link = self.passed[node.id][0].link
            if link is not None and isinstance(node.raw[0], str):
                self.setters.setdefault(node.raw[0], link)
        if kind.startswith(("workflow>", "workflow/")):
            self.graph.notes.append(Note.of("group_node", node=node.name, id=node.id))
        if inner is not None and depth < _DEEPEST:
            self.open(inner, f"{node.id}:", node, own or mode, depth + 1)

    def step(self, graph: Graph, link: Link) -> Link | Constant | None:
        scope = self.scopes[link.scope]
        if link.node == _IN:
            return self._outside(graph, scope, link)
        node = graph.nodes.get(link.scope + link.node)
        if node is None:
            return None
        inner = self.scopes.get(f"{node.id}:")
        if inner is not None and node.mode == ACTIVE:
            return inner.outputs.get(link.slot)
        inputs = self.passed[node.id]
        if node.type.lower().startswith("reroute") and node.mode != MUTED:
            return inputs[0].link if inputs else None
        if node.type in ("GetNode", "easy getNode") and node.raw and isinstance(node.raw[0], str):
            return self.setters.get(node.raw[0])
        if node.type == "PrimitiveNode" and node.raw:
            return Constant(node.raw[0], Place(node.id, "value"))
        return self._through(node, link.slot) if node.mode == BYPASSED else None

    def _outside(self, graph: Graph, scope: _Scope, link: Link) -> Link | Constant | None:
        """From the inside of a subgraph to what its instance is connected to, or holds as a widget."""
        instance = graph.nodes.get(scope.instance)
        if instance is None or not 0 <= link.slot < len(scope.inputs):
            return None
        name = scope.inputs[link.slot]
        entry = instance.inputs.get(name)
        if entry is not None and entry.link is not None:
            return entry.link
        return Constant(instance.values[name], Place(instance.id, name)) if name in instance.values else None

    def _through(self, node: Node, slot: int) -> Link | None:
        """A bypassed node hands on the input of the output's type, the one in the same place first."""
        kind = node.outputs[slot] if 0 <= slot < len(node.outputs) else ""
        inputs = self.passed[node.id]
        same = inputs[slot : slot + 1] if slot >= 0 else ()
        return next((entry.link for entry in (*same, *inputs) if entry.type == kind and entry.link is not None), None)


def read_ui(data: Mapping[str, Any]) -> Graph:
    """One graph from the UI form. What cannot be read is left out."""
    return _Reader(data).graph


def instance_widgets(entry: Mapping[str, Any], inner: Mapping[str, Any]) -> list[str]:
    """Names of the subgraph inputs that the ``widgets_values`` of an instance stand for, in their order."""
    values = items(entry.get("widgets_values"))
    if not values:
        return []
    names = [
        str(slot.get("name"))
        for slot in objects(inner.get("inputs"))
        if slot.get("type") in _WIDGET_TYPES or str(slot.get("type")).startswith("COMFY_DYNAMICCOMBO")
    ]
    linked = [str(slot.get("name")) for slot in objects(entry.get("inputs")) if slot.get("widget")]
    return names if len(names) == len(values) else linked if len(linked) == len(values) else []


def widget_order(kind: str, slots: Iterable[Mapping[str, Any]], raw: list[Any]) -> list[str]:
    """A name for every stored widget value: empty for what follows a seed, ``#3`` where nobody knows the name."""
    known = widget_names().get(kind)
    named = [slot for slot in slots if slot.get("widget")]
    names = list(known or (str(at(slot, "widget", "name")) for slot in named))
    if known is None and len(names) < len(raw) - 1:
        guessed = _guess(raw)
        if guessed:
            return guessed
        if not _fits([str(slot.get("type")) for slot in named], raw):
            names = []  # an older frontend names those alone that are inputs now
    order: list[str] = []
    for value in raw:
        follows_seed = bool(order) and order[-1] in ("seed", "noise_seed", "value", "start_seed")
        if follows_seed and value in _CONTROLS and (known is None or len(raw) > len(known)):
            order.append("")
        else:
            order.append(names.pop(0) if names else f"#{len(order)}")
    return order


def _fits(kinds: list[str], raw: list[Any]) -> bool:
    """Whether stored values are of the kinds that slots in the same order have."""
    numbers = {"INT": (int,), "FLOAT": (int, float)}
    values = [value for place, value in enumerate(raw) if not (place and value in _CONTROLS)]
    for kind, value in zip(kinds, values, strict=False):
        if kind in numbers and (isinstance(value, bool) or not isinstance(value, numbers[kind])):
            return False
        if (kind == "BOOLEAN" and not isinstance(value, bool)) or (kind == "STRING" and not isinstance(value, str)):
            return False
    return True


def _guess(raw: list[Any]) -> list[str]:
    """Names for the widgets of a sampler nobody here knows, saved by a frontend that does not write names.

    Sampler nodes of every pack keep the order of KSampler: steps, cfg, sampler, scheduler, denoise.
    """
    for index, value in enumerate(raw[:-1]):
        follows = raw[index + 1]
        if index < 2 or not isinstance(value, str) or not isinstance(follows, str):
            continue
        if is_sampler_name(value) and is_scheduler_name(follows) and type(raw[index - 2]) is int:
            names = [f"#{place}" for place in range(len(raw))]
            names[index - 2 : index + 2] = ["steps", "cfg", "sampler_name", "scheduler"]
            if index + 2 < len(raw) and isinstance(raw[index + 2], (int, float)):
                names[index + 2] = "denoise"
            return names
    return []


def _values(kind: str, slots: list[dict[str, Any]], raw: Any) -> dict[str, Any]:
    if is_object(raw):
        return dict(raw)
    values = items(raw)
    order = widget_order(kind, slots, values)
    named = {
        name: value
        for name, value in zip(order, values, strict=True)
        if name and not (name.startswith("#") and is_object(value))
    }
    # rgthree's Power Lora Loader keeps one dict per LoRA.
    rows = [row for row in objects(values) if "lora" in row]
    return named | {f"lora_{index}": row for index, row in enumerate(rows, 1)}


def _instance_values(entry: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(instance_widgets(entry, inner), items(entry.get("widgets_values")), strict=False))


def _links(data: Mapping[str, Any], prefix: str) -> dict[Any, Link]:
    found: dict[Any, Link] = {}
    for entry in items(data.get("links")):
        name, ends = _ends_of(entry)
        if ends is not None:
            found[name] = Link(prefix, str(ends[0]), ends[1])
    return found


def _types(data: Mapping[str, Any]) -> dict[Any, str]:
    """What the links carry, as far as the file says it."""
    links = items(data.get("links"))
    objects_ = {_key(entry.get("id")): entry.get("type") for entry in objects(links)}
    listed = {_key(items(entry)[0]): items(entry)[5] for entry in links if len(items(entry)) > 5}
    return {name: kind for name, kind in (objects_ | listed).items() if isinstance(kind, str) and kind not in _ANY}


def _ends(data: Mapping[str, Any], prefix: str) -> Iterable[tuple[Link, str, int]]:
    for entry in items(data.get("links")):
        _, ends = _ends_of(entry)
        if ends is not None:
            yield Link(prefix, str(ends[0]), ends[1]), str(ends[2]), ends[3]


def _ends_of(entry: Any) -> tuple[Any, tuple[Any, int, Any, int] | None]:
    """(link id, (from node, slot, to node, slot)) of a link as list or object; ``None`` for anything else."""
    if is_object(entry):
        parts = [entry.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        parts = items(entry)[:5]
    if len(parts) < 5 or type(parts[2]) is not int or type(parts[4]) is not int:
        return None, None
    return _key(parts[0]), (parts[1], parts[2], parts[3], parts[4])


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None
