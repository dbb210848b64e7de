"""Changes to the UI form of a workflow: widgets, links and nodes, inside subgraphs too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .shapes import at, fields, is_list, is_object, items, objects, put
from .ui_json import instance_widgets, widget_order

_INPUT_NODE = "-10"


class UIEditor:
    """Changes a workflow in place. Every method says whether it could."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        found = objects(at(data, "definitions", "subgraphs"))
        self.subgraphs = {str(entry["id"]): entry for entry in found if "id" in entry}

    def find(self, path: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(graph, node) for an id with the ids of the subgraphs around it."""
        graph, node = self.data, None
        for part in path.split(":"):
            if node is not None:
                graph = self.subgraphs.get(str(node.get("type")), {})
            node = next((n for n in objects(graph.get("nodes")) if str(n.get("id")) == part), None)
            if node is None:
                return None
        return (graph, node) if node is not None else None

    def set_widget(self, path: str, name: str, value: Any) -> bool:
        found = self.find(path)
        if found is None:
            return False
        graph, node = found
        slot = slot_of(node, name)
        if slot is not None and slot.get("link") is not None:
            self.unlink(graph, node, slot)
        return self._store(node, name, value)

    def _store(self, node: dict[str, Any], name: str, value: Any) -> bool:
        values = node.get("widgets_values")
        if is_object(values):
            fields(values)[name] = value
            return True
        stored = items(values)
        row, *keys = name.split(".")
        if keys and self._index(node, name, stored) is None:
            index = self._index(node, row, stored)
            rows = [entry for entry in objects(stored) if "lora" in entry]
            if index is None and row.removeprefix("lora_").isdigit():  # rgthree's, counted from 1
                return put(rows, [str(int(row.removeprefix("lora_")) - 1), *keys], value)
            return index is not None and put(stored, [str(index), *keys], value)
        index = self._index(node, name, stored)
        if index is None:
            return False
        stored[index] = value
        return True

    def _index(self, node: dict[str, Any], name: str, stored: list[Any]) -> int | None:
        kind = str(node.get("type"))
        if kind in self.subgraphs:
            order = instance_widgets(node, self.subgraphs[kind])
        elif kind == "PrimitiveNode":
            order = ["value"]
        else:
            order = widget_order(kind, objects(node.get("inputs")), stored)
        return order.index(name) if name in order and order.index(name) < len(stored) else None

    def bypass(self, path: str) -> bool:
        found = self.find(path)
        if found is None:
            return False
        found[1]["mode"] = 4
        return True

    def connect(self, path: str, name: str, source: str, slot: int) -> bool:
        """Feed an input from another node of the same graph."""
        target, origin = self.find(path), self.find(source)
        if target is None or origin is None or path.rpartition(":")[0] != source.rpartition(":")[0]:
            return False
        graph, node = target
        entry = slot_of(node, name)
        if entry is None or slot >= len(objects(origin[1].get("outputs"))):
            return False
        if entry.get("link") is not None:
            self.unlink(graph, node, entry)
        self.link(graph, origin[1].get("id"), slot, node, entry)
        return True

    def insert(self, path: str, name: str, kind: str, values: dict[str, Any]) -> bool:
        """Put a new node between an input and what feeds it."""
        found = self.find(path)
        entry = slot_of(found[1], name) if found else None
        if found is None or entry is None or entry.get("link") is None:
            return False
        graph, node = found
        link = next((link for link in _links(graph) if link[0] == entry["link"]), None)
        if link is None:
            return False
        _, origin, origin_slot, _, _, link_type = link
        made: dict[str, Any] = {
            "id": next_id(graph, "node"), "type": kind, "pos": left_of(node), "size": [270, 58], "flags": {},
            "order": 0, "mode": 0, "properties": {"Node name for S&R": kind},
            "inputs": [{"name": "model", "type": link_type, "link": None}],
            "outputs": [{"name": "MODEL", "type": link_type, "links": []}],
            "widgets_values": list(values.values()),
        }  # fmt: skip
        self.unlink(graph, node, entry)
        graph["nodes"].append(made)
        self.link(graph, origin, origin_slot, made, made["inputs"][0])
        self.link(graph, made["id"], 0, node, entry)
        return True

    def unlink(self, graph: dict[str, Any], node: dict[str, Any], slot: dict[str, Any]) -> None:
        name, slot["link"] = slot["link"], None
        graph["links"] = [link for link in items(graph.get("links")) if _link_id(link) != name]
        ends = [("links", output) for other in objects(graph.get("nodes")) for output in objects(other.get("outputs"))]
        ends += [("linkIds", entry) for entry in objects(graph.get("inputs"))]
        for key, end in ends:
            if name in items(end.get(key)):
                end[key] = [entry for entry in items(end[key]) if entry != name]

    def link(self, graph: dict[str, Any], origin: Any, slot: int, node: dict[str, Any], entry: dict[str, Any]) -> None:
        name = next_id(graph, "link")
        position = next(index for index, known in enumerate(node["inputs"]) if known is entry)
        links = items(graph.get("links"))
        as_list = is_list(links[0]) if links else graph is self.data and graph.get("version") != 1
        parts = [name, origin, slot, node["id"], position, entry.get("type")]
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        graph.setdefault("links", []).append(parts if as_list else dict(zip(keys, parts, strict=True)))
        entry["link"] = name
        if str(origin) == _INPUT_NODE:
            ends, key = objects(graph.get("inputs")), "linkIds"
        else:
            source = [known.get("outputs") for known in objects(graph["nodes"]) if known.get("id") == origin]
            ends = objects(source[0]) if source else []
            key = "links"
        if 0 <= slot < len(ends):
            ends[slot][key] = [*items(ends[slot].get(key)), name]


def slot_of(node: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((slot for slot in objects(node.get("inputs")) if slot.get("name") == name), None)


def _links(graph: dict[str, Any]) -> Iterator[list[Any]]:
    for link in items(graph.get("links")):
        if len(items(link)) >= 6:
            yield items(link)[:6]
        elif is_object(link):
            yield [link.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]


def _link_id(link: Any) -> Any:
    return fields(link).get("id") if is_object(link) else (items(link) or [None])[0]


def next_id(graph: dict[str, Any], kind: str) -> int:
    """A free id of a node or link, counted on wherever the file counts them."""
    used = (
        [link[0] for link in _links(graph)] if kind == "link" else [node.get("id") for node in objects(graph["nodes"])]
    )
    state = graph.get("state")
    key = "lastLinkId" if kind == "link" else "lastNodeId"
    last = graph.get(f"last_{kind}_id")
    counted = fields(state).get(key)
    free = max([number for number in (*used, counted, last) if type(number) is int], default=0) + 1
    if is_object(state):
        fields(state)[key] = free
    if last is not None or not is_object(state):
        graph[f"last_{kind}_id"] = free
    return free


def left_of(node: dict[str, Any]) -> list[float]:
    given = node.get("pos")
    # A Float32Array is written as an object.
    where = [fields(given).get("0"), fields(given).get("1")] if is_object(given) else items(given)[:2]
    numbers = [float(part) for part in where if isinstance(part, (int, float))]
    x, y = numbers if len(numbers) == 2 else (0.0, 0.0)
    return [x, y - 110]
