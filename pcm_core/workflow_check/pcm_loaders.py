"""Load PCM LoRA in the place of a plain loader of a LoRA; PCM Settings behind a loader that does more."""

from __future__ import annotations

from typing import Any

from .exchange import NoExchangeError
from .files import FewStepFile
from .finding import InsertAfter, Mend, Remove, Replace, set_value
from .graph import Graph, Place
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
    node = file.node
    linked = node.inputs["lora_name"].link is not None if "lora_name" in node.inputs else False
    step = Replace(
        at=node.id,
        type="PCMLoraLoader",
        values=(("lora_name", file.name), *_strength(file)),
        inputs=(("model", node.id, "model"), *([("lora_name", node.id, "lora_name")] if linked else ())),
        outputs=((node.id, 0, 0),),
        through=((node.id, 1, "clip"),) if "clip" in node.inputs else (),
    )
    return [step, Remove(node.id)]


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
