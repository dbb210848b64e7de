"""The training loop of every stage: it counts steps, undoes non-finite ones, and refuses to train nothing."""
# pyright: reportUnknownMemberType=false
# (Optimizer.step is untyped in torch.)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import NULL_CAPTION as NULL_CAPTION
from ..errors import PCMError
from .adapters import Adapters
from .config import Diverged
from .objective import Denoiser

Backbone = Callable[[Tensor, Tensor, Tensor], Tensor]


def _alone(tensors: Sequence[Tensor]) -> None:
    """Averaging for a single process: nothing to do."""


@dataclass(frozen=True)
class Processes:
    """Data parallelism: this process's place, and how to average tensors over all of them in place."""

    rank: int = 0
    count: int = 1
    average: Callable[[Sequence[Tensor]], None] = _alone

    def part(self, batch: int) -> slice:
        """This process's rows of a global batch.

        Raises:
            PCMError: if the batch cannot be divided evenly.
        """
        if batch % self.count:
            raise PCMError(
                f"A batch of {batch} cannot be shared by {self.count} processes.",
                "a multiple of the processes.",
                "Change the batch.",
            )
        size = batch // self.count
        return slice(self.rank * size, (self.rank + 1) * size)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: ``loss`` is the consistency loss; the adversarial pair is 0 where there is none."""

    step: int
    loss: float
    generator_loss: float
    discriminator_loss: float
    grad_norm: float
    lr: float


class TrainingLoop(ABC):
    """The steps of one stage on attached adapters; a subclass defines the step.

    Args:
        adapters: attached by the caller (``with adapters.attached():``) around every step.
        steps: of the whole run.
        ema: decay of the moving average, 0 for none.
        autocast: compute dtype of the passes; ``None`` for the model's own.
    """

    def __init__(
        self, backbone: Backbone, adapters: Adapters, processes: Processes | None, *, steps: int, ema: float,
        autocast: torch.dtype | None, seed: int,
    ) -> None:  # fmt: skip
        self.backbone, self.adapters, self.processes = backbone, adapters, processes or Processes()
        self.steps, self.ema, self.autocast_dtype = steps, ema, autocast
        self.generator = torch.Generator().manual_seed(seed)
        self.step_number = 0
        self.losses: list[float] = []
        self._checked = False
        self._good: list[Tensor] = []
        if ema:
            adapters.update_ema(0)
        self._remember()

    def run(
        self,
        after_step: Callable[[StepReport], None] | None = None,
        around_step: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> list[float]:
        """Train up to the last step, each inside a new ``around_step()``.

        Whatever ``after_step`` raises ends the run between two steps.

        Returns:
            The loss of every step so far, including those before a resume.

        Raises:
            Diverged: see there.
            PCMError: if the adapters are not attached, or the base is not frozen.
        """
        while self.step_number < self.steps:
            with around_step():
                report = self.step()
            if after_step is not None:
                after_step(report)
        return self.losses

    @abstractmethod
    def step(self) -> StepReport:
        """One optimizer step."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything needed to go on to the same bits: tensors, numbers and lists only (``torch.save``)."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Resume from ``state``.

        Raises:
            PCMError: if it was made with other settings.
        """

    def _count_update(self, loss: float) -> None:
        """After an update of the student: update its moving average and count the step."""
        if self.ema:
            step = self.step_number
            self.adapters.update_ema(min(self.ema, (step + 1) / (step + 10)))
        self.step_number += 1
        self.losses.append(loss)

    def _tensors(self) -> list[Tensor]:
        return list(self.adapters.trained)

    @torch.no_grad()
    def _remember(self) -> None:
        """Keep a copy of the adapters on the CPU before an update, to roll back to."""
        tensors = self._tensors()
        if len(tensors) != len(self._good):
            self._good = [torch.empty_like(tensor, device="cpu") for tensor in tensors]
        for good, tensor in zip(self._good, tensors, strict=True):
            good.copy_(tensor)
        self._good_step = self.step_number

    @torch.no_grad()
    def _restore(self) -> None:
        """Roll back to the last adapters with a finite loss and gradient, and to their step."""
        for good, tensor in zip(self._good, self._tensors(), strict=True):
            tensor.copy_(good)
            tensor.grad = None
        self.adapters.publish()
        self.step_number = self._good_step
        del self.losses[self.step_number :]

    def _diverged(self, what: str) -> Diverged:
        """The error to raise; the adapters are rolled back."""
        step = self.step_number + 1
        self._restore()
        return Diverged(step, what)

    def _check_attached(self) -> None:
        if not self.adapters.attachments:
            raise PCMError(
                "The adapters are not attached to the model, so nothing would be trained.",
                "a trainer that runs within adapters.attached().",
                "Write: with adapters.attached(): trainer.run().",
            )

    def _check_frozen(self, loss: Tensor, allowed: Iterable[nn.Parameter] = ()) -> None:
        """On the first step: the loss must depend on the student, and on no other weight of the model."""
        if self._checked:
            return
        leaves, student = leaves_of(loss), {id(p) for p in self.adapters.student.parameters()}
        if not any(id(leaf) in student for leaf in leaves):
            raise PCMError(
                "The loss does not depend on the adapters: they are attached to another model than the one called.",
                "adapters of the model that the trainer calls.",
                "Build them with adaptable(model) of that very model.",
            )
        known = {id(parameter) for parameter in (*self.adapters.parameters(), *allowed)}
        if count := sum(id(leaf) not in known for leaf in leaves):
            raise PCMError(
                f"The base model is not frozen: {count} of its parameters require gradients.",
                "a frozen model, of which only the adapters are trained.",
                "Call model.requires_grad_(False) first.",
            )
        self._checked = True

    def _autocast(self, x: Tensor) -> torch.amp.autocast:
        dtype = self.autocast_dtype
        return torch.amp.autocast(x.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _as(self, mode: str, captions: Tensor) -> Denoiser:
        """The backbone as one of its networks, for these captions."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            with self.adapters.use(mode), self._autocast(x):
                return self.backbone(x, sigma, captions).float()

        return denoise


def leaves_of(loss: Tensor) -> list[Tensor]:
    """The leaf tensors with a gradient that ``loss`` was computed from."""
    waiting, seen, leaves = [loss.grad_fn], set[Any](), list[Tensor]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            leaves.append(variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return leaves


def adamw(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW, fused over all parameters if the device supports it."""
    parameters = list(parameters)
    try:
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
