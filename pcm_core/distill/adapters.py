"""One network in memory as teacher, student and more: switchable low-rank sets.

``use`` selects the active network: ``off`` (the frozen teacher), or one of the named sets: ``student`` (always there),
``ema`` (its moving average) and those of ``add_set``. The sets are forward hooks, ``y + scale up(down(x))``, and are
not merged into a copy of the weights: autograd saves only the rank-r activation, and the base tensors do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from .autograd import blocks
from .low_rank import LowRankPair, LowRankSet, SetState, shape_of


class Adapters(nn.Module):
    """Switchable low-rank sets for named modules of one frozen network.

    Args:
        targets: from ``adaptable``.
        rank: of every pair of the student.
        alpha: a pair is scaled by ``alpha / rank``; default ``rank``.
        generator: of the initial ``down`` matrices, on the CPU. ``up`` starts at zero: the student begins as the
            teacher.
        device: where the pairs live.
        dtype: of the pairs, the moving average excepted; see ``LowRankSet``.

    Raises:
        PCMError: if the rank is below 1, or alpha is not finite and above 0.
    """

    def __init__(
        self,
        targets: Mapping[str, nn.Module],
        rank: int,
        *,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.targets = dict(targets)  # a dict, so that the backbone is not registered as a part of this module
        self.mode = "off"
        self.attachments, self.dtype = 0, dtype
        self._shapes = {name: cast("tuple[int, ...]", shape_of(module)) for name, module in targets.items()}
        self.sets = nn.ModuleDict()
        self.add_set("student", rank, alpha=alpha, generator=generator)
        _move(self, torch.device(device))

    def add_set(
        self, name: str, rank: int, *, alpha: float | None = None, generator: torch.Generator | None = None
    ) -> LowRankSet:
        """Add one more network in this memory, or start one anew; the adapters may be attached already."""
        dtype = torch.float32 if name == "ema" else self.dtype  # a rounded average would not move
        added = LowRankSet(self._shapes, rank, alpha=alpha, generator=generator, dtype=dtype)
        if "student" in self.sets:
            _move(added, next(self.student.parameters()).device)
        self.sets[name] = added
        return added

    def __getitem__(self, name: str) -> LowRankSet:
        return cast(LowRankSet, self.sets[name])

    @property
    def student(self) -> LowRankSet:
        return self["student"]

    @property
    def ema(self) -> LowRankSet | None:
        """The student's moving average; ``None`` before the first ``update_ema``."""
        return self["ema"] if "ema" in self.sets else None

    @property
    def pairs(self) -> dict[str, LowRankPair]:
        """The student's pairs by module name."""
        return self.student.pairs

    @property
    def alpha(self) -> float:
        return self.student.alpha

    @property
    def dtype_name(self) -> str:
        """As a checkpoint holds it, such as ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def rank(self) -> int:
        return len(next(iter(self.pairs.values())).down)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The float32 values of all sets; ``publish`` after changing them."""
        return [parameter for name in self.sets for parameter in self[name].trained]

    def publish(self) -> None:
        """See ``LowRankSet.publish``; of all sets."""
        for name in self.sets:
            self[name].publish()

    @contextmanager
    def use(self, mode: str) -> Iterator[None]:
        """Select the active network within the block: ``off`` or the name of a set.

        ``ema`` is the student where there is no average.
        """
        previous, self.mode = self.mode, "student" if mode == "ema" and self.ema is None else mode
        try:
            yield
        finally:
            self.mode = previous

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the sets to their modules within the block; the modules are always restored at its end."""
        with ExitStack() as stack:
            for name, module in self.targets.items():
                stack.callback(module.register_forward_hook(self._hook(name)).remove)
            self.attachments += 1
            try:
                yield
            finally:
                self.attachments -= 1

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self.mode == "off":
                return None
            return self[self.mode].pairs[name](module, arguments[0], output)

        return add

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
                block.forward = self.recomputed(block.forward, around)
            yield len(found)

    def recomputed(
        self, forward: Callable[..., Any], around: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Callable[..., Any]:
        """``forward``, but what its backward pass needs is computed again then, in the mode of the first time."""

        def run(*arguments: Any, **options: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*arguments, **options)
            mode = self.mode

            def again(*arguments: Any, **options: Any) -> Any:
                with self.use(mode), around():
                    return forward(*arguments, **options)

            return cast(Any, checkpoint).checkpoint(again, *arguments, use_reentrant=False, **options)

        return run

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the ``ema`` weights to ``decay ema + (1 - decay) student``; the first call copies."""
        student, ema = self.student, self.ema
        if ema is None:
            ema = self._empty_ema()
            decay = 0.0
        for average, value in zip(ema.parameters(), student.trained, strict=True):
            if decay:
                average.lerp_(value.to(average.device), 1 - decay)
            else:
                average.copy_(value)

    def _empty_ema(self) -> LowRankSet:
        # Any generator will do, but not the default one: every weight is overwritten.
        ema = self.add_set("ema", self.rank, alpha=self.alpha, generator=torch.Generator())
        ema.requires_grad_(False)
        return ema

    def adopt_ema(self) -> None:
        """Make the moving average the student, where there is one, and forget it."""
        if self.ema is not None:
            self.student.load(self.ema.state())
            del self.sets["ema"]

    def lora(self, prefix: str = "diffusion_model.", *, ema: bool = False) -> dict[str, Tensor]:
        """The student's LoRA as ``LowRankSet.lora`` spells it; ``ema`` takes the moving average where there is one."""
        average = self.ema if ema else None
        return (average or self.student).lora(prefix)

    def load_lora(self, state: Mapping[str, Tensor], prefix: str = "diffusion_model.") -> None:
        """Start the student from an existing LoRA; see ``LowRankSet.load_lora``."""
        self.student.load_lora(state, prefix)

    def state(self) -> dict[str, SetState]:
        """Everything needed to resume, on the CPU: set to module to ``down`` and ``up``."""
        return {name: self[name].state() for name in self.sets}

    def differences(self, state: Mapping[str, SetState], alpha: float, dtype: str = "float32") -> list[str]:
        """In what adapters that were saved as ``state`` differ from these; empty if they fit."""
        found = [f"alpha {alpha:g} -> {self.alpha:g}"] if alpha != self.alpha else []
        if dtype != self.dtype_name:
            found.append(f"dtype of the adapters {dtype} -> {self.dtype_name}")
        for name, weights in state.items():
            if name == "ema":
                continue  # it has the student's shapes
            if name not in self.sets:
                found.append(f"adapters {name} -> none")
            else:
                found += self[name].differences(weights)
        return found

    def load(self, state: Mapping[str, SetState]) -> None:
        """Restore ``state`` with its moving average, if it has one."""
        if "ema" not in state and "ema" in self.sets:
            del self.sets["ema"]
        for name, weights in state.items():
            chosen = self._empty_ema() if name == "ema" and self.ema is None else self[name]
            chosen.load(weights)


def _put_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Undo ``module.forward = ...``; ``forward`` is the value set on this module before, if any."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _move(module: nn.Module, device: torch.device) -> None:
    """To where it is not yet: pairs are made on the CPU, and fake parameters cannot even be moved there."""
    if device.type != "cpu":
        module.to(device)
