"""What the check finds, and what would mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .graph import Place
from .values import Value

Level = Literal["wrong", "doubtful", "note"]
LEVELS: tuple[Level, ...] = ("wrong", "doubtful", "note")


@dataclass(frozen=True)
class SetWidget:
    """Give a widget a value. A widget that is fed by a link gets its own value and loses the link."""

    node: str
    widget: str
    value: Any


@dataclass(frozen=True)
class Bypass:
    """Take a node out of the way of its model."""

    node: str


@dataclass(frozen=True)
class Connect:
    """Feed an input from another node's output."""

    node: str
    input: str
    source: str
    slot: int = 0


@dataclass(frozen=True)
class Insert:
    """Put a new node with these widgets between an input and what feeds it."""

    node: str
    input: str
    type: str
    values: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class InsertAfter:
    """Put a new node with these widgets between an output and all that it feeds."""

    node: str
    slot: int
    type: str
    values: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Replace:
    """A new node that takes over the links of others, which stay until ``Remove`` takes them.

    Attributes:
        at: the node whose place it takes.
        type: of the new node; ``values`` its widgets, the others keep their defaults.
        inputs: (input of the new node, old node, old input): it is fed from what feeds that.
        outputs: (old node, old output, new output): it feeds what that fed.
        through: (old node, old output, old input): what that output fed is fed from what feeds that input.
    """

    at: str
    type: str
    values: tuple[tuple[str, Any], ...] = ()
    inputs: tuple[tuple[str, str, str], ...] = ()
    outputs: tuple[tuple[str, int, int], ...] = ()
    through: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True)
class Remove:
    """Delete a node."""

    node: str


Mend = SetWidget | Bypass | Connect | Insert | InsertAfter | Replace | Remove


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as the file's authors mean it.

    Attributes:
        rule: what kind of thing, a key of ``messages.json``.
        level: ``wrong``, ``doubtful`` or ``note``.
        node: id of the node to look at; ``title`` what people see above it.
        file: name of the few-step file it is about.
        facts: what the sentences of ``messages.json`` are filled with.
        why: where the file's authors say so.
        mends: what to change; empty where only a person can.
    """

    rule: str
    level: Level
    node: str
    title: str
    file: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    why: str = ""
    mends: tuple[Mend, ...] = ()


def set_value(value: Value, place: Place, wanted: Any) -> tuple[Mend, ...]:
    """A mend that gives a widget a value where it is kept: in the widget itself or in what feeds it."""
    where = value.place or place
    return (SetWidget(where.node, where.widget, wanted),)
