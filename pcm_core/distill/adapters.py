"""One network in memory as teacher, student and target: low-rank additions that can be switched.

``mode`` says which network the modules are: ``off`` (the frozen teacher), ``student`` (trained, with gradient) or
``target`` (the moving average). The additions are forward hooks, ``y + scale up(down(x))``, never a merged copy of the
weights: what autograd keeps is the rank-r activation, and the base tensors are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint, dlpack

from ..errors import PCMError

Mode = Literal["off", "student", "target"]
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass
class Pair:
    """The matrices of one module: ``down`` [rank, in, *kernel], ``up`` [out, rank, *1], float32."""

    down: nn.Parameter
    up: nn.Parameter
    scale: float
    average: tuple[Tensor, Tensor] | None = None


def adaptable(root: nn.Module, targets: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The linear and convolution modules of ``root`` whose name contains one of ``targets``; all where it is empty.

    Grouped, transposed and non-zero-padded convolutions are left out: a low-rank pair cannot stand beside them.

    Raises:
        PCMError: if none is left.
    """
    found: dict[str, nn.Module] = {name: module for name, module in _named(root) if _shape(module) is not None}
    chosen = {name: m for name, m in found.items() if not targets or any(target in name for target in targets)}
    if not chosen:
        names = ", ".join(list(found)[:5]) or "none"
        raise PCMError(
            f"No module's name contains {', '.join(targets) or 'anything adaptable'}.",
            f"part of a name such as {names}.",
            "Correct the targets, or leave them empty to adapt every matrix.",
        )
    return chosen


def _named(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from cast("Iterator[tuple[str, nn.Module]]", root.named_modules())


def _shape(module: Any) -> tuple[int, ...] | None:
    """(out, in, *kernel) of a module that can be adapted."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return (module.out_features, module.in_features)
    if hasattr(module, "kernel_size") and hasattr(module, "in_channels"):
        plain = module.groups == 1 and not module.transposed and module.padding_mode == "zeros"
        kernel: tuple[int, ...] = tuple(module.kernel_size)
        return (module.out_channels, module.in_channels) + kernel if plain else None  # noqa: RUF005
    return None


def _put_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """A forward that somebody had set on this one module; none is the class's own."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward


class Adapters:
    """Switchable low-rank pairs for named modules.

    Args:
        modules: from ``adaptable``.
        rank: of every pair.
        alpha: the pair is scaled by ``alpha / rank``; default ``rank``.
        generator: of the initial ``down`` matrices, on the CPU. ``up`` starts at zero: the student begins as the
            teacher.
        device: where the pairs live.

    Raises:
        PCMError: if the rank is below 1, or alpha is not finite and above 0.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        rank: int,
        *,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if rank < 1:
            raise PCMError(f"The rank is {rank}.", "at least 1.", "Use 16 to 64.")
        self.alpha = float(rank if alpha is None else alpha)
        if not 0 < self.alpha < math.inf:
            raise PCMError(f"alpha is {self.alpha:g}.", "a finite number above 0.", "Leave it out to use the rank.")
        self.modules = dict(modules)
        self.mode: Mode = "off"
        self.pairs: dict[str, Pair] = {}
        for name, module in self.modules.items():
            out, columns, *kernel = cast(tuple[int, ...], _shape(module))
            size = columns * math.prod(kernel)
            down = torch.randn(rank, columns, *kernel, generator=generator) / math.sqrt(size)
            up = torch.zeros(out, rank, *[1] * len(kernel))
            self.pairs[name] = Pair(nn.Parameter(down.to(device)), nn.Parameter(up.to(device)), scale=self.alpha / rank)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for pair in self.pairs.values() for parameter in (pair.down, pair.up)]

    def tensors(self) -> list[Tensor]:
        """The parameters, then the moving averages where there are any."""
        return [*self.parameters(), *(tensor for pair in self.pairs.values() for tensor in pair.average or ())]

    @contextmanager
    def use(self, mode: Mode) -> Iterator[None]:
        """Be that network inside the block."""
        previous, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = previous

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the pairs to their modules inside the block; the modules are as before when it ends, however it ends."""
        with ExitStack() as stack:
            for name, module in self.modules.items():
                handle = module.register_forward_hook(self._hook(self.pairs[name]))
                stack.callback(handle.remove)
            yield

    @contextmanager
    def checkpointed(
        self, root: nn.Module, around: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Iterator[int]:
        """Recompute the activations of every block of ``root`` in the backward pass instead of keeping them.

        Yields how many blocks. A block runs again in the mode it first ran in, inside a new ``around()``: what a caller
        has entered around the model does not reach autograd's own thread.
        """
        found = list(blocks(root))
        with ExitStack() as stack:
            for block in found:
                stack.callback(_put_back, block, block.__dict__.get("forward"))
                block.forward = self._checkpointing(block.forward, around)
            yield len(found)

    def _checkpointing(
        self, forward: Callable[..., Any], around: Callable[[], AbstractContextManager[Any]]
    ) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*arguments, **options)
            mode = self.mode

            def again(*arguments: Any, **options: Any) -> Any:
                with self.use(mode), around():
                    return forward(*arguments, **options)

            return cast(Any, checkpoint).checkpoint(again, *arguments, use_reentrant=False, **options)

        return run

    def _hook(self, pair: Pair) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self.mode == "off":
                return None
            down, up = (pair.down, pair.up) if self.mode == "student" or pair.average is None else pair.average
            return _add(module, cast(Tensor, arguments[0]), output, down, up, pair.scale)

        return add

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the ``target`` weights to ``decay average + (1 - decay) student``; the first call copies."""
        for pair in self.pairs.values():
            if pair.average is None:
                pair.average = (pair.down.detach().clone(), pair.up.detach().clone())
            else:
                for average, value in zip(pair.average, (pair.down, pair.up), strict=True):
                    average.lerp_(value, 1 - decay)

    def lora(self, prefix: str = "diffusion_model.", *, average: bool = False) -> dict[str, Tensor]:
        """The LoRA as the host reads it: ``<prefix><module>.lora_up.weight``, ``.lora_down.weight``, ``.alpha``.

        float32 copies on the CPU; ``average`` takes the moving average where there is one.
        """
        state: dict[str, Tensor] = {}
        for name, pair in self.pairs.items():
            down, up = pair.average if average and pair.average is not None else (pair.down, pair.up)
            state[f"{prefix}{name}.lora_up.weight"] = up.detach().float().cpu().clone()
            state[f"{prefix}{name}.lora_down.weight"] = down.detach().float().cpu().clone()
            state[f"{prefix}{name}.alpha"] = torch.tensor(self.alpha)
        return state

    @torch.no_grad()
    def load_lora(self, state: Mapping[str, Tensor], prefix: str = "diffusion_model.") -> None:
        """Start from an existing LoRA of the same modules and rank, in the naming of ``lora``.

        A file scaled by another alpha is taken over exactly: the difference goes into ``up``.

        Raises:
            PCMError: if a module is missing on either side or a shape differs; nothing has been changed then.
        """
        modules = {key.removesuffix(".lora_up.weight") for key in state if key.endswith(".lora_up.weight")}
        wanted = {prefix + name for name in self.pairs}
        if modules != wanted:
            missing, extra = sorted(wanted - modules), sorted(modules - wanted)
            raise PCMError(
                f"The LoRA does not fit: {len(missing)} modules are missing ({', '.join(missing[:2])}), "
                f"{len(extra)} are too many ({', '.join(extra[:2])}).",
                f"the {len(wanted)} modules that are trained.",
                "Choose the targets it was trained with, or start without it.",
            )
        for name, pair in self.pairs.items():
            for suffix, own in ((".lora_up.weight", pair.up), (".lora_down.weight", pair.down)):
                found = tuple(state[prefix + name + suffix].shape)
                if found != tuple(own.shape):
                    raise PCMError(
                        f"{name}{suffix} has shape {found}.",
                        f"{tuple(own.shape)}.",
                        "Use the rank it was trained with.",
                    )
        for name, pair in self.pairs.items():
            rank = len(pair.down)
            scale = float(state.get(f"{prefix}{name}.alpha", rank)) / rank
            pair.up.copy_(state[f"{prefix}{name}.lora_up.weight"].to(pair.up) * (scale / pair.scale))
            pair.down.copy_(state[f"{prefix}{name}.lora_down.weight"].to(pair.down))

    def state(self) -> dict[str, list[Tensor]]:
        """Everything needed to go on, on the CPU: name to down, up and their averages."""
        return {
            name: [tensor.detach().cpu().clone() for tensor in (pair.down, pair.up, *(pair.average or ()))]
            for name, pair in self.pairs.items()
        }

    def unlike(self, state: Mapping[str, Sequence[Tensor]], alpha: float) -> list[str]:
        """In what adapters that were saved as ``state``, with ``alpha``, differ from these; empty if they fit."""
        differ = [f"alpha {alpha:g} -> {self.alpha:g}"] if alpha != self.alpha else []
        if state.keys() != self.pairs.keys():
            return [*differ, f"targets: {len(state)} modules -> {len(self.pairs)}"]
        ranks = {(len(state[name][0]), len(pair.down)) for name, pair in self.pairs.items()}
        differ += [f"rank {before} -> {now}" for before, now in sorted(ranks) if before != now]
        for name, pair in self.pairs.items():
            if not differ and [part.shape for part in state[name][:2]] != [pair.down.shape, pair.up.shape]:
                differ = [f"a model with another {name}"]
        return differ

    @torch.no_grad()
    def load(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restore ``state``."""
        for name, (down, up, *average) in state.items():
            pair = self.pairs[name]
            pair.down.copy_(down)
            pair.up.copy_(up)
            pair.average = (average[0].to(pair.down).clone(), average[1].to(pair.up).clone()) if average else None


def _add(module: nn.Module, x: Tensor, output: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """``output + scale up(down(x))``, in the dtype of ``output``."""
    down, up = down.to(x.dtype), up.to(x.dtype)
    if down.ndim == 2:
        change = F.linear(F.linear(x, down), up)
    else:
        convolve, conv = _CONVOLUTIONS[down.ndim - 2], cast(Any, module)
        change = convolve(convolve(x, down, None, conv.stride, conv.padding, conv.dilation), up)
    return torch.add(output, change.to(output.dtype), alpha=scale)


@contextmanager
def differentiable_weights(root: nn.Module) -> Iterator[None]:
    """Freeze a module and let autograd run through it, even if it was loaded in inference mode.

    Tensors made there cannot be saved for backward, not even after they were moved to another device. Inside the block
    each is replaced by an ordinary tensor on the same memory; afterwards the very same objects are back. Where the
    memory cannot be shared (a quantised subclass), by a copy. Must run outside inference mode.
    """
    with ExitStack() as stack:
        for parameter in root.parameters():
            # Inference tensors are replaced below, and their flag could not be set back outside inference mode.
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
    """Whether autograd may keep it.

    ``module.to(device)`` writes to ``parameter.data``: of a parameter made in inference mode all becomes ordinary but
    its version, and for that autograd asks.
    """
    try:
        return not tensor.is_inference() and tensor._version >= 0  # pyright: ignore[reportPrivateUsage]
    except RuntimeError:
        return False


def _ordinary(tensor: Tensor) -> Tensor:
    try:
        shared = dlpack.from_dlpack(tensor.detach())
    except (BufferError, RuntimeError, TypeError):
        shared = tensor.detach().clone()
    return nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter) else shared


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with parts of their own that sit in a ``ModuleList`` or ``Sequential``, in order."""
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        if listed and not isinstance(child, nn.ModuleList | nn.Sequential):
            if next(child.children(), None) is not None:
                yield child
        else:
            yield from blocks(child)
