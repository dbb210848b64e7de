"""Train a model that is larger than its device: frozen weights are on the device only while their block is used.

Every block is recomputed in the backward pass, so its weights are needed in its forward pass, in its recomputation, and
until its own backward pass ends, for the gradient of its input. Autograd runs from the last block to the first, so the
previous block is finished when a block is recomputed; its weights are then released, and those of the next are copied
while this one computes. At most two blocks are on the device, the current and the next. Their copies are equal to the
bit, so gradients are too.

torch's ``fully_shard`` with ``CPUOffloadPolicy`` does the same for plain tensors in a process group, but the host's
weights may be quantized subclasses, and ComfyUI has no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from .adapters import Adapters
from .autograd import blocks

Store = dict[str, Any]


class Carrier(Protocol):
    """Copies weights to the device."""

    def begin(self, tensors: list[Tensor]) -> list[Tensor]:
        """Start copying; the results may not be ready yet."""
        ...

    def finish(self, tensors: list[Tensor]) -> None:
        """Make later work on the device wait for these copies."""
        ...

    def release(self, tensors: list[Tensor]) -> None:
        """These copies are no longer used, whether they were finished or not."""
        ...


class DirectCarrier:
    """Copies synchronously, with ``copy``."""

    def __init__(self, copy: Callable[[Tensor], Tensor]) -> None:
        self.copy = copy

    def begin(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self.copy(tensor) for tensor in tensors]

    def finish(self, tensors: list[Tensor]) -> None:
        pass

    def release(self, tensors: list[Tensor]) -> None:
        pass


class StreamCarrier:
    """Copies to a CUDA device on its own stream, in parallel to computation; asynchronous from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._events: dict[int, Any] = {}

    def begin(self, tensors: list[Tensor]) -> list[Tensor]:
        with torch.cuda.stream(self.stream):
            copies = [tensor.to(self.device, non_blocking=True, copy=True) for tensor in tensors]
            self._events[id(copies)] = self.stream.record_event()
        return copies

    def finish(self, tensors: list[Tensor]) -> None:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self._events[id(tensors)])
        for tensor in tensors:
            for part in inner_tensors(tensor):
                # Its memory goes back to the copying stream: only after what this stream does with it.
                part.record_stream(current)  # pyright: ignore[reportUnknownMemberType]

    def release(self, tensors: list[Tensor]) -> None:
        del self._events[id(tensors)]


def carrier_for(device: torch.device) -> Carrier:
    """The carrier of a device: a second stream on CUDA, plain copies elsewhere."""
    if device.type == "cuda":
        return StreamCarrier(device)
    return DirectCarrier(lambda tensor: tensor.to(device, copy=True))


def inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that own memory: the inner tensors of a wrapper subclass (a quantized weight)."""
    if torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor):  # pyright: ignore
        names, _ = cast(Any, tensor).__tensor_flatten__()
        for name in names:
            yield from inner_tensors(getattr(tensor, name))
    else:
        yield tensor


def _places(module: nn.Module) -> Iterator[tuple[Store, str, Tensor]]:
    """Every tensor of a module: the dictionary it stands in, its name there, itself."""
    for part in module.modules():
        for store in cast("tuple[Store, Store]", (part._parameters, part._buffers)):  # pyright: ignore[reportPrivateUsage]
            for name, tensor in store.items():
                if tensor is not None:
                    yield store, name, tensor


def _in_place_of(home: Tensor, copy: Tensor) -> Tensor:
    """In a plain parameter's place stands a parameter; what a subclass made of itself stays as it is."""
    plain = type(home) is nn.Parameter and type(copy) is Tensor
    return nn.Parameter(copy, requires_grad=False) if plain else copy


class _Block:
    """One block's tensors off the device and, between ``begin`` and ``leave``, on it."""

    def __init__(self, module: nn.Module) -> None:
        self.places = list(_places(module))
        self.coming: list[Tensor] | None = None
        self.here = False

    def begin(self, carrier: Carrier) -> None:
        if self.coming is None:
            self.coming = carrier.begin([tensor for _, _, tensor in self.places])

    def enter(self, carrier: Carrier) -> None:
        if self.here:
            return
        self.begin(carrier)
        assert self.coming is not None
        carrier.finish(self.coming)
        for (store, name, home), copy in zip(self.places, self.coming, strict=True):
            store[name] = _in_place_of(home, copy)
        self.here = True

    def leave(self, carrier: Carrier) -> None:
        if self.here:
            for store, name, home in self.places:
                store[name] = home
        if self.coming is not None:
            carrier.release(self.coming)
        self.coming, self.here = None, False


class _Stage:
    """The blocks in order, and which of them are on the device."""

    def __init__(self, modules: list[nn.Module], carrier: Carrier) -> None:
        self.blocks, self.carrier = [_Block(module) for module in modules], carrier

    def enter(self, index: int, step: int) -> None:
        """Copy one block to the device, start copying the next in that direction, and release all others."""
        coming = index + step
        for i, block in enumerate(self.blocks):
            if i not in (index, coming):
                block.leave(self.carrier)
        self.blocks[index].enter(self.carrier)
        if 0 <= coming < len(self.blocks):
            self.blocks[coming].begin(self.carrier)

    def clear(self) -> None:
        for block in self.blocks:
            block.leave(self.carrier)


@contextmanager
def streamed(
    adapters: Adapters,
    root: nn.Module,
    carrier: Carrier,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[int]:
    """Checkpoint every block of ``root`` and keep its frozen weights off the device while it is not used.

    Replaces ``Adapters.checkpointed``; everything outside the blocks must already be on the device. Yields the number
    of blocks. The module's own tensors are restored at the end.
    """
    found = list(blocks(root))
    stage = _Stage(found, carrier)
    with ExitStack() as stack:
        stack.callback(stage.clear)
        for index, block in enumerate(found):
            stack.callback(_put_back, block, block.__dict__.get("forward"))
            block.forward = _streaming(stage, index, block.forward, adapters, around)
        yield len(found)


def _put_back(block: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Restore a ``forward`` that was set on this module, or else the class's own."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward


def _streaming(
    stage: _Stage,
    index: int,
    forward: Callable[..., Any],
    adapters: Adapters,
    around: Callable[[], AbstractContextManager[Any]],
) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            stage.enter(index, 1)
            return forward(*arguments, **options)
        mode, passes = adapters.mode, 0

        def again(*arguments: Any, **options: Any) -> Any:
            nonlocal passes
            passes += 1
            stage.enter(index, 1 if passes == 1 else -1)
            with adapters.use(mode), around():
                return forward(*arguments, **options)

        # Without the state of the random generator: blocks draw nothing, and reading it stops a GPU.
        return cast(Any, checkpoint).checkpoint(
            again, *arguments, use_reentrant=False, preserve_rng_state=False, **options
        )

    return run


@contextmanager
def resident(module: nn.Module, device: torch.device, skip: set[int]) -> Iterator[None]:
    """Copies on the device in place of all tensors of a module whose ``id`` is not in ``skip``; then its own again."""
    with ExitStack() as stack:
        for store, name, tensor in list(_places(module)):
            if id(tensor) not in skip and tensor.device != device:
                stack.callback(store.__setitem__, name, tensor)
                store[name] = _in_place_of(tensor, tensor.to(device))
        yield


def streamed_tensors(root: nn.Module) -> set[int]:
    """``id`` of the parameters and buffers that ``streamed`` keeps off the device."""
    return {id(tensor) for block in blocks(root) for tensor in (*block.parameters(), *block.buffers())}


def blocks_bytes(root: nn.Module) -> list[int]:
    """Bytes of the weights of every block, in order."""
    sizes: list[int] = []
    for block in blocks(root):
        tensors = (*block.parameters(), *block.buffers())
        sizes.append(sum(part.untyped_storage().nbytes() for tensor in tensors for part in inner_tensors(tensor)))
    return sizes
