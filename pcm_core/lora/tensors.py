"""The tensors of a module: checks of their values and shapes, and the size of their update."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ..errors import PCMError
from .keys import Module, Target

_WHOLE = ("diff", "set_weight", "w_norm")
_BIAS = ("diff_b", "b_norm", "up_b")
# Auxiliary tensors that carry no update by themselves.
HELPERS = frozenset({"alpha", "dora_scale", "magnitude", "reshape_weight", "rescale"})
# Roles whose shapes are not checked here: instead, one update of each shape is tried on the host.
UNCHECKED = frozenset({"oft_blocks", "a1", "a2", "b1", "b2"})


@dataclass(frozen=True, eq=False)
class Update:
    """The update of one weight of the model by one module of the file.

    Attributes:
        target: the weight, or a part of it.
        parts: the file's tensors by role, without ``alpha``.
        alpha: the scale is ``alpha / rank``; ``None`` for scale 1.
        keys: its keys in the file.
    """

    target: Target
    parts: Mapping[str, Tensor]
    alpha: float | None
    keys: tuple[str, ...]

    @property
    def main(self) -> Tensor:
        """The tensor that identifies this update."""
        return self.parts["up"] if "up" in self.parts else next(iter(self.parts.values()))


def rank_of(module: Module) -> int:
    """Rank of a low-rank pair; 0 for other updates."""
    down = module.parts.get("down")
    return down.shape[0] if down is not None and "up" in module.parts and down.ndim > 1 else 0


def scale_of(module: Module, alphas: Mapping[str, float]) -> float:
    """alpha / rank; 1 without an alpha, as in every loader."""
    alpha, rank = alphas.get(module.stem), rank_of(module)
    return 1.0 if alpha is None or not rank else alpha / rank


def check_values(name: str, module: Module) -> None:
    """Refuse invalid modules: incomplete pairs, rank 0, integers, an alpha that is not a positive number.

    Raises:
        PCMError: if the module is invalid; names the tensor.
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
    _check_complete(name, module)
    if not set(parts) - HELPERS or set(parts) - {"alpha"} == {"up_b"}:
        _bad(name, next(iter(keys.values())), "stands alone", "the matrices that belong to it")
    if "up" in parts:
        _check_pair(name, module)
    alpha = parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or not math.isfinite(float(alpha)) or float(alpha) <= 0):
        shown = f"{float(alpha):g}" if alpha.numel() == 1 else f"{alpha.numel()} numbers"
        _bad(name, keys["alpha"], f"is {shown}", "one positive number")


# Tensors that only mean something together.
_TOGETHER = (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("hada_t1", "hada_t2"), ("lokr_w1_a", "lokr_w1_b"),
             ("lokr_w2_a", "lokr_w2_b"), ("a1", "a2", "b1", "b2"))  # fmt: skip


def _check_complete(name: str, module: Module) -> None:
    have = set(module.parts)
    for group in _TOGETHER:
        if have & set(group) and not have >= set(group):
            missing = ", ".join(role for role in group if role not in have)
            first = next(role for role in group if role in have)
            _bad(name, module.keys[first], f"has no {missing}", f"all of {', '.join(group)}")


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
    if any(parts[role].shape != (rows, *shape[1:]) for role in _WHOLE if role in parts):
        return False
    bias = shapes.get(bias_of(target.weight))
    if any(role in parts and (bias is None or parts[role].shape != (rows,)) for role in _BIAS):
        return False
    if not _magnitude_fits(parts, rows, shape) or ("reshape_weight" in parts and (target.rows or target.swap)):
        return False
    if "up" in parts:
        return _pair_fits(parts, shape, rows)
    return _product_fits(parts, rows, shape)


def bias_of(weight: str) -> str:
    """The name of the bias of a weight."""
    return weight.removesuffix(".weight") + ".bias"


def magnitude(parts: Mapping[str, Tensor]) -> tuple[Tensor, int] | None:
    """DoRA's magnitude, flat, and its axis: 0 for outputs, 1 for inputs.

    PEFT stores one number for each output, [out], or [1, out, 1, 1] for a convolution. LyCORIS has an axis of length
    one where the norm was taken: [out, 1] for outputs, [1, in] for inputs.
    """
    if "magnitude" in parts:
        return parts["magnitude"].flatten(), 0
    scale = parts.get("dora_scale")
    if scale is None:
        return None
    return scale.flatten(), 1 if scale.ndim > 1 and scale.shape[0] == 1 and scale.shape[1] > 1 else 0


def _magnitude_fits(parts: Mapping[str, Tensor], rows: int, shape: tuple[int, ...]) -> bool:
    found = magnitude(parts)
    if found is None:
        return True
    return not {"magnitude", "dora_scale"} <= set(parts) and found[0].numel() == (rows, *shape[1:])[found[1]]


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


def _product_fits(parts: Mapping[str, Tensor], rows: int, shape: tuple[int, ...]) -> bool:
    """Whether a LoHa (product of two low-rank products) or a LoKr (Kronecker product) has the shape of the weight."""
    inner = math.prod(shape[1:])
    if any(role.startswith("hada") for role in parts):
        return all(_low_rank(parts, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") == (rows, inner) for i in (1, 2))
    if any(role.startswith("lokr") for role in parts):
        one = _factor(parts, "lokr_w1", "")
        two = _factor(parts, "lokr_w2", "lokr_t2")
        return (one[0] * two[0], one[1] * two[1]) == (rows, inner)
    return True


def _factor(parts: Mapping[str, Tensor], name: str, core: str) -> tuple[int, int]:
    if name in parts:
        return (parts[name].shape[0], parts[name].shape[1:].numel()) if parts[name].ndim > 1 else (0, 0)
    return _low_rank(parts, f"{name}_a", f"{name}_b", core)


def _low_rank(parts: Mapping[str, Tensor], first: str, second: str, core: str) -> tuple[int, int]:
    """Rows and columns of ``first @ second``, or of both around a Tucker core; (0, 0) if they do not fit."""
    a, b = parts.get(first), parts.get(second)
    if a is None or b is None or a.ndim < 2 or b.ndim < 2:
        return 0, 0
    if core not in parts:
        return (a.shape[0], b.shape[1:].numel()) if a.shape[1] == b.shape[0] else (0, 0)
    middle = parts[core]
    if middle.ndim < 3 or middle.shape[:2] != (a.shape[0], b.shape[0]):
        return 0, 0
    return a.shape[1], b.shape[1] * middle.shape[2:].numel()


def module_norms(name: str, modules: Sequence[Module], alphas: Mapping[str, float]) -> dict[str, float]:
    """Approximate norm of each module's update at strength 1, by stem: ``alpha / rank * |B| |A| / sqrt(rank)``.

    This is the Frobenius norm of the update if all its rank directions have equal weight, at a fifth of the cost of the
    exact norm. NaN or infinity anywhere in the tensors shows in it.

    Raises:
        PCMError: if a tensor contains NaN or infinity.
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
    """Sum of squares, without a copy in float32, because every tensor of a large file is read here."""
    wide = tensor if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32) else tensor.float()
    return float(cast(Any, torch.linalg).vector_norm(wide, dtype=torch.float32)) ** 2  # its own types are incomplete


def _refuse_not_finite(name: str, module: Module) -> None:
    for role, tensor in module.parts.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            _bad(name, module.keys[role], "holds NaN or infinity", "finite numbers")


def group_norms(norms: Mapping[str, float], placed: Mapping[str, Sequence[tuple[Module, Target]]]) -> dict[str, float]:
    """Norms of the applied modules, combined by block group of their weight."""
    squares: dict[str, float] = {}
    for weight, entries in placed.items():
        words = weight.removeprefix("diffusion_model.").removeprefix("transformer.").removeprefix("lora_unet_")
        match = re.match(r"(.+?)[._]\d+[._]", words)
        group = match[1] if match else "other"
        squares[group] = squares.get(group, 0.0) + sum(norms[module.stem] ** 2 for module, _ in entries)
    return {group: math.sqrt(square) for group, square in squares.items()}


def without_copies(name: str, weight: str, entries: Sequence[tuple[Module, Target]]) -> list[tuple[Module, Target]]:
    """Drop duplicates: some files contain every module in two key formats.

    Raises:
        PCMError: if two different updates change the same weight.
    """
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


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bad(name: str, key: str, found: str, expected: str) -> NoReturn:
    raise PCMError(f"{name}: {key[:120]} {found}.", f"{expected}.", "The file is damaged; download it again.")
