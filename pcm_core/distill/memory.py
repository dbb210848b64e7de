"""Predict the device memory of a distillation without running it.

One update runs through the real network on torch's fake tensors, which have shapes but no memory, while a ledger counts
the live tensors. A model of 14 billion parameters is planned in seconds on a laptop. Memory that kernels allocate
internally is not counted.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false
# (A storage is known by the private ``_cdata``; modes and hooks are untyped in torch.)

from __future__ import annotations

import copy
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from .adapters import Adapters
from .autograd import blocks
from .low_rank import adaptable, shape_of
from .streaming import DirectCarrier, blocks_bytes, inner_tensors, streamed, streamed_tensors

GIB = 2**30
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "teacher")

Forward = Callable[[nn.Module, Tensor], Tensor]
_ELSEWHERE = torch.device("meta")  # stands for main memory in a plan for a GPU: the ledger does not count it


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The properties of an update that determine its memory.

    Attributes:
        shape: shape of one latent, without the batch.
        rank, targets, adapter_dtype: those of the adapters; below float32 their masters, gradients and optimizer are in
            main memory.
        batch, accumulate: rows per pass, passes per update.
        guided: whether the teacher also evaluates the null caption, which doubles its rows.
        ema, adversarial: whether there is a moving average, a discriminator (its heads are too small to count).
        checkpointing: whether blocks are recomputed in the backward pass.
        streaming: whether frozen weights are on the device only while their block is used; implies ``checkpointing``.
        autocast: compute dtype of the passes.
        device: on ``cpu`` the rollback copy of the adapters counts too; elsewhere it is off the device.
    """

    shape: tuple[int, ...]
    rank: int
    targets: tuple[str, ...] = ()
    batch: int = 1
    accumulate: int = 1
    guided: bool = True
    ema: bool = False
    adversarial: bool = False
    checkpointing: bool = False
    streaming: bool = False
    autocast: torch.dtype | None = None
    adapter_dtype: torch.dtype = torch.float32
    device: str = "cuda"


@dataclass(frozen=True)
class MemoryPlan:
    """Peak memory in bytes, by part; ``PARTS`` names them.

    Attributes:
        parts: frozen ``weights``, ``adapters`` with averages and copies, ``gradients``, ``optimizer`` moments,
            ``activations`` of the backward pass, and ``teacher``: the passes without gradient.
        estimated: the reason, if it was estimated instead of traced; else empty.
    """

    parts: dict[str, int]
    estimated: str = ""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        """``14.2 GB (weights 5.1, adapters and optimizer 3.1, activations 6.0)``; a GB is 2^30 bytes."""
        trained = sum(self.parts.get(part, 0) for part in ("adapters", "gradients", "optimizer"))
        passes = self.parts.get("activations", 0) + self.parts.get("teacher", 0)
        shown = {"weights": self.parts.get("weights", 0), "adapters and optimizer": trained, "activations": passes}
        return f"{gigabytes(self.total)} GB ({', '.join(f'{name} {gigabytes(size)}' for name, size in shown.items())})"


def gigabytes(size: int) -> str:
    """Bytes in GB of 2^30, with two significant digits below 1 and one decimal above."""
    value = size / GIB
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


class Ledger(TorchDispatchMode):
    """Bytes of live tensors by the label under which they were created, and their peak.

    Works for real and fake tensors. A storage counts once, until its last tensor is freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: Counter[str] = Counter()
        self.total = self.most = 0
        self.peak: dict[str, int] = {}
        self.label = "activations"
        self._labels: dict[int, tuple[str, int]] = {}

    @contextmanager
    def labeled(self, label: str) -> Iterator[None]:
        """Tensors created in this context get this label."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def hold(self, label: str, tensors: Iterable[Tensor]) -> None:
        """Count existing tensors; a tensor with another label gets this one."""
        for tensor in _tensors(list(tensors)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._labels:
                before, size = self._labels[key]
                self.alive[before] -= size
                self.alive[label] += size
                self._labels[key] = (label, size)
            else:
                self._add(storage, label, storage.nbytes())
        self._look()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):  # a view of these takes no new memory
            storage = tensor.untyped_storage()
            if storage._cdata not in self._labels:
                self._add(storage, self.label, 0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._labels:
                self._add(storage, self.label, storage.nbytes())
        self._look(_scratch(args, result) if func in _CONVOLUTIONS else 0)
        return result

    def _add(self, storage: torch.UntypedStorage, label: str, size: int) -> None:
        key = storage._cdata
        self._labels[key] = (label, size)
        self.alive[label] += size
        self.total += size
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        label, size = self._labels.pop(key)
        self.alive[label] -= size
        self.total -= size

    def _look(self, scratch: int = 0) -> None:
        if self.total + scratch > self.most:
            self.most, self.peak = self.total + scratch, dict(self.alive)
            self.peak[self.label] = self.peak.get(self.label, 0) + scratch


# While they run they hold their pictures a second time, in a layout of their own (seen with oneDNN, on the CPU).
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def _scratch(arguments: Any, result: Any) -> int:
    """Bytes of the input and output batches of a convolution (rank 4 or 5), without its weights."""
    weight = arguments[2] if len(tuple(_tensors(result))) > 1 else arguments[1]
    return sum(t.nbytes for t in _tensors((arguments, result)) if t.ndim == weight.ndim and t.shape != weight.shape)


def _tensors(tree: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.device != _ELSEWHERE:
            yield from inner_tensors(leaf)


def plan(network: nn.Module, forward: Forward, load: Workload) -> MemoryPlan:
    """The memory of one update of ``load``, by tracing.

    Args:
        network: real or on the meta device; it is copied without its memory and does not change.
        forward: ``(copy of the network, x [B, ...] float32) -> output [B, ...]``, like the trainer's call.

    Raises:
        Exception: any error of a network that cannot run on fake tensors.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode(False), torch.enable_grad():
        traced, ledger = fake_copy(network, mode), Ledger()
        adapters = Adapters(adaptable(traced, load.targets), load.rank, dtype=load.adapter_dtype)
        if load.device != "cpu":
            adapters.student.masters = [nn.Parameter(m.to(_ELSEWHERE)) for m in adapters.student.masters]
        _Update(traced, forward, load, adapters, ledger).run()
    return MemoryPlan({part: ledger.peak.get(part, 0) for part in PARTS})


def estimated(network: nn.Module, load: Workload, sampling: int, why: str) -> MemoryPlan:
    """A plan without tracing: weights and adapters counted, activations guessed.

    Args:
        sampling: bytes that one pass without gradient takes, for ``load``'s rows.
        why: for ``MemoryPlan.estimated``.
    """
    found = list(blocks(network))
    sizes = blocks_bytes(network)
    weights = sum(part.untyped_storage().nbytes() for t in network.parameters() for part in inner_tensors(t))
    here = weights - sum(sizes) + sum(sorted(sizes)[-2:]) if load.streaming else weights
    shapes = [cast("tuple[int, ...]", shape_of(module)) for module in adaptable(network, load.targets).values()]
    pairs = 4 * load.rank * sum(shape[0] + math.prod(shape[1:]) for shape in shapes)
    rounded = pairs // 2 if load.adapter_dtype != torch.float32 else 0
    values = 0 if rounded and load.device != "cpu" else pairs  # what is trained, if it is on the device
    held = rounded + values + load.ema * pairs + (values + load.ema * pairs if load.device == "cpu" else 0)
    # What a pass holds at once, for every block; recomputed, only once and a block's input beside it.
    passes = sampling * (2 if load.checkpointing or load.streaming else max(2, len(found)))
    parts = {"weights": here, "adapters": held, "gradients": values, "optimizer": 2 * values}
    return MemoryPlan({**parts, "activations": passes, "teacher": 0}, estimated=why)


def fake_copy(network: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A frozen copy of the module in which all tensors are fake and on the CPU; the original does not change."""
    memo: dict[int, Any] = {}
    with mode, torch.inference_mode(False):
        for tensor in (*network.parameters(), *network.buffers()):
            memo[id(tensor)] = _fake(tensor)
    return copy.deepcopy(network, memo)


def _fake(tensor: Tensor) -> Tensor:
    fake: Tensor = _empty(tensor)
    fake = nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake
    return _described(fake, tensor)


def _empty(tensor: Any) -> Tensor:
    if is_traceable_wrapper_subclass(tensor):
        names, context = tensor.__tensor_flatten__()
        parts = {name: _fake(getattr(tensor, name)) for name in names}
        kind: Any = tensor.__class__
        return cast(Tensor, kind.__tensor_unflatten__(parts, context, tensor.shape, tensor.stride()))
    # By the plain tensor's own sizes: a GGUF weight answers with those of what it stands for.
    return torch.empty(Tensor.size(tensor), dtype=tensor.dtype)


def _described(fake: Tensor, tensor: Tensor) -> Tensor:
    """With the attributes of ``tensor``: a GGUF weight says in them what it stands for."""
    own, attributes = vars(fake), vars(tensor)
    new = {name for name, value in attributes.items() if not (name.startswith("_") or isinstance(value, Tensor))}
    own.update({name: attributes[name] for name in new - own.keys()})
    return fake


@dataclass
class _Update:
    """One update, in the order of ``Trainer.step``."""

    network: nn.Module
    forward: Forward
    load: Workload
    adapters: Adapters
    ledger: Ledger
    held: list[Tensor] = field(default_factory=list[Tensor])

    def run(self) -> None:
        self._lay_out()
        with ExitStack() as stack:
            stack.enter_context(self.adapters.attached())
            if self.load.streaming:
                stack.enter_context(streamed(self.adapters, self.network, DirectCarrier(self._bring)))
            elif self.load.checkpointing:
                stack.enter_context(self.adapters.checkpointed(self.network))
            stack.enter_context(self.ledger)
            for _ in range(min(self.load.accumulate, 2)):  # from the second pass on, gradients exist already
                self._pass()

    def _bring(self, tensor: Tensor) -> Tensor:
        with self.ledger.labeled("weights"):
            return _described(torch.empty_like(tensor), tensor)

    def _lay_out(self) -> None:
        """Count what is on the device between updates."""
        load, ledger, student = self.load, self.ledger, self.adapters.student
        if load.ema:
            self.adapters.update_ema(0)
        pairs, trained = list(self.adapters.parameters()), self.adapters.trained
        copies = [torch.empty_like(tensor) for tensor in trained] if load.device == "cpu" else []
        moments = [torch.empty_like(parameter) for parameter in student.trained for _ in range(2)]
        self.held = [*copies, *moments]
        away = streamed_tensors(self.network) if load.streaming else set[int]()
        weights = (*self.network.parameters(), *self.network.buffers())
        ledger.hold("weights", [weight for weight in weights if id(weight) not in away])
        ledger.hold("adapters", [*pairs, *trained, *copies])
        ledger.hold("optimizer", moments)
        for parameter, holder in zip(student.parameters(), student.trained, strict=True):
            parameter.register_post_accumulate_grad_hook(_gradient_keeper(ledger, holder))

    def _pass(self) -> None:
        load = self.load
        x = torch.zeros(load.batch, *load.shape)
        prediction = self._as("student", x)
        with torch.no_grad(), self.ledger.labeled("teacher"):
            landing = self._as("off", torch.cat([x, x]) if load.guided else x)[: load.batch]
            landing = self._as("ema" if load.ema else "student", landing)
        loss = (prediction - landing).square().mean()
        if load.adversarial:
            with torch.no_grad(), self.ledger.labeled("teacher"):
                self._as("off", landing)
            loss = loss + self._as("off", prediction).square().mean()
        loss.backward()

    def _as(self, mode: str, x: Tensor) -> Tensor:
        dtype = self.load.autocast
        around = nullcontext() if dtype is None else torch.amp.autocast("cpu", dtype=dtype)
        with self.adapters.use(mode), around:
            return self.forward(self.network, x).float()


def _gradient_keeper(ledger: Ledger, holder: nn.Parameter) -> Callable[[Tensor], None]:
    def keep(_: Tensor) -> None:
        if holder.grad is not None:
            ledger.hold("gradients", [holder.grad])

    return keep
