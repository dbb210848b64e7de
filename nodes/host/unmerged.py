"""LoRAs on quantised weights without rounding: patches are not merged but applied on the fly during sampling.

The host merges a LoRA into a quantised weight and quantises the sum again, which loses much of a small update. Here the
MODEL keeps the host's own patches, so that saving, merging, subtracting and extracting work as after the host's loader.
Only during sampling the weights stay unchanged, and each forward pass adds the update to the dequantised weight.
"""

from __future__ import annotations

import uuid
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.patcher_extension
import comfy.quant_ops
import comfy.utils
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

_KEY = "pcm_unmerged"
_OUTER = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
# When it streams weights, the host always merges into modules up to this size (ModelPatcherDynamic.load).
_MERGED_BYTES = 16 * 1024


def sample_unmerged(patched: Any) -> None:
    """Make samplers apply patches of quantised weights on the fly, for this patcher and its clones."""
    if any(_quantised(patched, key) for key in patched.patches) and not patched.get_wrappers(_OUTER, _KEY):
        patched.add_wrapper_with_key(_OUTER, _KEY, _outer_sample)


def _outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
    guider = executor.class_obj
    whole = guider.model_patcher
    guider.model_patcher = _unmerged(whole)
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_patcher = whole


def _unmerged(patcher: Any) -> Any:
    """A clone whose quantised weights are not patched but updated at every use."""
    clone = patcher.clone()
    for key in [key for key in clone.patches if _quantised(clone, key)]:
        clone.add_weight_wrapper(key, _OnTheFly(key, clone.patches.pop(key)))
    # Equal for equal patches, so that the next run finds its weights loaded.
    clone.patches_uuid = uuid.uuid5(patcher.patches_uuid, _KEY)
    return clone


def _quantised(patcher: Any, key: str) -> bool:
    module = comfy.utils.get_attr(patcher.model, key.rpartition(".")[0]) if "." in key else patcher.model
    weight = getattr(module, key.rpartition(".")[2], None)
    if not isinstance(weight, comfy.quant_ops.QuantizedTensor):
        return False
    return not patcher.is_dynamic() or comfy.model_management.module_size(module) > _MERGED_BYTES


class _OnTheFly:
    """``weight -> patched weight``, with the patches on the device of the weight."""

    def __init__(self, key: str, patches: list[Any]) -> None:
        self.key, self.patches = key, patches

    def move_to(self, device: torch.device) -> int:
        """Called by the host when it loads the model; returns the bytes on the device."""
        self.patches = [(patch[0], _moved(patch[1], device), *patch[2:]) for patch in self.patches]
        return sum(_size(patch[1]) for patch in self.patches)

    def __call__(self, weight: Tensor) -> Tensor:
        return comfy.lora.calculate_weight(self.patches, weight, self.key, intermediate_dtype=weight.dtype)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, WeightAdapterBase):
        return type(value)(value.loaded_keys, _moved(value.weights, device))  # pyright: ignore[reportCallIssue]
    return type(value)(_moved(item, device) for item in value) if isinstance(value, list | tuple) else value


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    items = value.weights if isinstance(value, WeightAdapterBase) else value
    return sum(_size(item) for item in items) if isinstance(items, list | tuple) else 0
