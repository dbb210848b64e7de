"""Graphs in Python: one description of nodes and links, written as UI workflow, API prompt or subgraph blueprint.

A node is added with the inputs that differ from the defaults of its schema. Nodes are placed in columns from left to
right and stacked within a column; their height follows from their widgets.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from .host_nodes import Info

Link = list[Any]
PACK = "phased-consistency"
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_GAP, _TITLE, _ROW, _TEXT = 40, 34, 24, 130
_PICTURE = 300
_SCREEN = (16, 9)
_SHOWING = ("SaveImage", "PreviewImage", "LoadImage", "SaveAnimatedWEBP", "PreviewAny", "PCMDistillLora")
_ADDRESS = re.compile(r"\(http[^)]*\)")
_GROWS = "COMFY_AUTOGROW_V3"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A file to download: its name, its folder in ``models``, and its URL."""

    name: str
    directory: str
    url: str


@dataclass
class Node:
    """One node of a graph; ``node[0]`` is its first output, in the form that inputs of other nodes take."""

    number: int
    kind: str
    title: str
    column: int
    width: int
    info: Info
    inputs: dict[str, Any]
    beside: Node | None = None
    models: list[Model] = field(default_factory=list)

    def __getitem__(self, slot: int) -> Link:
        return [str(self.number), slot]

    @property
    def height(self) -> int:
        """Height in pixels in the frontend: sockets, then widgets."""
        specs = specs_of(self.info)
        widgets = {name: options for name, (type_, options) in specs.items() if is_widget(type_, options)}
        sockets = max(len(specs) - len(widgets), len(self.info["output"]))
        texts = sum(bool(options.get("multiline")) for options in widgets.values())
        extra = sum(bool(options.get("control_after_generate")) for options in widgets.values())
        picture = _PICTURE if self.kind in _SHOWING else 0
        return 16 + 20 * sockets + _ROW * (len(widgets) - texts + extra) + _TEXT * texts + picture


@dataclass
class Graph:
    """Nodes and the note that explains them. ``infos`` describes every node class by id."""

    infos: dict[str, Info]
    version: str
    nodes: list[Node] = field(default_factory=list)
    text: str = ""

    def add(self, kind: str, column: int, *, title: str = "", wide: int = 320, beside: Node | None = None,
            **inputs: Any) -> Node:  # fmt: skip
        """Add a node; a ``Model`` as a value becomes its file name and a download hint.

        Args:
            wide: width in pixels.
            beside: a node of an earlier column; the new node is placed no higher than it.
        """
        models = [value for value in inputs.values() if isinstance(value, Model)]
        values = {name: value.name if isinstance(value, Model) else value for name, value in inputs.items()}
        info = self.infos[kind]
        node = Node(
            len(self.nodes) + 1, kind, title or info["display_name"], column, wide, info, values, beside, models
        )
        self.nodes.append(node)
        return node

    def note(self, text: str) -> None:
        """The MarkdownNote of the graph."""
        self.text = text.strip() + "\n"

    def to_api(self) -> dict[str, Any]:
        """The API form with every widget value: the host does not fill in defaults."""
        return {
            str(node.number): {
                "class_type": node.kind,
                "inputs": _defaults(node) | node.inputs,
                "_meta": {"title": node.title},
            }
            for node in self.nodes
        }

    def to_ui(self) -> dict[str, Any]:
        """The UI form, schema 0.4 of the frontend."""
        drawn, links = self._drawn()
        if self.text:
            drawn.append(self._drawn_note(self.text, drawn))
        return {
            "version": 0.4, "last_node_id": len(drawn), "last_link_id": len(links), "nodes": drawn, "links": links,
            "groups": [], "config": {}, "extra": {},
        }  # fmt: skip

    def to_blueprint(self, name: str, identity: str, exposed: list[tuple[Node, str]], result: Link) -> dict[str, Any]:
        """A subgraph for the node library.

        Args:
            exposed: widgets of inner nodes that the subgraph node shows, in order.
            result: the link that becomes the output of the subgraph node.
        """
        drawn, links = self._drawn()
        inner: list[dict[str, Any]] = [dict(zip(_LINK_KEYS, link, strict=True)) for link in links]
        by_id = {node["id"]: node for node in drawn}
        inputs: list[dict[str, Any]] = []
        for node, widget in exposed:
            type_ = _type(specs_of(node.info)[widget][0])
            slot = {"name": widget, "type": type_, "widget": {"name": widget}, "link": len(inner) + 1}
            sockets = by_id[node.number]["inputs"]
            inner.append(_link(len(inner) + 1, (-10, len(inputs)), (node.number, len(sockets)), type_))
            sockets.append(slot)
            inputs.append(_port(identity, widget, type_, len(inner), len(inputs), 0))
        source = by_id[int(result[0])]["outputs"][result[1]]
        inner.append(_link(len(inner) + 1, (int(result[0]), result[1]), (-20, 0), source["type"]))
        source["links"].append(len(inner))
        outputs = [_port(identity, source["name"], source["type"], len(inner), 0, 3000)]
        definition = {
            "id": identity, "version": 1, "revision": 0, "config": {}, "name": name, "widgets": [], "groups": [],
            "state": {"lastGroupId": 0, "lastNodeId": len(drawn), "lastLinkId": len(inner), "lastRerouteId": 0},
            "inputNode": {"id": -10, "bounding": [-220, 0, 160, 40 + 20 * len(inputs)]},
            "outputNode": {"id": -20, "bounding": [3000, 0, 120, 60]},
            "inputs": inputs, "outputs": outputs, "nodes": drawn, "links": inner, "extra": {},
        }  # fmt: skip
        outer = {
            "id": len(drawn) + 1, "type": identity, "title": name, "pos": [0, 0], "size": [400, 30 * len(inputs)],
            "flags": {}, "order": 0, "mode": 0,
            "inputs": [_socket(port) | {"widget": {"name": port["name"]}, "link": None} for port in inputs],
            "outputs": [_socket(port) | {"links": []} for port in outputs],
            "properties": {
                "proxyWidgets": [[str(node.number), widget] for node, widget in exposed],
                "cnr_id": PACK, "ver": self.version,
            },
            "widgets_values": [],
        }  # fmt: skip
        return {
            "version": 0.4, "last_node_id": outer["id"], "last_link_id": 0, "nodes": [outer], "links": [],
            "groups": [], "config": {}, "extra": {}, "definitions": {"subgraphs": [definition]},
        }  # fmt: skip

    def _drawn(self) -> tuple[list[dict[str, Any]], list[Link]]:
        links: list[Link] = []
        places = self._places()
        drawn = [self._drawn_node(node, places[node.number], links) for node in self.nodes]
        for link, source, slot, *_ in links:
            drawn[source - 1]["outputs"][slot]["links"].append(link)
        return drawn, links

    def _places(self) -> dict[int, tuple[int, int]]:
        """Top left corner of each node."""
        widths = {column: 0 for column in range(max(node.column for node in self.nodes) + 1)}
        for node in self.nodes:
            widths[node.column] = max(widths[node.column], node.width)
        x = {column: sum(w + _GAP for c, w in widths.items() if c < column) for column in widths}
        y = dict.fromkeys(widths, 0)
        places: dict[int, tuple[int, int]] = {}
        for node in self.nodes:
            top = max(y[node.column], places[node.beside.number][1] if node.beside else 0)
            places[node.number] = (x[node.column], top)
            y[node.column] = top + node.height + _TITLE + _GAP
        return places

    def _drawn_node(self, node: Node, place: tuple[int, int], links: list[Link]) -> dict[str, Any]:
        values = _defaults(node) | node.inputs
        inputs: list[dict[str, Any]] = []
        widgets: list[Any] = []
        for name, (type_, options) in _sockets(node).items():
            socket = {"name": name, "type": _type(type_), "link": None}
            if isinstance(values.get(name), list):
                source, slot = values[name]
                links.append([len(links) + 1, int(source), slot, node.number, len(inputs), _type(type_)])
                inputs.append({**socket, "link": len(links)})
            elif is_widget(type_, options):
                widgets.append(values[name])
                widgets += ["fixed"] if options.get("control_after_generate") else []
                widgets += ["image"] if options.get("image_upload") else []
            else:
                inputs.append(socket)
        outputs = [
            {"name": name, "type": _type(type_), "links": [], "slot_index": slot}
            for slot, (name, type_) in enumerate(zip(node.info["output_name"], node.info["output"], strict=True))
        ]
        return {
            "id": node.number, "type": node.kind, "title": node.title, "pos": list(place),
            "size": [node.width, node.height], "flags": {}, "order": node.number - 1, "mode": 0, "inputs": inputs,
            "outputs": outputs, "properties": self._properties(node), "widgets_values": widgets,
        }  # fmt: skip

    def _properties(self, node: Node) -> dict[str, Any]:
        found: dict[str, Any] = {"Node name for S&R": node.kind}
        found |= {"cnr_id": PACK, "ver": self.version} if node.info["ours"] else {"cnr_id": "comfy-core"}
        if node.models:
            found["models"] = [{"name": m.name, "url": m.url, "directory": m.directory} for m in node.models]
        return found

    def _drawn_note(self, text: str, drawn: list[dict[str, Any]]) -> dict[str, Any]:
        """The note above the nodes or to their left, whichever shows the whole graph larger on a wide screen."""
        width = max(node["pos"][0] + node["size"][0] for node in drawn)
        height = max(node["pos"][1] + node["size"][1] for node in drawn)
        places: dict[float, tuple[list[int], list[int]]] = {}
        for wide, above in ((880, True), (440, False)):
            lines = sum(1 + len(line) * 6 // wide for line in _ADDRESS.sub("", text).splitlines())
            high, room = 50 + 12 * lines, 50 + 17 * lines  # the Vue renderer lets it grow to the height of its text
            used = (width, height + high + _TITLE + _GAP) if above else (width + wide + _GAP, height)
            corner = [0, -room - _TITLE - _GAP] if above else [-wide - _GAP, 0]
            places[min(_SCREEN[0] / used[0], _SCREEN[1] / used[1])] = (corner, [wide, high])
        corner, size = places[max(places)]
        return {
            "id": len(drawn) + 1, "type": "MarkdownNote", "title": "Read me", "pos": corner, "size": size, "flags": {},
            "order": len(drawn), "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text],
        }  # fmt: skip


_LINK_KEYS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def _link(number: int, source: tuple[int, int], target: tuple[int, int], type_: str) -> dict[str, Any]:
    return dict(zip(_LINK_KEYS, (number, *source, *target, type_), strict=True))


def _port(identity: str, name: str, type_: str, link: int, index: int, x: int) -> dict[str, Any]:
    """Input or output of a subgraph; its id must be unique and the same in every run."""
    unique = str(uuid.uuid5(uuid.UUID(identity), f"{name}{x}"))
    return {"id": unique, "name": name, "type": type_, "linkIds": [link], "pos": [x, 20 + 20 * index]}


def _socket(port: dict[str, Any]) -> dict[str, Any]:
    return {"name": port["name"], "type": port["type"]}


def specs_of(info: Info) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Type and options of each input, in the order in which the frontend creates widgets."""
    specs: dict[str, tuple[Any, dict[str, Any]]] = {}
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            type_, *options = info["input"][kind][name]
            specs[name] = (type_, options[0] if options else {})
    return specs


def is_widget(type_: Any, options: dict[str, Any]) -> bool:
    """Whether the frontend makes a widget of it; of an input that takes several types it makes that of the first."""
    first = "COMBO" if isinstance(type_, list) else str(type_).split(",")[0]
    return first in _WIDGETS and not options.get("forceInput")


def _sockets(node: Node) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The inputs of the schema, with the connected slots in place of an autogrow input."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, (type_, options) in specs_of(node.info).items():
        if type_ == _GROWS:  # not !=, which the host's wildcard type overrides
            (template,) = options["template"]["input"]["required"].values()
            found |= {key: (template[0], {}) for key in node.inputs if key.startswith(f"{name}.")}
        else:
            found[name] = (type_, options)
    return found


def _defaults(node: Node) -> dict[str, Any]:
    """The default value of every widget in the schema."""
    values: dict[str, Any] = {}
    for name, (type_, options) in specs_of(node.info).items():
        if is_widget(type_, options):
            choices = type_ if isinstance(type_, list) else options.get("options") or [None]
            values[name] = options.get("default", choices[0] if choices else None)
    return values


def _type(type_: Any) -> str:
    return "COMBO" if isinstance(type_, list) else type_
