"""Join the updates of parts of a fused weight, for tools that only handle whole weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from ..errors import PCMError
from .keys import Target
from .tensors import Update, magnitude

_SUFFIX = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight", "magnitude": "dora_scale",
           "a1": "a1.weight", "a2": "a2.weight", "b1": "b1.weight", "b2": "b2.weight", "up_b": "diff_b"}  # fmt: skip
# What can be joined when several modules share a weight.
_JOINABLE = {"up", "down", "diff", "diff_b", "up_b"}


def join(updates: Sequence[Update], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The updates as one state dict, ``diffusion_model.<native>.{lora_up.weight, lora_down.weight, alpha, ...}``.

    Tensors of whole weights are passed through; parts of a fused weight are joined into one exact block-diagonal
    update, which leaves untrained rows unchanged.

    Raises:
        PCMError: if a part of a weight has an update that cannot be joined (DoRA, LoKr, LoHa).
    """
    by_weight: dict[str, list[Update]] = {}
    for update in updates:
        by_weight.setdefault(update.target.weight, []).append(update)
    output: dict[str, Tensor] = {}
    for weight, entries in by_weight.items():
        stem = weight.removesuffix(".weight")
        first = entries[0]
        if len(entries) == 1 and first.target.rows is None and not first.target.swap:
            output |= plain(stem, first)
        else:
            output |= _join(stem, entries, shapes[weight][0])
    return output


def plain(stem: str, update: Update) -> dict[str, Tensor]:
    """The tensors of one update of a whole weight, under the usual names."""
    output = {f"{stem}.{_SUFFIX.get(role, role)}": tensor for role, tensor in update.parts.items()}
    if "magnitude" in update.parts:  # LyCORIS' layout of PEFT's numbers
        up = update.parts.get("up")
        ones = [1] * (up.ndim - 1 if up is not None else 1)
        output[f"{stem}.dora_scale"] = update.parts["magnitude"].reshape(-1, *ones)
    if "up_b" in update.parts:
        output[f"{stem}.diff_b"] = scaled_bias(update)
    if update.alpha is not None:
        output[f"{stem}.alpha"] = torch.tensor(update.alpha)
    return output


def scaled_bias(update: Update) -> Tensor:
    """PEFT's ``lora_B.bias`` as an update of the bias, scaled like the matrices."""
    bias = update.parts["up_b"]
    return bias if update.alpha is None else bias.float() * (update.alpha / update.parts["down"].shape[0])


def _join(stem: str, entries: Sequence[Update], rows: int) -> dict[str, Tensor]:
    for update in entries:
        if not set(update.parts) <= _JOINABLE or magnitude(update.parts) is not None:
            raise PCMError(
                f"{update.keys[0]} updates a part of {stem} by {', '.join(update.parts)}.",
                "a plain LoRA pair or a difference, which can be joined.",
                "Load it with Load PCM LoRA.",
            )
    output = _join_pairs(stem, [update for update in entries if "up" in update.parts], rows)
    for role, names in (("diff", ("diff",)), ("diff_b", ("diff_b", "up_b"))):
        holders = [(scaled_bias(update) if name == "up_b" else update.parts[name], update.target)
                   for update in entries for name in names if name in update.parts]  # fmt: skip
        if holders:
            tensors = [(_wide(tensor), target) for tensor, target in holders]
            width = tensors[0][0].shape[1:] if role == "diff" else ()
            dtype = _common_dtype([tensor for tensor, _ in tensors])
            output[f"{stem}.{role}"] = joined = tensors[0][0].new_zeros(rows, *width, dtype=dtype)
            for tensor, target in tensors:
                _rows(joined, target).copy_(_swapped(tensor, target))
    return output


def _join_pairs(stem: str, pairs: Sequence[Update], rows: int) -> dict[str, Tensor]:
    if not pairs:
        return {}
    ranks = [update.parts["down"].shape[0] for update in pairs]
    scales = [1.0 if u.alpha is None else u.alpha / rank for u, rank in zip(pairs, ranks, strict=True)]
    even = len(set(scales)) == 1
    ups = [_wide(update.parts["up"].flatten(1)) for update in pairs]
    # Unequal scales have to go into the values, in fp32 so that nothing is rounded.
    ups = ups if even else [up.float() * scale for up, scale in zip(ups, scales, strict=True)]
    rank = sum(ranks)
    joined = ups[0].new_zeros(rows, rank, dtype=_common_dtype(ups))
    column = 0
    for up, update in zip(ups, pairs, strict=True):
        _rows(joined, update.target)[:, column : column + up.shape[1]] = _swapped(up, update.target)
        column += up.shape[1]
    return {
        f"{stem}.lora_up.weight": joined,
        f"{stem}.lora_down.weight": torch.cat([_wide(update.parts["down"].flatten(1)) for update in pairs]),
        f"{stem}.alpha": torch.tensor(scales[0] * rank if even else float(rank)),
    }


def _common_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The narrowest dtype that represents all values, as in ``torch.cat``."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _rows(tensor: Tensor, target: Target) -> Tensor:
    return tensor if target.rows is None else tensor.narrow(0, *target.rows)


def _swapped(tensor: Tensor, target: Target) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1]) if target.swap else tensor


def _wide(tensor: Tensor) -> Tensor:
    """fp8 as fp16, which represents its values exactly: fp8 tensors cannot be concatenated."""
    return tensor.to(torch.float16) if tensor.element_size() == 1 else tensor
