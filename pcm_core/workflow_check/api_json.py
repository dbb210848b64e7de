"""The API form of a workflow: ``{"5": {"class_type": ..., "inputs": {...}}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .graph import Graph, Input, Link, Node
from .notes import Note
from .shapes import at, fields, items


def is_api(data: Mapping[str, Any]) -> bool:
    """Whether this is an API prompt: every entry but comments is a node with a class."""
    return any("class_type" in fields(entry) for entry in data.values())


def read_api(data: Mapping[str, Any]) -> Graph:
    """One graph from an API prompt. Entries that are no nodes are left out, with a note."""
    graph = Graph(form="api")
    for name, entry in data.items():
        if isinstance(at(entry, "class_type"), str):
            graph.nodes[str(name)] = _node(str(name), fields(entry))
        else:
            graph.notes.append(Note.of("no_node", name=str(name)[:80]))
    return graph


def _node(name: str, entry: dict[str, Any]) -> Node:
    values: dict[str, Any] = {}
    inputs: dict[str, Input] = {}
    for key, value in fields(entry.get("inputs")).items():
        link = _link(value)
        if link is None:
            values[key] = fields(value).get("__value__", value)
        else:
            inputs[key] = Input(link=link)
    title = str(at(entry, "_meta", "title") or "")
    return Node(id=name, type=entry["class_type"], title=title, values=values, inputs=inputs, stored=name)


def _link(value: Any) -> Link | None:
    if len(items(value)) != 2:
        return None
    node, slot = items(value)
    if isinstance(node, (str, int)) and type(slot) is int:
        return Link("", str(node), slot)
    return None
