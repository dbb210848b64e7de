"""Arithmetic on LoRA tensors: checks, norms, and joining parts of a fused weight into one update."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NoReturn

import torch
from torch import Tensor

from ..errors import PCMError
from .keys import Module, Target

_SUFFIX = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
_WHOLE = ("diff", "set_weight", "w_norm")
_BIAS = ("diff_b", "b_norm")
# What says something about an update and is none.
HELPERS = {"alpha", "dora_scale", "reshape_weight"}
# What can be joined when several modules share a weight.
_JOINABLE = {"up", "down", "alpha", "diff", "diff_b"}


def rank_of(module: Module) -> int:
    """Rank of a low-rank pair, 0 for other updates."""
    down = module.parts.get("down")
    return down.shape[0] if down is not None and "up" in module.parts and down.ndim > 1 else 0


def scale_of(module: Module, alphas: Mapping[str, float]) -> float:
    """alpha / rank; 1 without an alpha, as every loader assumes."""
    alpha, rank = alphas.get(module.stem), rank_of(module)
    return 1.0 if alpha is None or not rank else alpha / rank


def check_values(name: str, module: Module) -> None:
    """Refuse what no LoRA can hold: incomplete pairs, rank 0, integers, an alpha that is no positive number.

    Raises:
        PCMError: naming the tensor.
    """
    parts, keys = module.parts, module.keys
    for role, tensor in parts.items():
        integers = role in ("alpha", "reshape_weight") and not tensor.is_complex()
        if not (integers or tensor.is_floating_point()):
            _bad(name, keys[role], f"has dtype {_dtype(tensor)}", "floating point values")
        if role != "alpha" and tensor.numel() == 0:
            _bad(name, keys[role], f"has shape {tuple(tensor.shape)}, a LoRA of rank zero", "a rank of at least 1")
    if ("up" in parts) != ("down" in parts):
        have = keys.get("up") or keys["down"]
        _bad(name, have, "has no counterpart", "a pair lora_up and lora_down (lora_B and lora_A)")
    if not set(parts) - HELPERS:
        _bad(name, next(iter(keys.values())), "stands alone", "the matrices that belong to it")
    if "up" in parts:
        _check_pair(name, module)
    alpha = parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or not math.isfinite(float(alpha)) or float(alpha) <= 0):
        shown = f"{float(alpha):g}" if alpha.numel() == 1 else f"{alpha.numel()} numbers"
        _bad(name, keys["alpha"], f"is {shown}", "one positive number")


def _check_pair(name: str, module: Module) -> None:
    up, down, keys = module.parts["up"], module.parts["down"], module.keys
    if up.ndim < 2 or down.ndim < 2:
        _bad(name, keys["up"], f"and {keys['down']} have shapes {tuple(up.shape)} and {tuple(down.shape)}", "matrices")
    inner = up.shape[1:].numel()
    if inner != down.shape[0] and "mid" not in module.parts:
        _bad(name, keys["up"], f"has rank {inner} and {keys['down']} rank {down.shape[0]}", "one rank")


def fits(module: Module, target: Target, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a module's update has the shape of its target."""
    parts, shape = module.parts, tuple(shapes.get(target.weight, ()))
    if not shape:
        return False
    rows = shape[0] if target.rows is None else target.rows[1]
    partial = target.rows is not None or target.swap
    if partial and not set(parts) <= _JOINABLE:
        return False
    if any(parts[role].shape != (rows, *shape[1:]) for role in _WHOLE if role in parts):
        return False
    bias = shapes.get(target.weight.removesuffix(".weight") + ".bias")
    if any(role in parts and (bias is None or parts[role].shape != (rows,)) for role in _BIAS):
        return False
    if "dora_scale" in parts and parts["dora_scale"].numel() not in shape[:2]:
        return False
    if "up" in parts:
        return _pair_fits(parts, shape, rows)
    return _product_fits(parts, rows, math.prod(shape[1:]))


def _pair_fits(parts: Mapping[str, Tensor], shape: tuple[int, ...], rows: int) -> bool:
    up, down = parts["up"], parts["down"]
    inner = down.shape[1:].numel()
    if "reshape_weight" in parts:  # a weight made larger, for control inputs
        wanted = [float(n) for n in parts["reshape_weight"].flatten()]
        larger = len(wanted) == len(shape) and all(w >= s for w, s in zip(wanted, shape, strict=True))
        return larger and wanted[0] == up.shape[0] and math.prod(wanted[1:]) == inner
    if "mid" in parts:
        mid = parts["mid"]
        fitting = mid.ndim == 4 and mid.shape[:2] == (up.shape[1:].numel(), down.shape[0])
        return fitting and up.shape[0] == rows and inner * mid.shape[2:].numel() == math.prod(shape[1:])
    return up.shape[0] == rows and inner == math.prod(shape[1:])


def _product_fits(parts: Mapping[str, Tensor], rows: int, inner: int) -> bool:
    """LoHa multiplies two low-rank products, LoKr takes the Kronecker product of two matrices."""
    if any(role.startswith("hada") for role in parts):
        sides = [parts.get(f"hada_w{i}_{side}") for i in (1, 2) for side in "ab"]
        ends = [side.shape[i % 2] for i, side in enumerate(sides) if side is not None and side.ndim == 2]
        return len(ends) == 4 and ("hada_t1" in parts or ends == [rows, inner, rows, inner])
    if any(role.startswith("lokr") for role in parts):
        one, two = (_factor(parts, f"lokr_w{i}") for i in (1, 2))
        return "lokr_t2" in parts or (one[0] * two[0], one[1] * two[1]) == (rows, inner)
    return True


def _factor(parts: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name in parts and parts[name].ndim > 1:
        return parts[name].shape[0], parts[name].shape[1:].numel()
    a, b = parts.get(f"{name}_a"), parts.get(f"{name}_b")
    return (0, 0) if a is None or b is None or a.ndim < 2 or b.ndim < 2 else (a.shape[0], b.shape[1:].numel())


def module_norms(name: str, modules: Sequence[Module], alphas: Mapping[str, float]) -> dict[str, float]:
    """How large each module's update is at strength 1, by stem: ``alpha / rank * |B| |A| / sqrt(rank)``.

    That is the Frobenius norm of the update where the rank's directions weigh alike, and a fifth of the time of the
    exact one. A NaN or infinity anywhere in the tensors surfaces in it.

    Raises:
        PCMError: if a tensor holds NaN or infinity.
    """
    norms: dict[str, float] = {}
    for module in modules:
        parts = module.parts
        square = 0.0
        if "up" in parts and "mid" not in parts:
            square = _square(parts["up"]) * _square(parts["down"]) * scale_of(module, alphas) ** 2 / rank_of(module)
        others = [tensor for role, tensor in parts.items() if role not in ("up", "down", "alpha") or "mid" in parts]
        square += sum(_square(tensor) for tensor in others)
        if not math.isfinite(square):
            _refuse_not_finite(name, module)
        norms[module.stem] = math.sqrt(max(square, 0.0))
    return norms


def _square(tensor: Tensor) -> float:
    """Sum of squares. One wide copy at a time: all of a large file passes through here."""
    wide = tensor.flatten().float()
    return float(wide.dot(wide))


def _refuse_not_finite(name: str, module: Module) -> None:
    for role, tensor in module.parts.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            _bad(name, module.keys[role], "holds NaN or infinity", "finite numbers")


def group_norms(norms: Mapping[str, float], placed: Mapping[str, Sequence[tuple[Module, Target]]]) -> dict[str, float]:
    """Norms of the applied modules, joined by the block group of the weight they patch."""
    squares: dict[str, float] = {}
    for weight, entries in placed.items():
        words = weight.removeprefix("diffusion_model.").removeprefix("transformer.").removeprefix("lora_unet_")
        match = re.match(r"(.+?)[._]\d+[._]", words)
        group = match[1] if match else "other"
        squares[group] = squares.get(group, 0.0) + sum(norms[module.stem] ** 2 for module, _ in entries)
    return {group: math.sqrt(square) for group, square in squares.items()}


def emit(
    name: str,
    weight: str,
    entries: Sequence[tuple[Module, Target]],
    alphas: Mapping[str, float],
    shape: Sequence[int] | None,
) -> dict[str, Tensor]:
    """The tensors that update one weight, under the names the host knows.

    Raises:
        PCMError: if two different updates claim the same weight.
    """
    stem = weight.removesuffix(".weight")
    entries = _without_copies(name, weight, entries)
    module, target = entries[0]
    if len(entries) == 1 and target.rows is None and not target.swap:
        output = {f"{stem}.{_SUFFIX.get(role, role)}": t for role, t in module.parts.items() if role != "alpha"}
        if module.stem in alphas:
            output[f"{stem}.alpha"] = torch.tensor(alphas[module.stem])
        return output
    assert shape is not None
    return _join(stem, entries, alphas, shape[0])


def _without_copies(name: str, weight: str, entries: Sequence[tuple[Module, Target]]) -> list[tuple[Module, Target]]:
    """Files that carry every module in two spellings hold each update twice; one of them is enough."""
    kept: list[tuple[Module, Target]] = []
    for module, target in entries:
        rivals = [other for other, other_target in kept if other_target.rows == target.rows]
        if not rivals:
            kept.append((module, target))
        elif not _same(rivals[0], module):
            first, second = (next(iter(m.keys.values())) for m in (rivals[0], module))
            _bad(name, first, f"and {second} both update {weight}, differently", "one update for each weight")
    return kept


def _same(a: Module, b: Module) -> bool:
    return set(a.parts) == set(b.parts) and all(torch.equal(a.parts[role], b.parts[role]) for role in a.parts)


def _join(
    stem: str, entries: Sequence[tuple[Module, Target]], alphas: Mapping[str, float], rows: int
) -> dict[str, Tensor]:
    """One block-diagonal update for a fused weight: exact, and rows nobody trained stay untouched."""
    output: dict[str, Tensor] = {}
    pairs = [(module, target) for module, target in entries if rank_of(module)]
    if pairs:
        scales = [scale_of(module, alphas) for module, _ in pairs]
        even = len(set(scales)) == 1
        ups = [_wide(module.parts["up"].flatten(1)) for module, _ in pairs]
        # Unequal scales have to go into the values, in fp32 so that nothing is rounded.
        ups = ups if even else [up.float() * scale for up, scale in zip(ups, scales, strict=True)]
        rank = sum(up.shape[1] for up in ups)
        joined = ups[0].new_zeros(rows, rank, dtype=_common_dtype(ups))
        column = 0
        for up, (_, target) in zip(ups, pairs, strict=True):
            _rows(joined, target)[:, column : column + up.shape[1]] = _swapped(up, target)
            column += up.shape[1]
        output[f"{stem}.lora_up.weight"] = joined
        output[f"{stem}.lora_down.weight"] = torch.cat([_wide(module.parts["down"].flatten(1)) for module, _ in pairs])
        output[f"{stem}.alpha"] = torch.tensor(scales[0] * rank if even else float(rank))
    for role in ("diff", "diff_b"):
        holders = [(module.parts[role], target) for module, target in entries if role in module.parts]
        if holders:
            tensors = [(_wide(tensor), target) for tensor, target in holders]
            width = tensors[0][0].shape[1:] if role == "diff" else ()
            dtype = _common_dtype([tensor for tensor, _ in tensors])
            output[f"{stem}.{role}"] = joined = tensors[0][0].new_zeros(rows, *width, dtype=dtype)
            for tensor, target in tensors:
                _rows(joined, target).copy_(_swapped(tensor, target))
    return output


def _common_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The narrowest type that holds the values of all, as ``torch.cat`` chooses."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _rows(tensor: Tensor, target: Target) -> Tensor:
    return tensor if target.rows is None else tensor.narrow(0, *target.rows)


def _swapped(tensor: Tensor, target: Target) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1]) if target.swap else tensor


def _wide(tensor: Tensor) -> Tensor:
    """fp8 has no concatenation; fp16 holds its values exactly."""
    return tensor.to(torch.float16) if tensor.element_size() == 1 else tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bad(name: str, key: str, found: str, expected: str) -> NoReturn:
    raise PCMError(f"{name}: {key[:120]} {found}.", f"{expected}.", "The file is damaged; download it again.")
