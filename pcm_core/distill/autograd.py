"""Make a network that was loaded for inference differentiable, and find its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import dlpack
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@contextmanager
def differentiable_weights(root: nn.Module) -> Iterator[None]:
    """Freeze a module and make it differentiable, even if it was loaded in inference mode.

    Tensors made in inference mode cannot be saved for backward, not even after a move to another device. Inside the
    context each is replaced by a normal tensor on the same memory, of the same subclass if it is quantized, or by a
    copy if the memory cannot be shared. Afterwards the original objects are restored. Must run outside inference mode.
    """
    with ExitStack() as stack:
        for parameter in root.parameters():
            # Inference tensors are replaced below; their flag could not be restored outside inference mode.
            if parameter.requires_grad and not parameter.is_inference():
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
        for module in root.modules():
            stores = cast("tuple[dict[str, Any], ...]", (module._parameters, module._buffers))  # pyright: ignore[reportPrivateUsage]
            for store in stores:
                for name, tensor in store.items():
                    if tensor is not None and not _can_be_saved(tensor):
                        stack.callback(store.__setitem__, name, tensor)
                        store[name] = _ordinary(tensor)
        yield


def _can_be_saved(tensor: Tensor) -> bool:
    """Whether autograd can save the tensor.

    ``module.to()`` on a parameter made in inference mode leaves it without a version counter, which autograd needs.
    """
    try:
        return not tensor.is_inference() and tensor._version >= 0  # pyright: ignore[reportPrivateUsage]
    except RuntimeError:
        return False


def _ordinary(tensor: Tensor) -> Tensor:
    """An equal tensor that is not an inference tensor."""
    kind = type(tensor)
    if is_traceable_wrapper_subclass(tensor):  # a quantized weight: its inner tensors hold the memory
        return _rebuilt(tensor)
    shared = _shared(tensor)
    if kind is nn.Parameter:
        return nn.Parameter(shared, requires_grad=False)
    if kind is not Tensor:  # a GGUF weight: a plain tensor with attributes that describe its encoding
        shared = shared.as_subclass(kind)
        vars(shared).update(vars(tensor))
    return shared


def _shared(tensor: Tensor) -> Tensor:
    """A plain tensor on the same memory, or a copy if the memory cannot be shared."""
    plain = tensor.data.as_subclass(Tensor)
    try:
        return dlpack.from_dlpack(plain)
    except (BufferError, RuntimeError, TypeError):
        return plain.clone()


def _rebuilt(tensor: Any) -> Tensor:
    names, context = tensor.__tensor_flatten__()
    parts = {name: _ordinary(getattr(tensor, name)) for name in names}
    kind: Any = tensor.__class__
    rebuilt: Tensor = kind.__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())
    return nn.Parameter(rebuilt, requires_grad=False) if isinstance(tensor, nn.Parameter) else rebuilt


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with submodules in a ``ModuleList`` or ``Sequential``, in order."""
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        if listed and not isinstance(child, nn.ModuleList | nn.Sequential):
            if next(child.children(), None) is not None:
                yield child
        else:
            yield from blocks(child)
