"""LoRAs on a CLIP, as the host's own LoraLoader applies them."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.lora_convert
from torch import Tensor


def patch_clip(clip: Any, tensors: dict[str, Tensor], strength: float) -> tuple[Any, int]:
    """A clone of a CLIP with the updates that a LoRA has for its text encoders, and how many weights they change.

    Args:
        tensors: of the whole file; those for the diffusion model are not looked at.
    """
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), names, log_missing=False)
    clone = clip.clone()
    return clone, len(clone.add_patches(patches, strength))
