"""What a widget holds, through the primitives and switches that may feed it, and where that value can be changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .graph import Constant, Graph, Node, Place, Port
from .shapes import fields

_DEEPEST = 40
# Where primitive nodes of this and other packs keep their value.
_VALUE_NAMES = ("value", "Value", "int", "float", "boolean", "number", "string", "Number", "integer")


@dataclass(frozen=True)
class Value:
    """A widget's value.

    Attributes:
        known: whether the workflow says it; False where another node computes it.
        place: the widget to change; ``None`` where there is none.
    """

    value: Any = None
    known: bool = False
    place: Place | None = None

    @property
    def number(self) -> float | None:
        """The value as a finite number; ``None`` if it is none."""
        value = self.value
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:
            return None

    @property
    def count(self) -> int | None:
        """The value as a whole number; ``None`` if it is none."""
        number = self.number
        return None if number is None else int(number)

    @property
    def text(self) -> str:
        """The value as a text; empty if it is none."""
        return self.value if isinstance(self.value, str) else ""


UNKNOWN = Value()


def value_of(graph: Graph, node: Node, name: str, depth: int = 0) -> Value:
    """The value of a widget of a node."""
    entry = node.inputs.get(name)
    if entry is not None and entry.link is not None:
        source = graph.source(node.id, name)
        if isinstance(source, Constant):
            return Value(source.value, True, source.place)
        if isinstance(source, Port):
            found = output_value(graph, source, depth + 1)
            return found if found.known else Value(place=None)
    if name in node.values:
        return Value(node.values[name], True, Place(node.id, name))
    row, _, key = name.partition(".")
    inner = fields(node.values.get(row))
    if key and key in inner:
        return Value(inner[key], True, Place(node.id, name))
    return UNKNOWN


def output_value(graph: Graph, port: Port, depth: int = 0) -> Value:
    """The value an output carries, where a primitive or a switch makes it."""
    node = graph.nodes[port.node]
    if depth > _DEEPEST:
        return UNKNOWN
    if node.type == "ComfySwitchNode":
        branch = switch_branch(graph, node, depth)
        return value_of(graph, node, branch, depth + 1) if branch else UNKNOWN
    linked = [name for name, entry in node.inputs.items() if entry.link is not None]
    if any(name not in _VALUE_NAMES for name in linked):
        return UNKNOWN
    for name in _VALUE_NAMES:
        if name in node.values or name in linked:
            return value_of(graph, node, name, depth + 1)
    return Value(node.raw[0], True, None) if len(node.raw) == 1 and not node.inputs else UNKNOWN


def switch_branch(graph: Graph, node: Node, depth: int = 0) -> str:
    """The input a ``ComfySwitchNode`` lets through, ``on_true`` or ``on_false``; empty if that is not known."""
    switch = value_of(graph, node, "switch", depth + 1)
    if not switch.known or not isinstance(switch.value, (bool, int)):
        return ""
    return "on_true" if switch.value else "on_false"


def first_number(graph: Graph, node: Node, names: tuple[str, ...]) -> Value:
    """The first of several widgets the node has."""
    for name in names:
        if name in node.values or name in node.inputs:
            return value_of(graph, node, name)
    return UNKNOWN
