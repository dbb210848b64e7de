"""What nodes that compute a number hand on: maths nodes of the host and of common packs, as far as they are pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .arithmetic import formula
from .graph import Graph, Node

# Reads an input of a node: a number, true or false, a text; None where it is not known.
Read = Callable[[str], Any]
_SIGNS = {
    "add": "+", "addition": "+", "plus": "+", "+": "+", "sub": "-", "subtract": "-", "subtraction": "-", "minus": "-",
    "-": "-", "mul": "*", "multiply": "*", "multiplication": "*", "*": "*", "div": "/", "divide": "/", "division": "/",
    "/": "/", "floordiv": "//", "floor division": "//", "integer division": "//", "//": "//", "mod": "%",
    "modulo": "%", "modulus": "%", "%": "%", "pow": "**", "power": "**", "exponentiation": "**", "**": "**",
    "min": "min", "max": "max",
}  # fmt: skip
_FORMULAS = ("expression", "formula", "equation")
_OPERATORS = ("operation", "op", "operator", "mode")
_WHOLE = re.compile(r"\bint|integer|mathint|^cm_int", re.IGNORECASE)


def computed(graph: Graph, node: Node, slot: int, read: Read) -> Any:
    """The value of an output of a node that computes; ``None`` where that is not known here.

    Args:
        slot: of the output; a node may give one number as FLOAT, INT and BOOLEAN.
        read: reads an input of this node.
    """
    found = _result(node, read)
    if found is None:
        return None
    kind = node.outputs[slot] if slot < len(node.outputs) else ""
    if not kind and node.type == "ComfyMathExpression":
        kind = ("FLOAT", "INT", "BOOLEAN")[slot] if slot < 3 else ""
    if not kind and node.type == "ComfyNumberConvert":
        kind = ("FLOAT", "INT")[slot] if slot < 2 else ""
    return _as_kind(found, kind)


def _as_kind(value: Any, kind: str) -> Any:
    if kind == "BOOLEAN":
        return bool(value)
    if not isinstance(value, (int, float)):
        return value
    return int(value) if kind == "INT" else float(value) if kind == "FLOAT" else value


def _result(node: Node, read: Read) -> Any:
    names = set(node.values) | set(node.inputs)
    if node.type in ("ComfyNotNode", "InvertBooleanNode"):
        value = read("value" if "value" in names else "boolean")
        return None if value is None else not value
    if node.type in ("ComfyAndNode", "ComfyOrNode"):
        values = [read(name) for name, entry in node.inputs.items() if entry.link is not None]
        known = values and None not in values
        return (all if node.type == "ComfyAndNode" else any)(values) if known else None
    if node.type == "ComfyNumberConvert":
        return _number(read("value"))
    formulas = (*_FORMULAS, "value") if {"a", "b"} & names else _FORMULAS
    text = next((read(name) for name in formulas if name in names and _is_formula(read(name))), None)
    if text is not None:
        return formula(text, _letters(names, read))
    return _operation(node, names, read)


def _is_formula(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _letters(names: set[str], read: Read) -> dict[str, float | bool]:
    """What a formula calls a, b and c."""
    found: dict[str, float | bool] = {}
    for name in sorted(names):
        short = name.rpartition(".")[2]
        if re.fullmatch(r"[a-z]|(int|float|num|var|value)_?[a-z0-9]", short):
            value = _number(read(name))
            if value is not None:
                found[short] = value
    return found


def _number(value: Any) -> float | bool | None:
    if isinstance(value, str):
        try:
            return float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) else None


def _operation(node: Node, names: set[str], read: Read) -> Any:
    """Two numbers and the name of what is done with them."""
    word = next((read(name) for name in _OPERATORS if name in names), None)
    sign = _SIGNS.get(str(word).lower().replace("_", " ").strip(), "")
    pair = next((p for p in (("a", "b"), ("number_a", "number_b"), ("A", "B"), ("x", "y")) if set(p) <= names), None)
    if not sign or pair is None:
        return None
    values = [_number(read(name)) for name in pair]
    if None in values:
        return None
    text = f"{sign}(a, b)" if sign.isalpha() else f"a {sign} b"
    found = formula(text, {"a": values[0] or 0, "b": values[1] or 0})
    whole = sign == "/" and bool(_WHOLE.search(node.type))
    return int(found) if whole and found is not None else found
