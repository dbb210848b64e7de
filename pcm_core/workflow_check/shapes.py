"""JSON that others wrote, as lists and objects: whatever is of another kind is empty."""

from __future__ import annotations

from typing import Any, cast


def is_list(value: Any) -> bool:
    """Whether a value is a JSON list."""
    return isinstance(value, list)


def is_object(value: Any) -> bool:
    """Whether a value is a JSON object."""
    return isinstance(value, dict)


def items(value: Any) -> list[Any]:
    """The entries of a list, the same object; an empty one for anything else."""
    return cast(list[Any], value) if isinstance(value, list) else []


def fields(value: Any) -> dict[str, Any]:
    """The entries of an object, the same object; an empty one for anything else."""
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list."""
    return [cast(dict[str, Any], entry) for entry in items(value) if isinstance(entry, dict)]


def at(value: Any, *names: str) -> Any:
    """A value deep inside objects; ``None`` if there is none."""
    for name in names:
        value = fields(value).get(name)
    return value


def put(value: Any, path: list[str], new: Any) -> bool:
    """Set a value deep inside objects and lists, ``["0", "strength"]``; says whether there is such a place."""
    *way, last = path
    for name in way:
        value = items(value)[int(name)] if name.isdigit() and int(name) < len(items(value)) else at(value, name)
    if is_object(value):
        value[last] = new
        return True
    if last.isdigit() and int(last) < len(items(value)):
        value[int(last)] = new
        return True
    return False
