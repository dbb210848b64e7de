"""A template as one flat graph: subgraphs expanded; bypasses, reroutes and switches followed to the real node."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..paths import OFFICIAL_TEMPLATES

BYPASSED, SUBGRAPH_IN, SUBGRAPH_OUT = 4, -10, -20
# Widgets in their order, for the nodes whose values matter; "*" is control_after_generate.
_SIZE = ("width", "height")
WIDGETS: dict[str, tuple[str, ...]] = {
    "KSampler": ("seed", "*", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        "add_noise", "noise_seed", "*", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
        "return_with_leftover_noise",
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "*", "cfg"),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "ManualSigmas": ("sigmas",), "SDTurboScheduler": ("steps", "denoise"), "SplitSigmas": ("step",),
    "Flux2Scheduler": ("steps", *_SIZE), "LTXVScheduler": ("steps", "max_shift", "base_shift", "stretch", "terminal"),
    "KSamplerSelect": ("sampler_name",), "SamplerEulerAncestral": ("eta", "s_noise"), "CFGGuider": ("cfg",),
    "ModelSamplingAuraFlow": ("shift",), "ModelSamplingSD3": ("shift",),
    "ModelSamplingFlux": ("max_shift", "base_shift", *_SIZE), "MiniMaxH3SigmaShift": ("shift_video", "shift_audio"),
    "UNETLoader": ("unet_name", "weight_dtype"), "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "PrimitiveInt": ("value", "*"), "PrimitiveFloat": ("value",), "PrimitiveBoolean": ("value",),
    "PrimitiveNode": ("value", "*"), "ComfySwitchNode": ("switch",), "ComfySoftSwitchNode": ("switch",),
}  # fmt: skip
SWITCHES = ("ComfySwitchNode", "ComfySoftSwitchNode")
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass
class Node:
    """A node of the flat graph; ``links`` are its inputs, by name: (link's scope, origin id, origin slot)."""

    id: str
    type: str
    mode: int
    values: dict[str, Any]
    raw: Mapping[str, Any]
    scope: str
    outer: Node | None
    links: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """What a widget of a subgraph hands in, instead of a node."""

    value: Any


def _widget_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = raw.get("widgets_values")
    if isinstance(given, dict):
        return dict(given)
    listed = list(given or ())
    names = WIDGETS.get(raw["type"])
    if names is None:
        names = tuple(entry["widget"]["name"] for entry in raw.get("inputs") or () if entry.get("widget"))
        controls = [i for i, value in enumerate(listed) if value in ("fixed", "randomize", "increment", "decrement")]
        listed = [value for i, value in enumerate(listed) if i not in controls]
    values = {name: value for name, value in zip(names, listed, strict=False) if name != "*"}
    return values | {"": listed}  # everything, for what has no name


class Graph:
    """One template.

    Args:
        workflow: as in the file.
        switches: node id of a switch to its position, where it differs from what the template has.
    """

    def __init__(self, workflow: Mapping[str, Any], switches: Mapping[str, bool] | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        self.switches = dict(switches or {})
        self._subgraphs = {g["id"]: g for g in (workflow.get("definitions") or {}).get("subgraphs", ())}
        self._links: dict[str, dict[int, tuple[int, int, int, int]]] = {}
        self._expand(workflow, "", None, 0)

    def _expand(self, graph: Mapping[str, Any], scope: str, outer: Node | None, mode: int) -> None:
        self._links[scope] = links = dict(map(_link, filter(None, graph.get("links") or ())))
        for raw in graph["nodes"]:
            node = Node(
                f"{scope}{raw['id']}", raw["type"], raw.get("mode", 0) or mode, _widget_values(raw), raw, scope, outer
            )
            for entry in raw.get("inputs") or ():
                if entry.get("link") in links:
                    node.links[entry["name"]] = links[entry["link"]][:2]
            self.nodes[node.id] = node
            if (inner := self._subgraphs.get(raw["type"])) is not None:
                names = [entry["name"] for entry in inner["inputs"] if entry["type"] in _WIDGET_TYPES]
                own = [entry["name"] for entry in raw.get("inputs") or () if entry.get("widget")]
                listed = node.values[""]
                names = names if len(names) == len(listed) else own
                node.values |= dict(zip(names, listed, strict=False))
                self._expand(inner, f"{node.id}:", node, node.mode)

    def source(self, node: Node, name: str) -> tuple[Node, int] | Value | None:
        """The real node and slot behind an input; ``None`` where nothing is."""
        if name not in node.links:
            return None
        scope, outer, (origin, slot) = node.scope, node.outer, node.links[name]
        for _ in range(80):
            if origin == SUBGRAPH_IN:
                assert outer is not None
                entry = self._subgraphs[outer.type]["inputs"][slot]["name"]
                if entry not in outer.links:
                    return Value(outer.values[entry]) if entry in outer.values else Value(node.values.get(name))
                scope, (origin, slot), outer = outer.scope, outer.links[entry], outer.outer
                continue
            found = self.nodes.get(f"{scope}{origin}")
            if found is None:
                return None
            step = self._through(found, slot)
            if step is None:
                return found, slot
            if isinstance(step, Value):
                return step
            scope, outer, origin, slot = step
            if origin is None:
                return None
        return None

    def _through(self, node: Node, slot: int) -> Any:
        """Where a node that only passes on leads: (scope, outer, id, slot), a ``Value``; ``None`` for a real node."""
        nowhere = (node.scope, node.outer, None, 0)
        if (inner := self._subgraphs.get(node.type)) is not None:
            ends = dict(map(_link, filter(None, inner.get("links") or ())))
            end = next((e for e in ends.values() if e[2] == SUBGRAPH_OUT and e[3] == slot), None)
            return nowhere if end is None else (f"{node.id}:", node, end[0], end[1])
        names: list[str] = []
        if node.type == "Reroute":
            names = list(node.links)
        elif node.type in SWITCHES:
            names = ["on_true" if self.position(node) else "on_false"]
            if names[0] not in node.links and names[0] in node.values:
                return Value(node.values[names[0]])
        elif node.mode == BYPASSED:
            outputs = node.raw.get("outputs") or ()
            kind = outputs[slot]["type"] if slot < len(outputs) else None
            names = [
                e["name"] for e in node.raw.get("inputs") or () if e.get("type") == kind and e["name"] in node.links
            ]
        else:
            return None
        name = next((name for name in names if name in node.links), None)
        return nowhere if name is None else (node.scope, node.outer, *node.links[name])

    def position(self, switch: Node) -> bool:
        """Which way a switch stands."""
        key = self.switch_key(switch)
        return self.switches[key] if key in self.switches else bool(self.value(switch, "switch"))

    def switch_key(self, switch: Node) -> str:
        """What several switches that one button moves have in common."""
        found = self.source(switch, "switch")
        return found[0].id if isinstance(found, tuple) else switch.id

    def value(self, node: Node, name: str) -> Any:
        """A widget's value, also where a link gives it; ``None`` if only running the graph would tell."""
        found = self.source(node, name)
        if found is None:
            return node.values.get(name) if name not in node.links else None
        if isinstance(found, Value):
            return found.value
        return self.value(found[0], "value") if found[0].type.startswith("Primitive") else None


def _link(link: Any) -> tuple[int, tuple[int, int, int, int]]:
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
    return link[0], (link[1], link[2], link[3], link[4])


def variants(workflow: Mapping[str, Any], limit: int = 5) -> Iterator[Graph]:
    """The template as it is, then with its switches in every other position."""
    first = Graph(workflow)
    yield first
    switches = [node for node in first.nodes.values() if node.type in SWITCHES]
    keys = list(dict.fromkeys(map(first.switch_key, switches)))
    for positions in itertools.product((True, False), repeat=len(keys)) if 0 < len(keys) <= limit else ():
        yield Graph(workflow, dict(zip(keys, positions, strict=True)))


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every workflow of the package that ``dev.py`` installs beside the environment, by name.

    Raises:
        FileNotFoundError: if it is not there.
    """
    folder = OFFICIAL_TEMPLATES / "comfyui_workflow_templates_json" / "templates"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there; run python dev.py test once, which installs it")
    for path in sorted(folder.glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(workflow, dict) and "nodes" in workflow:
            yield path.stem, workflow
