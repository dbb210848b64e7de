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
