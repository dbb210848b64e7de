"""Load PCM LoRA in the place of a plain loader of a LoRA; PCM Settings behind a loader that does more."""

from __future__ import annotations

from typing import Any

from .exchange import NoExchangeError
from .files import FewStepFile
from .finding import InsertAfter, Mend, Remove, Replace, set_value
from .graph import Graph, Node, Place
from .model_path import edges_to
from .runs import Run

_REPLACED = ("LoraLoaderModelOnly", "LoraLoader", "LoraLoader|pysssh", "LoraLoaderBypassModelOnly", "LoraLoaderBypass")
_OWN_KINDS = ("WANVIDEOMODEL", "WANVIDLORA")
_STACKS = ("lora_stack", "optional_lora_stack", "lora", "prev_lora")


def loader_steps(graph: Graph, run: Run, file: FewStepFile) -> list[Mend]:
    """How the settings of a file get on its model: a checkpoint says them by its name.

    Raises:
        NoExchangeError: where it cannot.
    """
    if file.kind == "checkpoint" or file.ours or file.settings:
        return []
    if file.node.type in _REPLACED:
        return _replaced(file)
    starts = [(run.model_node or run.node.id, run.model_input), (run.node.id, "second_model")]
    for node, name, source in edges_to(graph, starts, file.node.id):
        kind = graph.nodes[node].inputs[name].type
        if kind in _OWN_KINDS or (kind == "" and graph.nodes[node].type.startswith("WanVideo")):
            raise NoExchangeError("own_models", node=file.node.name, kind=kind or _OWN_KINDS[0])
        if kind != "LORA_STACK" and name not in _STACKS:
            settings = InsertAfter(source.node, source.slot, "PCMSettings", (("file_name", file.name),))
            return [*_strong_enough(file), settings]
    raise NoExchangeError("unused", file=file.title)


def _replaced(file: FewStepFile) -> list[Mend]:
    """With the text encoders where the loader has them, and the name of the file by a link where it comes by one."""
    node = file.node
    kept = [name for name in ("model", "lora_name", "clip") if _linked(node, name)]
    clip = node.values.get("strength_clip")
    values = [("lora_name", file.name), *_strength(file)]
    values += [("strength_clip", clip)] if isinstance(clip, (int, float)) and clip != 1 and "clip" in kept else []
    step = Replace(
        at=node.id,
        type="PCMLoraLoader",
        values=tuple(values),
        inputs=tuple((name, node.id, name) for name in kept),
        outputs=((node.id, 0, 0), *([(node.id, 1, 2)] if "clip" in kept else ())),
    )
    return [step, Remove(node.id)]


def _linked(node: Node, name: str) -> bool:
    return name in node.inputs and node.inputs[name].link is not None


def _strong_enough(file: FewStepFile) -> list[Mend]:
    """The loader goes on loading the file, at a strength it is made for."""
    have, want = file.strength.number, file.wanted_strength
    if have is None or file.profile.strength_no_alpha is not None or 0.5 <= have / want <= 1.7:
        return []
    return list(set_value(file.strength, Place(file.node.id, "strength"), want))


def _strength(file: FewStepFile) -> tuple[tuple[str, Any], ...]:
    """A strength near what the file is made for is the choice of the user; the default, 1, is just that."""
    have = file.strength.number
    if have is None or file.profile.strength_no_alpha is not None:
        return ()
    ratio = round(have / file.wanted_strength, 3)
    return (("strength", ratio),) if 0.5 <= ratio <= 1.7 and ratio != 1 else ()
