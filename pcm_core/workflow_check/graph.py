"""A workflow as one flat graph: subgraphs opened, reroutes, bypassed nodes and get/set pairs followed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .notes import Note

ACTIVE, MUTED, BYPASSED = 0, 2, 4
# Links that carry a model, or a LoRA on its way to one.
MODEL_TYPES = frozenset({"MODEL", "WANVIDEOMODEL", "WANVIDLORA", "LORA_STACK"})
# Links of packs that carry a model among other things; a model that comes by itself goes before theirs.
BUNDLES = frozenset({"PIPE_LINE", "BASIC_PIPE", "DETAILER_PIPE", "RGTHREE_CONTEXT", "PIPE"})
# The same links in API prompts, which have no types.
_MODEL_INPUTS = (
    "model", "model1", "model2", "model_1", "model_2", "base_model", "lora", "prev_lora", "lora_stack",
    "optional_lora_stack", "on_true", "on_false",
)  # fmt: skip
_NUMBERED_INPUT = re.compile(r"(any|input|value|model)_?\d+|model_(high|low)\w*|(high|low)\w*_model")
_BUNDLE_INPUTS = ("pipe", "basic_pipe", "base_ctx", "ctx")


@dataclass(frozen=True)
class Place:
    """A widget that holds a value: node id (``12``, inside a subgraph ``128:12``) and widget name.

    A value inside a structured widget is named with a dot, ``lora_1.strength``.
    """

    node: str
    widget: str


@dataclass(frozen=True)
class Port:
    """An output of a node."""

    node: str
    slot: int


@dataclass(frozen=True)
class Constant:
    """A value that comes by a link: of a primitive, or of a subgraph's widget."""

    value: Any
    place: Place


@dataclass(frozen=True)
class Link:
    """A link as written: ``scope`` is the id prefix of the graph it lies in."""

    scope: str
    node: str
    slot: int


@dataclass(frozen=True)
class Input:
    """An input slot; ``link`` is what it is connected to, ``type`` empty where the file does not say it."""

    type: str = ""
    link: Link | None = None


@dataclass(frozen=True)
class Node:
    """One node of a workflow.

    Attributes:
        id: with the ids of the subgraphs around it, ``128:12``.
        mode: 0 active, 2 muted, 4 bypassed; a node in a muted subgraph is muted.
        values: widget values by name.
        raw: widget values as stored, for nodes whose names nobody knows.
        outputs: types of the outputs, empty strings where the file does not say them.
        subgraph: whether it stands for a graph of its own, whose nodes are in the graph too.
        stored: the one node of the file behind it; the instances of a subgraph share theirs.
    """

    id: str
    type: str
    mode: int = ACTIVE
    title: str = ""
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    raw: tuple[Any, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict[str, Input])
    outputs: tuple[str, ...] = ()
    subgraph: bool = False
    stored: str = ""

    @property
    def name(self) -> str:
        """What people see above the node."""
        return self.title or self.type

    def model_inputs(self) -> list[str]:
        """Names of the connected inputs a model comes in by."""
        linked = {name: entry.type for name, entry in self.inputs.items() if entry.link is not None}
        typed = [name for name, kind in linked.items() if kind in MODEL_TYPES]
        if typed:
            return typed
        untyped = [name for name, kind in linked.items() if kind in ("", "*", "COMFY_MATCHTYPE_V3")]
        found = [name for name in untyped if name in _MODEL_INPUTS or _NUMBERED_INPUT.fullmatch(name)]
        return found or [name for name, kind in linked.items() if kind in BUNDLES or name in _BUNDLE_INPUTS]


# A step back along a link: what a link leads to, or None at a node that ends the way.
Step = Callable[["Graph", Link], "Link | Constant | None"]


@dataclass
class Graph:
    """Nodes by id.

    Attributes:
        step: finds the next piece of a link through a node that is not one, see ``ui_json``.
        notes: what could not be read.
        values: what outputs carry, as far as it was asked for.
    """

    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    form: str = "api"
    step: Step | None = None
    notes: list[Note] = field(default_factory=list[Note])
    values: dict[Port, Any] = field(default_factory=dict[Port, Any])
    _sources: dict[tuple[str, str], Port | Constant | None] = field(default_factory=dict[Any, Any])
    _consumers: dict[str, list[tuple[str, str]]] | None = None

    def source(self, node: str, name: str) -> Port | Constant | None:
        """What really feeds an input; ``None`` if nothing does or the link is broken."""
        key = (node, name)
        if key not in self._sources:
            self._sources[key] = self._follow(node, name)
        return self._sources[key]

    def _follow(self, node: str, name: str) -> Port | Constant | None:
        entry = self.nodes[node].inputs.get(name) if node in self.nodes else None
        link = entry.link if entry else None
        seen: set[Link] = set()
        while link is not None and link not in seen:
            seen.add(link)
            further = self.step(self, link) if self.step else None
            if isinstance(further, Constant):
                return further
            if further is None:
                found = self.nodes.get(link.scope + link.node)
                return Port(found.id, link.slot) if found and found.mode not in (MUTED, BYPASSED) else None
            link = further
        return None

    def consumers(self) -> dict[str, list[tuple[str, str]]]:
        """(node, input) pairs that each node feeds."""
        if self._consumers is not None:
            return self._consumers
        self._consumers = found = dict[str, list[tuple[str, str]]]()
        for node in self.nodes.values():
            for name in node.inputs:
                source = self.source(node.id, name)
                if isinstance(source, Port):
                    found.setdefault(source.node, []).append((node.id, name))
        return found
