"""A stand-in for a GPU without float64 (Apple's): a mode in which our own code may not make one out of a device tensor.

On a CPU nothing tells a device tensor from another, so a tensor counts as one unless it is known not to be: what
``.cpu()`` returns, what is made without a device (which torch makes on the CPU), and what is computed of such alone.
The host's own arithmetic is left alone: it asks the device before it widens.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

PACK = Path(__file__).resolve().parent.parent.parent
OURS = (str(PACK / "pcm_core"), str(PACK / "nodes"))


class NoFloat64Error(TypeError):
    """What torch raises on such a device."""


def _caller() -> str:
    """The innermost frame that is not torch's, if it is ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        "torch" in Path(frame.f_code.co_filename).parts or frame.f_code.co_filename == __file__
    ):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(OURS):
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class _Asked(TorchFunctionMode):
    """Whether the function that runs was given a device by its caller: below, every call has one."""

    device = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.device = self.device, (kwargs or {}).get("device") is not None
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.device = before


class NoFloat64(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.on_host: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.asked = _Asked()
        self.looked_at = 0

    def mark(self, tensor: Any) -> Any:
        self.on_host[id(tensor)] = tensor
        return tensor

    def known(self, tensor: Any) -> bool:
        return self.on_host.get(id(tensor)) is tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        host = all(self.known(tensor) for tensor in given) if given else not self.asked.device
        self.looked_at += 1
        for tensor in made:
            if host:
                self.mark(tensor)
            elif tensor.dtype == torch.float64 and (where := _caller()):
                raise NoFloat64Error(f"{where}: {func} makes float64 of a tensor on the device; it has none.")
        return result


@contextmanager
def no_float64() -> Iterator[NoFloat64]:
    """Refuse float64 of device tensors in our own code, until the end of the ``with``."""
    mode = NoFloat64()
    plain = torch.Tensor.cpu

    def cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return mode.mark(plain(self, *args, **kwargs).clone())

    with mock.patch.object(torch.Tensor, "cpu", cpu), mode, mode.asked:
        yield mode
