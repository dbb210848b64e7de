"""Updates of weights as ComfyUI patches: its own adapters, and DoRA as defined in its paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import comfy.lora
import comfy.utils
import torch
from comfy import weight_adapter
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ...pcm_core.lora import Update
from ...pcm_core.lora.joining import plain, scaled_bias
from ...pcm_core.lora.tensors import UNCHECKED, bias_of, magnitude

# A weight, or a weight with its rows (dimension, offset, length) and a function applied to the update.
Place = str | tuple[str, tuple[int, int, int] | None, Callable[[Tensor], Tensor] | None]
_NO_ADAPTER = {"diff", "w_norm", "set_weight", "diff_b", "b_norm", "up_b"}


class DoraAdapter(WeightAdapterBase):
    """Weight-decomposed adaptation: ``magnitude * (W + update) / |W + update|``, with the norm over the other axes.

    With one magnitude per output the host uses the norm of W alone. This is the paper's formula
    (https://arxiv.org/abs/2402.09353, Eq. 5), as in PEFT and LyCORIS. ``weights`` has the adapter that computes
    W + update, the magnitudes (flat) and their axis.
    """

    name = "dora"

    weights: Any

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, Tensor, int]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Callable[[Tensor], Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        adapter, scale, axis = self.weights
        wide = weight.float()
        merged = adapter.calculate_weight(
            wide.clone(), key, 1.0, strength_model, offset, function, torch.float32, original_weight
        )
        scale = scale.to(weight.device, torch.float32)
        scale = function(scale) if axis == 0 else scale
        others = [dim for dim in range(merged.ndim) if dim != axis]
        norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
        # A row of zeros has no direction and stays as it is.
        result = merged * (scale.reshape(norm.shape) / norm.clamp_min(torch.finfo(torch.float32).tiny))
        weight.copy_(result if strength == 1 else wide + strength * (result - wide))
        return weight


def patches_of(update: Update) -> list[tuple[Place, Any]]:
    """The keys and patches of an update, as arguments of ``ModelPatcher.add_patches``."""
    weight, rows, swap = update.target
    function = comfy.utils.swap_scale_shift if swap else None

    def place(name: str) -> Place:
        return name if rows is None and not swap else (name, None if rows is None else (0, *rows), function)

    patches: list[tuple[Place, Any]] = []
    if set(update.parts) - _NO_ADAPTER:
        patches.append((place(weight), _adapter(update)))
    for role in ("diff", "w_norm"):
        if role in update.parts:
            patches.append((place(weight), ("diff", (update.parts[role],))))
    if "set_weight" in update.parts:  # the host applies no function to a weight that is set
        value = update.parts["set_weight"]
        patches.append((place(weight), ("set", (function(value) if function else value,))))
    biases = [update.parts[role] for role in ("diff_b", "b_norm") if role in update.parts]
    biases += [scaled_bias(update)] if "up_b" in update.parts else []
    return patches + [(place(bias_of(weight)), ("diff", (bias,))) for bias in biases]


def _adapter(update: Update) -> Any:
    """The host's adapter for the tensors of an update; ``None`` if it knows none."""
    tensors, loaded = plain("x", update), set(update.keys)
    tensors.pop("x.dora_scale", None)
    kinds: list[Any] = weight_adapter.adapters
    found = (kind.load("x", tensors, update.alpha, None, set()) for kind in kinds)
    adapter = next((adapter for adapter in found if adapter is not None), None)
    scale = magnitude(update.parts)
    if adapter is None or scale is None:
        return adapter
    adapter.loaded_keys = loaded
    return DoraAdapter(loaded, (adapter, *scale))


def failing(updates: Sequence[Update], shapes: Mapping[str, Sequence[int]]) -> list[Update]:
    """The updates that the host would drop, or fail to apply with a log message; one of each kind is tried."""
    kinds: dict[Any, list[Update]] = {}
    for update in updates:
        kinds.setdefault(_kind(update, shapes), []).append(update)
    smallest = [min(alike, key=lambda update: math.prod(shapes[update.target.weight])) for alike in kinds.values()]
    works = [_works(update, shapes[update.target.weight]) for update in smallest]
    return [update for alike, fine in zip(kinds.values(), works, strict=True) if not fine for update in alike]


def _kind(update: Update, shapes: Mapping[str, Sequence[int]]) -> Any:
    """The kind of an update: the host runs the same code for updates of one kind, including shapes if they matter."""
    roles = frozenset(update.parts)
    sizes = tuple(part.shape for part in update.parts.values()) if roles & UNCHECKED else None
    return roles, len(shapes[update.target.weight]), update.target.rows is None, update.target.swap, sizes


def _works(update: Update, shape: Sequence[int]) -> bool:
    """Whether an update with these shapes changes a weight."""
    if not set(update.parts) - _NO_ADAPTER:
        return True  # shapes were checked, and the update is only added
    adapter = _adapter(update)
    if adapter is None:
        return False
    rows = shape[0] if update.target.rows is None else update.target.rows[1]
    weight = _values((rows, *shape[1:]))
    function = comfy.utils.swap_scale_shift if update.target.swap else None
    patch = (1.0, _filled(adapter), 1.0, None, function)
    try:
        changed = comfy.lora.calculate_weight([patch], weight.clone(), update.target.weight)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return bool(torch.isfinite(changed).all()) and not (changed.shape == weight.shape and torch.equal(changed, weight))


def _values(shape: Sequence[int]) -> Tensor:
    """Different numbers from -0.1 to 0.1, made faster than random ones."""
    return torch.linspace(-0.1, 0.1, math.prod(shape)).reshape(tuple(shape))


def _filled(value: Any) -> Any:
    """The same adapter with other values: the file's own may be zero."""
    if isinstance(value, Tensor):
        return _values(value.shape)
    if isinstance(value, WeightAdapterBase):
        kind: Any = type(value)
        return kind(value.loaded_keys, _filled(value.weights))
    return tuple(map(_filled, value)) if isinstance(value, tuple) else value


def tensors_in(value: Any) -> Iterable[Tensor]:
    """All tensors of a patch, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, WeightAdapterBase):
        yield from tensors_in(value.weights)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
