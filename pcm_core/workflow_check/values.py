"""What a widget holds, through the primitives and switches that may feed it, and where that value can be changed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from .computed import computed
from .graph import Constant, Graph, Node, Place, Port
from .shapes import fields, items

_DEEPEST = 40
_CONTROLS = ("fixed", "increment", "decrement", "randomize")
# Inputs of switches of this and other packs: for true and false, what says which, and the number of one of many.
_TWO_WAYS = (("on_true", "on_false"), ("input_true", "input_false"), ("ttrue", "ffalse"))
_CONDITIONS = ("switch", "boolean", "condition", "select")
_NUMBERS = ("select", "index", "Input", "selected_input", "select_index")
_INDEXED = ("easy anythingIndexSwitch", "easy ifElse", "ComfySoftSwitchNode")
# Where primitive nodes of this and other packs keep their value.
_VALUE_NAMES = (
    "value",
    "Value",
    "int",
    "float",
    "boolean",
    "number",
    "string",
    "Number",
    "integer",
    "seed",
    "text",
    "choice",
)


@dataclass(frozen=True)
class Value:
    """A widget's value.

    Attributes:
        known: whether the workflow says it; False where another node computes it.
        place: the widget to change; ``None`` where there is none.
        because: the node whose output is not known here; empty where the value is, or nothing says it.
    """

    value: Any = None
    known: bool = False
    place: Place | None = None
    because: str = ""

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
            return found if found.known else Value(because=found.because or graph.nodes[source.node].name)
    if name in node.values:
        return Value(node.values[name], True, Place(node.id, name))
    row, *keys = name.split(".")
    found = node.values.get(row)
    for key in keys:
        listed = items(found)
        found = listed[int(key)] if key.isdigit() and int(key) < len(listed) else fields(found).get(key)
    return Value(found, True, Place(node.id, name)) if keys and found is not None else UNKNOWN


def output_value(graph: Graph, port: Port, depth: int = 0) -> Value:
    """The value an output carries, where a primitive, a switch or a formula makes it."""
    node = graph.nodes[port.node]
    if depth > _DEEPEST:
        return Value(because=node.name)
    if port not in graph.values:
        graph.values[port] = Value(because=node.name)  # what a loop comes back to
        graph.values[port] = _output(graph, node, port, depth)
    return graph.values[port]


def _output(graph: Graph, node: Node, port: Port, depth: int) -> Value:
    branch = chosen_input(graph, node, depth)
    if branch is not None:
        return value_of(graph, node, branch, depth + 1) if branch else Value(because=node.name)
    linked = [name for name, entry in node.inputs.items() if entry.link is not None]
    made = computed(graph, node, port.slot, lambda name: value_of(graph, node, name, depth + 1).value)
    if made is not None:
        return Value(made, True)
    if any(name not in _VALUE_NAMES for name in linked) or {"a", "b", "expression"} & node.inputs.keys():
        return Value(because=node.name)
    for name in _VALUE_NAMES:
        if name in node.values or name in linked:
            return value_of(graph, node, name, depth + 1)
    alone = len(node.raw) == 1 or (len(node.raw) == 2 and node.raw[1] in _CONTROLS)
    return Value(node.raw[0], True, None) if alone and not node.inputs else Value(because=node.name)


def chosen_input(graph: Graph, node: Node, depth: int = 0) -> str | None:
    """The input that a switch lets through: empty if that is not known, ``None`` if the node is no switch."""
    linked = [name for name, entry in node.inputs.items() if entry.link is not None]
    for yes, no in _TWO_WAYS:
        if (yes in linked or no in linked) and (names := [n for n in _CONDITIONS if _has(node, n)]):
            switch = value_of(graph, node, names[0], depth + 1)
            if not switch.known or not isinstance(switch.value, (bool, int)):
                return ""
            return yes if switch.value else no
    if "switch" not in node.type.lower() and node.type not in _INDEXED:
        return None
    number = next((value_of(graph, node, name, depth + 1) for name in _NUMBERS if _has(node, name)), None)
    if number is None:  # the first that is there; what is muted is not
        return next((name for name in linked if graph.source(node.id, name) is not None), "")
    found = (
        [name for name in linked if re.search(rf"(?<!\d)0*{number.count}$", name)] if number.count is not None else []
    )
    return found[0] if found else ""


def source_node(graph: Graph, node: Node, name: str) -> Node | None:
    """The node that feeds an input, through switches; ``None`` where there is none, or a switch may go either way."""
    for _ in range(_DEEPEST):
        source = graph.source(node.id, name)
        if not isinstance(source, Port):
            return None
        node = graph.nodes[source.node]
        branch = chosen_input(graph, node)
        if branch is None:
            return node
        name = branch
    return None


def _has(node: Node, name: str) -> bool:
    return name in node.values or name in node.inputs


def first_number(graph: Graph, node: Node, names: tuple[str, ...]) -> Value:
    """The first of several widgets the node has."""
    for name in names:
        if name in node.values or name in node.inputs:
            return value_of(graph, node, name)
    return UNKNOWN
