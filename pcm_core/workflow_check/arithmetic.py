"""Formulas of maths nodes, worked out without running anything: numbers, comparisons and a few functions."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

_LONGEST = 500
_LARGEST = 1e15
_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type[ast.AST], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_,
}  # fmt: skip
_COMPARED: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min, "max": max, "abs": abs, "round": round, "ceil": math.ceil, "floor": math.floor, "int": int,
    "float": float, "sqrt": math.sqrt, "log": math.log, "log2": math.log2, "log10": math.log10, "pow": operator.pow,
}  # fmt: skip


def formula(text: str, names: Mapping[str, float | bool]) -> float | bool | None:
    """What a formula gives; ``None`` where it is none, or uses what is not known here.

    Args:
        text: such as ``a * 2 + 1`` or ``8 if b > 2 else 4``.
        names: values of the names in it.
    """
    if len(text) > _LONGEST:
        return None
    try:
        found = _value(ast.parse(text.strip(), mode="eval").body, names)
        return found if isinstance(found, bool) or math.isfinite(found) else None
    except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError):
        return None


def _value(tree: ast.AST, names: Mapping[str, float | bool]) -> Any:
    match tree:
        case ast.Constant(value=int() | float() as value):
            return _small(value)
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _value(left, names), _value(right, names))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, names))
        case ast.BoolOp(op=op, values=values):
            return (all if isinstance(op, ast.And) else any)([_value(value, names) for value in values])
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(left, names), *(_value(other, names) for other in others)]
            return all(_COMPARED[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, names) else orelse, names)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            values = [_value(argument, names) for argument in arguments]
            return _binary(ast.Pow(), *values) if name == "pow" else _small(_FUNCTIONS[name](*values))
        case _:
            raise ValueError("no arithmetic")


def _binary(op: ast.AST, left: Any, right: Any) -> Any:
    if isinstance(op, ast.Pow) and (abs(left) > 1e6 or abs(right) > 100):
        raise ValueError("too large")
    found = _BINARY[type(op)](left, right)
    if isinstance(found, complex):
        raise ValueError("no real number")
    return _small(found)


def _small(value: Any) -> Any:
    if abs(value) > _LARGEST:
        raise ValueError("too large")
    return value
