"""The few-step files of a workflow: every loader, of any pack, whose file the profiles know."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from ..profiles import PCMProfile, method_choices, profile_from_name, profile_of_method
from .graph import ACTIVE, MODEL_TYPES, Graph, Node, Place
from .model_path import model_path
from .shapes import fields, items, objects
from .values import UNKNOWN, Value, first_number, value_of

_FILE = re.compile(r"[^\n]{1,300}\.(safetensors|sft|ckpt|pt|pth|bin|gguf)$", re.IGNORECASE)
# Nodes that read a file for something else than its model, or only write about it.
_NOT_A_MODEL = re.compile(
    r"vae|clip(?!.*checkpoint)|text.?encoder|note|upscale|controlnet|audio|preview", re.IGNORECASE
)
_NOT_A_WIDGET = re.compile(r"vae|clip|text_encoder|control_net|upscale", re.IGNORECASE)
_STRENGTHS = ("strength_model", "strength", "lora_strength", "lora_model_strength", "model_strength", "strength_01")
_NUMBERED = ("model_weight", "strength", "lora_wt", "model_str", "lora_weight", "lora_strength", "strength_model")


Kind = Literal["lora", "checkpoint"]
Lookup = Callable[[str, Kind], "PCMProfile | None"]


@dataclass(frozen=True)
class FewStepFile:
    """A file in a loader.

    Attributes:
        place: the widget that names it.
        kind: ``lora`` or ``checkpoint``.
        strength: of a LoRA; unknown where the loader has none.
        active: False where the loader or the row is switched off or has strength 0.
    """

    node: Node
    place: Place
    name: str
    profile: PCMProfile
    kind: Kind
    strength: Value = UNKNOWN
    active: bool = True

    @property
    def title(self) -> str:
        """The file without its folder."""
        return self.name.replace("\\", "/").rpartition("/")[2]

    @property
    def ours(self) -> bool:
        """Whether our own loader reads it: its strength 1 means what the file wants, and it sets the shift."""
        return self.node.type == "PCMLoraLoader"

    @property
    def settings(self) -> bool:
        """Whether PCM Settings names it: it says what the model is sampled with, and loads no weights."""
        return self.node.type == "PCMSettings"

    @property
    def mixed(self) -> bool:
        """Whether Load PCM LoRA was told to leave the settings to the model: another file says them."""
        return self.ours and str(self.node.values.get("settings", "")).startswith("keep")

    @property
    def wanted_strength(self) -> float:
        """What the strength widget should say."""
        return 1.0 if self.ours else self.profile.strength


def few_step_files(graph: Graph, lookup: Lookup | None = None) -> list[FewStepFile]:
    """Every few-step file in the workflow, in the order of the nodes, those switched off too.

    Args:
        graph: of the workflow.
        lookup: what a file says of itself, by name and kind (``lora`` or ``checkpoint``); default: what its name says.
    """
    return [file for node in graph.nodes.values() for file in _of_node(graph, node, lookup or profile_by_name)]


@lru_cache(maxsize=2000)
def profile_by_name(name: str, kind: Kind = "lora") -> PCMProfile | None:
    """``profile_from_name``, kept: a check asks for the same names again and again."""
    return profile_from_name(name, kind)


def loaded_file(graph: Graph, node: str, name: str = "model") -> str:
    """The file of the loader that a model input comes from; empty if there is none, or if there are several."""
    if node not in graph.nodes:
        return ""
    found: list[str] = []
    for loader in model_path(graph, graph.nodes[node], name):
        if loader.model_inputs() or _NOT_A_MODEL.search(loader.type) or "lora" in loader.type.lower():
            continue
        texts = [value.text for widget, value in _widgets(graph, loader) if not _NOT_A_WIDGET.search(widget)]
        found += [text for text in texts if _FILE.match(text)]
    return found[0] if len(set(found)) == 1 else ""


def _widgets(graph: Graph, node: Node) -> Iterator[tuple[str, Value]]:
    for name in [*node.values, *(node.inputs.keys() - node.values.keys())]:
        yield name, value_of(graph, node, name)


def _of_node(graph: Graph, node: Node, lookup: Lookup) -> Iterator[FewStepFile]:
    if node.type == "PCMSettings":
        yield from _chosen(graph, node, lookup)
        return
    if node.subgraph or _NOT_A_MODEL.search(node.type) or not _can_hold_a_model(node):
        return
    named = {name for name, entry in node.inputs.items() if entry.link is not None and entry.type in ("", "COMBO")}
    for name in [*node.values, *sorted(named - node.values.keys())]:
        if _NOT_A_WIDGET.search(name):
            continue
        for row, widget in _file_widgets(name, node.values.get(name)):
            value = value_of(graph, node, widget)
            text = value.text if _FILE.match(value.text) or not row else f"{value.text}.safetensors"
            if not _FILE.match(text):
                continue
            kind: Kind = "lora" if row or _is_lora(node, name, text) else "checkpoint"
            profile = lookup(text, kind)
            if profile is not None:
                yield _file(graph, node, row or name, kind, bool(row), replace(value, value=text), profile)


def _file_widgets(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(row, widget that names a file): rows are an object per LoRA, alone or in a list."""
    if "lora" in fields(value):
        yield name, f"{name}.lora"
    elif objects(value):
        for index, row in enumerate(items(value)):
            key = next((key for key in ("lora", "name", "lora_name") if key in fields(row)), "")
            if key and "strength" in fields(row):
                yield f"{name}.{index}", f"{name}.{index}.{key}"
    else:
        yield "", name


def _is_lora(node: Node, name: str, text: str) -> bool:
    """By the node or the widget; a widget without a name by the file, or by the strength behind it."""
    if re.search("ckpt|unet|checkpoint|diffusion", name, re.IGNORECASE):
        return False
    if "lora" in node.type.lower() or "lora" in name.lower():
        return True
    if not name.startswith("#"):
        return False
    follows = node.values.get(f"#{int(name[1:]) + 1}")
    return "lora" in text.lower() or isinstance(follows, float)


def _chosen(graph: Graph, node: Node, lookup: Lookup) -> Iterator[FewStepFile]:
    """The method or the file of PCM Settings; neither where it reads the name of the checkpoint."""
    method, name = (value_of(graph, node, widget) for widget in ("method", "file_name"))
    if method.text in ("", "auto"):
        value, profile = name, lookup(name.text, "lora") or lookup(name.text, "checkpoint") if name.text else None
    else:
        value, file = method, method_choices().get(method.text)
        profile = None if file is None else profile_of_method(method.text)
    if profile is not None:
        place = value.place or Place(node.id, "method")
        yield FewStepFile(node, place, value.text, profile, "lora", UNKNOWN, node.mode == ACTIVE)


def _can_hold_a_model(node: Node) -> bool:
    """A loader that a model or a LoRA leaves; an API prompt does not say what leaves a node."""
    known = [kind for kind in node.outputs if kind]
    return not known or any(kind in MODEL_TYPES or kind in ("*", "COMFY_MATCHTYPE_V3") for kind in known)


def _file(
    graph: Graph, node: Node, name: str, kind: Kind, in_row: bool, value: Value, profile: PCMProfile
) -> FewStepFile:
    strength = _strength(graph, node, name, in_row) if kind == "lora" else UNKNOWN
    off = _switched_off(graph, node, name, in_row) or strength.number == 0
    place = value.place or Place(node.id, name)
    return FewStepFile(node, place, value.text, profile, kind, strength, node.mode == ACTIVE and not off)


def _strength(graph: Graph, node: Node, name: str, in_row: bool) -> Value:
    if in_row:
        return value_of(graph, node, f"{name}.strength")
    if name.startswith("#"):  # the number behind the file
        return first_number(graph, node, (f"#{int(name[1:]) + 1}",))
    number = _number_in(name)
    if number:
        full = (
            value_of(graph, node, "input_mode").text == "advanced" or value_of(graph, node, "mode").text == "advanced"
        )
        stems = ("model_str", *_NUMBERED) if full else _NUMBERED
        numbered = [f"{stem}{number}" for stem in stems]
        digits = number.strip("_")
        names = ("model_strength", "strength") if full else ("strength", "model_strength")
        return first_number(graph, node, (*numbered, *(f"lora_{digits}_{tail}" for tail in names)))
    return first_number(graph, node, _STRENGTHS)


def _number_in(name: str) -> str:
    """What the widgets of one slot of a stack have in common: ``_1`` of ``lora_name_1`` and ``lora_1_name``."""
    match = re.search(r"_?\d+$", name) or re.search(r"_\d+(?=_name$)", name)
    return match[0] if match else ""


def _switched_off(graph: Graph, node: Node, name: str, in_row: bool) -> bool:
    if in_row:
        return any(value_of(graph, node, f"{name}.{switch}").value is False for switch in ("on", "active", "enabled"))
    if name.startswith("#"):
        return value_of(graph, node, f"#{int(name[1:]) - 1}").value in ("Off", "off")
    if value_of(graph, node, "toggle").value is False:
        return True
    number = _number_in(name)
    used = first_number(graph, node, ("lora_count", "num_loras")).count
    if number and used is not None and int(number.strip("_")) > used:
        return True
    found = value_of(graph, node, f"switch{number}") if number else UNKNOWN
    return found.known and found.value in ("Off", "off", False)
