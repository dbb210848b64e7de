"""A loaded model as training calls it: texts by number, and gradients that are right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .model import base_model_of

Conditioning = list[list[Any]]
_CACHED_TEXTS = 16
# Families that write over what autograd keeps, and whose gradients with copies of it a test compares.
_COPIED = ("ltxv",)


class OutOfPlaceOps(TorchFunctionMode):
    """Runs in-place add, mul and sub out of place: blocks of Flux and Hunyuan Video write over what autograd needs.

    For code that uses the result, as ``a += b`` does, not for a bare ``a.add_(b)``; ``autograd_for`` compares once.
    """

    _NEW: ClassVar[dict[Any, Any]] = {Tensor.add_: Tensor.add, Tensor.mul_: Tensor.mul, Tensor.sub_: Tensor.sub}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._NEW:
            return func(*args, **(kwargs or {}))
        return self._NEW[func](*args, **(kwargs or {})).to(args[0].dtype)  # in place, the dtype stays


@dataclass(frozen=True)
class Autograd:
    """What a network needs so that its gradients are right.

    Attributes:
        around: entered for every call of the network.
        around_step: entered for every step with its backward pass.
        checkpointable: whether blocks may be recomputed.
    """

    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    around_step: Callable[[], AbstractContextManager[Any]] = nullcontext
    checkpointable: bool = True


@torch.no_grad()
def autograd_for(backbone: Backbone, x: Tensor, sigma: Tensor) -> Autograd:
    """``OutOfPlaceOps`` for every network that gives the same inside as without, tried once.

    Of LTXV that leaves a bare ``addcmul_``: what autograd keeps is copied before it is written over. Torch looks at
    every operation for that and would miss a write to a part of a tensor, so only where gradients were compared.
    """
    captions = torch.zeros(len(x), dtype=torch.int64)
    plain = backbone(x, sigma, captions)
    with OutOfPlaceOps():
        same = torch.allclose(backbone(x, sigma, captions), plain, rtol=1e-3, atol=1e-5, equal_nan=True)
    around = OutOfPlaceOps if same else nullcontext
    if not can_checkpoint(backbone.guider.model_patcher):
        return Autograd(around, torch.autograd.graph.allow_mutation_on_saved_tensors, checkpointable=False)
    return Autograd(around, checkpointable=same)


class Backbone:
    """The loaded model as ``(x, sigma [B], captions [B]) -> x0`` under numbered texts; -1 is the negative.

    Texts are encoded when a batch needs them and the last few are kept, so memory does not grow with their number.

    Args:
        around: entered for every call of the model.
    """

    def __init__(
        self, guider: Any, extra_args: dict[str, Any], texts: list[Conditioning], negative: Conditioning | None,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:  # fmt: skip
        self.guider, self.extra_args, self.texts, self.negative = guider, extra_args, texts, negative
        self.around = around
        self._encoded: dict[tuple[int, torch.Size], dict[str, Any]] = {}
        guider.cfg = 1.0

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        numbers = [int(number) for number in captions]
        texts = [self._text(number, x) for number in numbers]
        if (joined := _join(texts) if len(set(numbers)) > 1 else texts[0]) is not None:
            return self._predict(joined, x, sigma)
        rows = zip(texts, x.split(1), sigma.split(1), strict=True)
        return torch.cat([self._predict(text, row, level) for text, row, level in rows])

    def _predict(self, text: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
        self.guider.conds = {"positive": [text]}
        with self.around():
            return self.guider(x, sigma, **self.extra_args)

    @torch.no_grad()
    def _text(self, number: int, x: Tensor) -> dict[str, Any]:
        key = (number, x.shape[1:])
        if key not in self._encoded:
            if len(self._encoded) >= _CACHED_TEXTS:
                self._encoded.clear()
            kind = "negative" if number < 0 else "positive"
            source = self.negative if number < 0 else self.texts[number]
            assert source is not None, "the trainer draws null captions only where there is a negative"
            ((text, values),) = source
            # Clones: what earlier nodes made in inference mode cannot enter autograd.
            values = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
            conds = comfy.sampler_helpers.convert_cond([[text if text is None else text.clone(), values]])
            empty = torch.zeros_like(x[:1])
            encoded = comfy.samplers.process_conds(
                self.guider.inner_model, empty, {kind: conds}, x.device, empty, None, 0
            )
            self._encoded[key] = encoded[kind][0]
        return self._encoded[key]


def can_checkpoint(model: Any) -> bool:
    """Whether blocks can be recomputed: not where what autograd keeps is copied before it is written over."""
    return base_model_of(model) not in _COPIED


def _join(texts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """One conditioning whose row i is text i; ``None`` where the host cannot put them in one batch."""
    first, *others = (text["model_conds"] for text in texts)
    if any(other.keys() != first.keys() for other in others):
        return None
    joined: dict[str, Any] = {}
    for name, cond in first.items():
        rest = [other[name] for other in others]
        if not all(cond.can_concat(other) for other in rest):
            return None
        joined[name] = cond._copy_with(cond.concat(rest))
    return {**texts[0], "model_conds": joined}
