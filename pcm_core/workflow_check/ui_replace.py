"""Nodes put in the place of others in the UI form of a workflow, inside subgraphs too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .finding import InsertAfter, Replace
from .shapes import fields, is_list, is_object, items, objects
from .ui_edit import UIEditor, left_of, next_id, slot_of

_INPUT_NODE = "-10"
Link = dict[str, Any] | list[Any]
Graph = dict[str, Any]
_KEYS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


@cache
def node_slots() -> Mapping[str, Mapping[str, Any]]:
    """Inputs, outputs and widgets with their defaults of the nodes that are put in."""
    return json.loads(Path(__file__).with_name("pcm_slots.json").read_text(encoding="utf-8"))


class UIReplacer(UIEditor):
    """An editor that can also exchange nodes. Every method says whether it could."""

    def replace(self, step: Replace) -> bool:
        found = self.find(step.at)
        if found is None:
            return False
        graph, old = found
        made = _new(graph, step.type, step.values, old.get("pos"), _control(self._seeded(step)))
        for name, path, old_name in step.inputs:
            self._feed_like(graph, made, name, path, old_name)
        for path, slot, new_slot in step.outputs:
            self._move(path, slot, made["id"], new_slot)
        for path, slot, name in step.through:
            source = self.find(path)
            entry = slot_of(source[1], name) if source else None
            link = _link(source[0], entry.get("link")) if source and entry else None
            if link is not None:
                self._move(path, slot, _get(link, 1), _get(link, 2))
        return True

    def insert_after(self, step: InsertAfter) -> bool:
        found = self.find(step.node)
        if found is None or step.slot >= len(objects(found[1].get("outputs"))):
            return False
        graph, node = found
        x, y = left_of(node)
        made = _new(graph, step.type, step.values, [x + 300, y + 170], None)
        self._move(step.node, step.slot, made["id"], 0)
        entry = slot_of(made, "model")
        assert entry is not None
        self.link(graph, node.get("id"), step.slot, made, entry)
        return True

    def remove(self, path: str) -> bool:
        found = self.find(path)
        if found is None:
            return False
        graph, node = found
        for entry in objects(node.get("inputs")):
            if entry.get("link") is not None:
                self.unlink(graph, node, entry)
        for other in objects(graph.get("nodes")):
            for entry in objects(other.get("inputs")):
                link = _link(graph, entry.get("link"))
                if link is not None and _get(link, 1) == node.get("id"):
                    self.unlink(graph, other, entry)
        graph["nodes"] = [other for other in items(graph.get("nodes")) if other is not node]
        return True

    def _seeded(self, step: Replace) -> dict[str, Any] | None:
        """The node whose seed the new one takes over: its first with a control after the seed."""
        for path in dict.fromkeys((step.at, *(path for _, path, _ in step.inputs))):
            found = self.find(path)
            if found is not None and _control(found[1]):
                return found[1]
        return None

    def _feed_like(self, graph: Graph, made: dict[str, Any], name: str, path: str, old_name: str) -> None:
        """Feed an input of a new node from what feeds another input of the same graph."""
        found = self.find(path)
        entry = slot_of(found[1], old_name) if found else None
        link = _link(graph, entry.get("link")) if entry else None
        target = slot_of(made, name) or _widget_slot(made, name)
        if link is not None:
            self.link(graph, _get(link, 1), _get(link, 2), made, target)

    def _move(self, path: str, slot: int, origin: Any, new_slot: int) -> None:
        """Everything that an output feeds is fed from another node of the same graph."""
        found = self.find(path)
        if found is None:
            return
        graph, node = found
        for link in items(graph.get("links")):
            if _get(link, 1) == node.get("id") and _get(link, 2) == slot:
                _set(link, 1, origin)
                _set(link, 2, new_slot)
                _note(graph, node.get("id"), slot, _get(link, 0), there=False)
                _note(graph, origin, new_slot, _get(link, 0), there=True)


def _new(
    graph: Graph, kind: str, values: Sequence[tuple[str, Any]], pos: Any, control: str | None
) -> dict[str, Any]:  # fmt: skip
    facts = node_slots()[kind]
    stored: list[Any] = []
    given = dict(values)
    for name, default in facts["defaults"].items():
        stored.append(given.get(name, default))
        if name == "seed":
            stored.append(control or "fixed")
    made: dict[str, Any] = {
        "id": next_id(graph, "node"), "type": kind, "pos": pos, "size": [300, 200], "flags": {}, "order": 0, "mode": 0,
        "properties": {"Node name for S&R": kind},
        "inputs": [{"name": name, "type": type_, "link": None} for name, type_ in facts["inputs"].items()],
        "outputs": [{"name": type_, "type": type_, "links": []} for type_ in facts["outputs"]],
        "widgets_values": stored,
    }  # fmt: skip
    graph["nodes"].append(made)
    return made


def _widget_slot(made: dict[str, Any], name: str) -> dict[str, Any]:
    kind = {"seed": "INT", "lora_name": "COMBO"}.get(name, "FLOAT")
    entry: dict[str, Any] = {"name": name, "type": kind, "link": None, "widget": {"name": name}}
    made["inputs"].append(entry)
    return entry


def _control(node: dict[str, Any] | None) -> str | None:
    """What happens to the seed after a run, as a node stores it."""
    names = ("fixed", "increment", "decrement", "randomize")
    return next((value for value in items((node or {}).get("widgets_values")) if value in names), None)


def _note(graph: Graph, origin: Any, slot: int, link: Any, *, there: bool) -> None:
    """Enter a link at its origin, or take it out."""
    if str(origin) == _INPUT_NODE:
        ends, key = objects(graph.get("inputs")), "linkIds"
    else:
        ends = [end for node in objects(graph.get("nodes")) if node.get("id") == origin
                for end in objects(node.get("outputs"))]  # fmt: skip
        key = "links"
    if 0 <= slot < len(ends):
        kept = [entry for entry in items(ends[slot].get(key)) if entry != link]
        ends[slot][key] = [*kept, link] if there else kept


def _link(graph: Graph, name: Any) -> Link | None:
    """A link by its number; ``None`` where there is none, or it says no output it comes from."""
    found = next((link for link in items(graph.get("links")) if name is not None and _get(link, 0) == name), None)
    return found if type(_get(found, 2)) is int else None


def _get(link: Any, part: int) -> Any:
    if is_object(link):
        return fields(link).get(_KEYS[part])
    return items(link)[part] if len(items(link)) > part else None


def _set(link: Any, part: int, value: Any) -> None:
    if is_object(link):
        fields(link)[_KEYS[part]] = value
    elif is_list(link):
        items(link)[part] = value
