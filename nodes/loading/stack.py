"""A LORA_STACK of other packs (Efficiency, Easy-Use, Comfyroll, LoRA Manager): files to apply before the few-step one.

The stack is a list of ``(file name, model strength, CLIP strength)``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...pcm_core.errors import PCMError
from ...pcm_core.lora import has_model_updates
from .. import host
from ..host import lora as host_lora
from ..host.text_encoder import patch_clip
from .fit import LoraOnDisk


@dataclass(frozen=True)
class Entry:
    """One file of a stack."""

    name: str
    strength: float
    strength_clip: float


def entries(stack: Any) -> list[Entry]:
    """The files of a stack that change something, in its order.

    Raises:
        PCMError: if it is no stack, or a strength is no finite number.
    """
    if stack is None:
        return []
    if not isinstance(stack, list | tuple):
        raise _no_stack(stack)
    found = [_entry(item) for item in stack]
    return [entry for entry in found if entry.name != "None" and (entry.strength or entry.strength_clip)]


def _entry(item: Any) -> Entry:
    if not isinstance(item, list | tuple) or len(item) != 3 or not isinstance(item[0], str):
        raise _no_stack(item)
    for value in item[1:]:
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
            raise PCMError(f"lora_stack gives {item[0][:80]} the strength {value!s:.40}.", "a finite number.", "Use 1.")
    return Entry(item[0], float(item[1]), float(item[2]))


def _no_stack(found: Any) -> PCMError:
    shown = f'"{found[:40]}"' if isinstance(found, str) else f"a {type(found).__name__}"
    return PCMError(
        f"lora_stack holds {shown}.",
        "a list of (file name, model strength, CLIP strength), as stackers of other packs make it.",
        "Connect the LORA_STACK output of such a node.",
    )


def apply_stack(
    model: Any, clip: Any, stack: Iterable[Entry], *, allow_partial: bool
) -> tuple[Any, Any, list[host.LoadedLora], list[str]]:
    """Apply the files of a stack; the model and the CLIP that were given stay as they were.

    Args:
        clip: may be ``None``.
        allow_partial: apply the tensors that fit if others do not.

    Returns:
        The model, the CLIP, the files, and a sentence on each.

    Raises:
        PCMError: if a file is a few-step LoRA, does not fit, or is not there.
    """
    loaded: list[host.LoadedLora] = []
    notes: list[str] = []
    for entry in stack:
        path = host_lora.lora_path(entry.name)
        file = LoraOnDisk.read(path)
        if file.profile.known:
            raise PCMError(
                f"lora_stack has {path.name}, a {file.profile.method} LoRA.",
                "files that are no few-step LoRAs: a model takes one, and that is lora_name.",
                "Take it out of the stack, or choose it as lora_name.",
            )
        done: list[str] = []
        if entry.strength and has_model_updates(file.tensors):
            updates, report = file.fit(model, allow_partial=allow_partial)
            model = host_lora.patch_lora(model, updates, entry.strength)
            done.append(f"{report.matched} of {report.offered} tensors at strength {entry.strength:g}")
        if clip is not None and entry.strength_clip:
            clip, count = patch_clip(clip, file.tensors, entry.strength_clip)
            done += [f"{count} weights of the CLIP at strength {entry.strength_clip:g}"] if count else []
        notes.append(f"From lora_stack, before it: {path.name}, {', '.join(done) or 'nothing applied'}.")
        loaded.append(host.LoadedLora.of(path, entry.strength))
    return model, clip, loaded, notes
