"""Low-rank pairs for named modules: the weights of one LoRA, and their names in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PCMError

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SetState = dict[str, dict[str, Tensor]]


def adaptable(root: nn.Module, targets: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The linear and convolution modules of ``root`` whose name contains one of ``targets``; all if it is empty.

    Grouped, transposed and non-zero-padded convolutions are left out: they cannot have a low-rank pair.

    Raises:
        PCMError: if none is left.
    """
    found: dict[str, nn.Module] = {name: module for name, module in _named(root) if shape_of(module) is not None}
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


def shape_of(module: Any) -> tuple[int, ...] | None:
    """(out, in, *kernel) of a module that can be adapted; ``None`` for any other."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return (module.out_features, module.in_features)
    if hasattr(module, "kernel_size") and hasattr(module, "in_channels"):
        plain = module.groups == 1 and not module.transposed and module.padding_mode == "zeros"
        kernel: tuple[int, ...] = tuple(module.kernel_size)
        return (module.out_channels, module.in_channels, *kernel) if plain else None
    return None


class LowRankPair(nn.Module):
    """The matrices of one module: ``down`` [rank, in, *kernel] and ``up`` [out, rank, *1], float32.

    ``down`` is initialized to unit-variance projections and ``up`` to zero, so that the pair changes nothing at first.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator | None) -> None:
        super().__init__()
        out, columns, *kernel = shape
        down = torch.randn(rank, columns, *kernel, generator=generator) / math.sqrt(columns * math.prod(kernel))
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(out, rank, *[1] * len(kernel)))
        self.scale = alpha / rank

    def forward(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """``output + scale up(down(x))`` for a module that returned ``output`` for ``x``, in the output's dtype."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if down.ndim == 2:
            change = F.linear(F.linear(x, down), up)
        else:
            convolve, conv = _CONVOLUTIONS[down.ndim - 2], cast(Any, module)
            change = convolve(convolve(x, down, None, conv.stride, conv.padding, conv.dilation), up)
        return torch.add(output, change.to(output.dtype), alpha=self.scale)


class LowRankSet(nn.Module):
    """One pair per module: the weights of one LoRA.

    Args:
        shapes: module name to (out, in, *kernel).
        rank: rank of every pair.
        alpha: a pair is scaled by ``alpha / rank``; default ``rank``.
        generator: draws the initial ``down`` matrices, on the CPU.
        dtype: of the pairs. Below float32 they are rounded copies of float32 ``masters`` on the CPU, which are what is
            trained: a small update would be lost in a rounded value. The gradient of a pair moves to its master as soon
            as it is there, so the device holds two bytes for each weight instead of sixteen.

    Attributes:
        masters: float32 values on the CPU in the order of ``parameters()``; empty if the pairs are float32 themselves.

    Raises:
        PCMError: if the rank is below 1, or alpha is not finite and above 0.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], rank: int, *, alpha: float | None = None,
        generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        if rank < 1:
            raise PCMError(f"The rank is {rank}.", "at least 1.", "Use 16 to 64.")
        self.alpha = float(rank if alpha is None else alpha)
        if not 0 < self.alpha < math.inf:
            raise PCMError(f"alpha is {self.alpha:g}.", "a finite number above 0.", "Leave it out to use the rank.")
        self.pairs = {name: LowRankPair(shape, rank, self.alpha, generator) for name, shape in shapes.items()}
        self._registered = nn.ModuleList(self.pairs.values())  # module names contain dots, which torch does not allow
        self.masters: list[nn.Parameter] = []
        if dtype != torch.float32:
            self.masters = list(self.parameters())
            for pair in self.pairs.values():
                pair.down, pair.up = (nn.Parameter(value.detach().to(dtype)) for value in (pair.down, pair.up))
            for number, parameter in enumerate(self.parameters()):
                cast(Any, parameter).register_post_accumulate_grad_hook(self._hand_over(number))

    def _hand_over(self, number: int) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            master, gradient = self.masters[number], parameter.grad
            assert gradient is not None
            gradient, parameter.grad = gradient.to(master), None
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)

        return add

    @property
    def trained(self) -> list[nn.Parameter]:
        """The float32 values that an optimizer updates; call ``publish`` after it."""
        return self.masters or list(self.parameters())

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters, if there are any, into the pairs."""
        if self.masters:
            for parameter, master in zip(self.parameters(), self.masters, strict=True):
                parameter.copy_(master)

    def _values(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The trained ``down`` and ``up`` of every module."""
        values = [parameter.detach() for parameter in self.trained]
        return dict(zip(self.pairs, zip(values[::2], values[1::2], strict=True), strict=True))

    def lora(self, prefix: str) -> dict[str, Tensor]:
        """The LoRA with ComfyUI's key names: ``<prefix><module>.lora_up.weight``, ``.lora_down.weight``, ``.alpha``.

        float32 copies on the CPU.
        """
        state: dict[str, Tensor] = {}
        for name, (down, up) in self._values().items():
            state[f"{prefix}{name}.lora_up.weight"] = up.float().cpu().clone()
            state[f"{prefix}{name}.lora_down.weight"] = down.float().cpu().clone()
            state[f"{prefix}{name}.alpha"] = torch.tensor(self.alpha)
        return state

    @torch.no_grad()
    def load_lora(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Start from an existing LoRA of the same modules and rank, with the key names of ``lora``.

        A LoRA with another alpha is loaded exactly: the difference in scale goes into ``up``.

        Raises:
            PCMError: if a module is missing on either side or a shape differs; nothing is changed then.
        """
        self._check_lora(state, prefix)
        for name, (down, up) in self._values().items():
            rank = len(down)
            scale = float(state.get(f"{prefix}{name}.alpha", rank)) / rank
            up.copy_(state[f"{prefix}{name}.lora_up.weight"].to(up) * (scale / self.pairs[name].scale))
            down.copy_(state[f"{prefix}{name}.lora_down.weight"].to(down))
        self.publish()

    def _check_lora(self, state: Mapping[str, Tensor], prefix: str) -> None:
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

    def state(self) -> SetState:
        """Copies on the CPU by module name, for a checkpoint."""
        return {
            name: {"down": down.cpu().clone(), "up": up.cpu().clone()} for name, (down, up) in self._values().items()
        }

    def load(self, state: SetState) -> None:
        """Restore ``state``; check first with ``differences`` that it fits."""
        values = self._values()
        for name, weights in state.items():
            for own, part in zip(values[name], ("down", "up"), strict=True):
                own.copy_(weights[part])
        self.publish()

    def differences(self, state: SetState) -> list[str]:
        """The reasons why ``state`` cannot be loaded, in words; empty if it fits."""
        if state.keys() != self.pairs.keys():
            return [f"targets: {len(state)} modules -> {len(self.pairs)}"]
        ranks = {(len(state[name]["down"]), len(pair.down)) for name, pair in self.pairs.items()}
        found = [f"rank {before} -> {now}" for before, now in sorted(ranks) if before != now]
        for name, pair in self.pairs.items():
            if not found and [state[name][part].shape for part in ("down", "up")] != [pair.down.shape, pair.up.shape]:
                found = [f"a model with another {name}"]
        return found
