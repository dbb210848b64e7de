"""The distillation loop: deterministic from its seed, resumable, and safe to stop at any step."""
# pyright: reportUnknownMemberType=false
# (Tensor.backward and Optimizer.step are untyped in torch.)

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PCMError
from .adapters import Adapters, Mode
from .adversarial import Adversary, hinge_discriminator, hinge_generator, renoise
from .config import DistillConfig, Diverged
from .data import Data
from .objective import Denoiser, PhasedPair, SolverGrid, guided, phased_pair, pseudo_huber

Backbone = Callable[[Tensor, Tensor, Tensor], Tensor]
NULL_CAPTION = -1


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: ``loss`` is the consistency loss; the adversarial pair is 0 where there is none."""

    step: int
    loss: float
    generator_loss: float
    discriminator_loss: float
    grad_norm: float
    lr: float


def _alone(tensors: Sequence[Tensor]) -> None:
    """One process: its gradients are the average already."""


@dataclass(frozen=True)
class Processes:
    """Data parallelism: this process's place, and how to average tensors over all of them in place."""

    rank: int = 0
    count: int = 1
    average: Callable[[Sequence[Tensor]], None] = _alone


class Trainer:
    """Train adapters on one backbone that is teacher, student and target in turn.

    Args:
        backbone: ``(x, sigma [B], captions [B]) -> x0`` through modules that ``adapters`` is attached to. Called with
            twice the batch where the teacher is guided: the captions, then the null caption -1.
        adapters: attached by the caller (``with adapters.attached():``).
        data: what to train on.
        table: the model's ascending sigma table, as for ``SolverGrid.from_table``.
        flow: how latents are noised.
        adversary: needed where ``config.adversarial`` is above 0.
        processes: every process draws the global batch and keeps its share, so that n processes do what one does.

    Raises:
        PCMError: if settings contradict each other.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Adapters,
        data: Data,
        table: Tensor,
        config: DistillConfig,
        *,
        flow: bool,
        adversary: Adversary | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.backbone, self.adapters, self.data, self.config, self.flow = backbone, adapters, data, config, flow
        self.processes = processes or Processes()
        self.grid = SolverGrid.from_table(table, config.phases, config.grid, config.terminal)
        self.adversary = adversary if config.adversarial else None
        if config.adversarial and adversary is None:
            raise PCMError("The adversarial weight is above 0 without a discriminator.", "one.", "Pass an Adversary.")
        if config.batch % self.processes.count:
            raise PCMError(
                f"A batch of {config.batch} cannot be shared by {self.processes.count} processes.",
                "a multiple of the processes.",
                "Change the batch.",
            )
        self.step_number = 0
        self.losses: list[float] = []
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimiser = _adamw(adapters.parameters(), config.lr, (0.9, 0.99), config.weight_decay)
        self.critic = None
        if self.adversary is not None:
            self.critic = _adamw(self.adversary.heads.parameters(), config.adversarial_lr, (0.0, 0.999), 0.01)
        if config.ema:
            adapters.update_average(0)
        self._remember()

    def run(
        self,
        after_step: Callable[[StepReport], None] | None = None,
        around_step: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> list[float]:
        """Train up to ``config.steps``, each inside a new ``around_step()``.

        Whatever ``after_step`` raises ends the run between two steps.

        Returns:
            The consistency loss of every step so far, including those before a resume.

        Raises:
            Diverged: see there.
        """
        while self.step_number < self.config.steps:
            with around_step():
                report = self.step()
            if after_step is not None:
                after_step(report)
        return self.losses

    def step(self) -> StepReport:
        """One optimiser step."""
        config, parameters = self.config, self.adapters.parameters()
        self._zero_grad()
        totals = torch.zeros(3, dtype=torch.float64)
        for _ in range(config.accumulate):
            totals += self._pass() / config.accumulate
        self.processes.average([totals, *self._gradients()])
        loss, generator_loss, discriminator_loss = (float(total) for total in totals)
        norm = float(nn.utils.clip_grad_norm_(parameters, config.clip))
        found = {"loss": loss, "discriminator": discriminator_loss + self._critic_norm(), "gradient": norm}
        if broken := [name for name, value in found.items() if not math.isfinite(value)]:
            step = self.step_number + 1
            self._restore()
            raise Diverged(step, broken[0])
        lr = config.learning_rate(self.step_number)
        self._update(lr)
        self.step_number += 1
        self.losses.append(loss)
        return StepReport(self.step_number, loss, generator_loss, discriminator_loss, norm, lr)

    @torch.no_grad()
    def _update(self, lr: float) -> None:
        for good, tensor in zip(self._good, self.adapters.tensors(), strict=True):
            good.copy_(tensor)
        self._good_step = self.step_number
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        if self.critic is not None:
            self.critic.step()
        if self.config.ema:
            step = self.step_number
            self.adapters.update_average(min(self.config.ema, (step + 1) / (step + 10)))

    def _remember(self) -> None:
        self._good = [tensor.detach().clone() for tensor in self.adapters.tensors()]
        self._good_step = self.step_number

    @torch.no_grad()
    def _restore(self) -> None:
        """Back to the adapters that last gave a finite loss and gradient, and to their step."""
        for good, tensor in zip(self._good, self.adapters.tensors(), strict=True):
            tensor.copy_(good)
        self.step_number = self._good_step
        del self.losses[self.step_number :]
        self._zero_grad()

    def _zero_grad(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if self.critic is not None:
            self.critic.zero_grad(set_to_none=True)

    def _critic_norm(self) -> float:
        """Sum of the norms of the discriminator's gradients; 0 without one."""
        heads = self.adversary.heads.parameters() if self.adversary else ()
        norms: list[Tensor] = [torch.linalg.vector_norm(p.grad) for p in heads if p.grad is not None]
        return float(torch.stack(norms).sum()) if norms else 0.0

    def _gradients(self) -> list[Tensor]:
        parameters = [*self.adapters.parameters(), *(self.adversary.heads.parameters() if self.adversary else ())]
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _pass(self) -> Tensor:
        """Forward and backward of one batch: consistency, generator and discriminator loss, float64 [3]."""
        batch = self._draw()
        pair = phased_pair(
            self._as("student", batch.captions),
            self._teacher(batch),
            self._as("target" if self.config.target == "ema" else "student", batch.captions),
            batch.clean,
            batch.noise,
            batch.index,
            self.grid,
            flow=self.flow,
        )
        huber = self.config.loss == "huber"
        loss = total = pseudo_huber(pair.error, self.config.huber_c) if huber else pair.error.square().mean()
        generator_loss = discriminator_loss = total.new_zeros(())
        if self.adversary is not None:
            generator_loss, discriminator_loss = self._adversarial(pair, batch)
            total = total + self.config.adversarial * generator_loss
        (total / self.config.accumulate).backward()
        return torch.stack([loss.detach(), generator_loss.detach(), discriminator_loss.detach()]).double().cpu()

    def _adversarial(self, pair: PhasedPair, batch: _Batch) -> tuple[Tensor, Tensor]:
        assert self.adversary is not None and batch.level is not None and batch.renoise is not None
        captions, level = batch.captions, batch.level.to(pair.edge)
        noise_real, noise_fake = batch.renoise
        real = renoise(pair.landing, pair.edge, level, noise_real, flow=self.flow)
        fake = renoise(pair.prediction, pair.edge, level, noise_fake, flow=self.flow)
        with self._autocast(real), self.adapters.use("off"):
            with torch.no_grad():
                seen_real = self.adversary.features(real, level, captions)
            seen_fake = self.adversary.features(fake, level, captions)
            heads = self.adversary.heads
            critic_loss = hinge_discriminator(heads(seen_real), heads([feature.detach() for feature in seen_fake]))
            (critic_loss / self.config.accumulate).backward()
            return hinge_generator(heads(seen_fake, frozen=True)), critic_loss

    def _autocast(self, x: Tensor) -> torch.amp.autocast:
        dtype = self.config.autocast
        return torch.amp.autocast(x.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _as(self, mode: Mode, captions: Tensor) -> Denoiser:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            with self.adapters.use(mode), self._autocast(x):
                return self.backbone(x, sigma, captions).float()

        return denoise

    def _teacher(self, batch: _Batch) -> Denoiser:
        if not self.config.guided:
            return self._as("off", batch.captions)
        both = self._as("off", torch.cat([batch.captions, torch.full_like(batch.captions, NULL_CAPTION)]))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            conditional, unconditional = both(torch.cat([x, x]), torch.cat([sigma, sigma])).chunk(2)
            return guided(conditional, unconditional, batch.cfg.to(x))

        return denoise

    def _draw(self) -> _Batch:
        """Draw the global batch, keep this process's share."""
        config, generator = self.config, self.generator
        count, share = config.batch, config.batch // self.processes.count
        mine = slice(self.processes.rank * share, (self.processes.rank + 1) * share)
        rows = self.data.draw(count, generator)
        clean = self.data.latents(rows[mine])
        captions = self.data.captions(rows)
        dropped = torch.rand(count, generator=generator) < config.caption_dropout
        captions = torch.where(dropped, NULL_CAPTION, captions)[mine]
        # One point from each of B equal stretches of the grid: the same distribution, less noise in the loss.
        index = (torch.arange(count) + torch.rand(count, generator=generator)) / count * len(self.grid)
        index = index.long().clamp(max=len(self.grid) - 1)[mine]
        low, high = config.cfg
        cfg = (low + (high - low) * torch.rand(count, generator=generator))[mine]
        shape = (count, *clean.shape[1:])

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator)[mine].to(clean)

        level = extra = None
        first = noise()
        if self.adversary is not None:
            everyone = torch.zeros(count, dtype=torch.int64)
            everyone[mine] = index
            level = self.adversary.level(self.grid, everyone, generator, config.adversarial_span)[mine]
            extra = (noise(), noise())
        return _Batch(clean, captions, index, cfg, first, level, extra)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on to the same bits: tensors, numbers and lists only (``torch.save``)."""
        return {
            "step": self.step_number,
            "losses": list(self.losses),
            "adapters": self.adapters.state(),
            "alpha": self.adapters.alpha,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "heads": self.adversary.heads.state() if self.adversary else [],
            "critic": self.critic.state_dict() if self.critic else {},
            "config": {name: str(value) for name, value in asdict(self.config).items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from ``state``.

        Raises:
            PCMError: if it was made with other settings.
        """
        now = {name: str(value) for name, value in asdict(self.config).items()}
        # A setting that is newer than the checkpoint had its default then.
        made = {field.name: str(field.default) for field in fields(self.config)} | state["config"]
        changed = [f"{name} {made[name]} -> {value}" for name, value in now.items() if made[name] != value]
        changed += self.adapters.unlike(state["adapters"], state.get("alpha", self.adapters.alpha))
        if self.adversary is not None:
            changed += self.adversary.heads.unlike(state["heads"])
        if changed:
            raise PCMError(
                f"The checkpoint was made with other settings ({'; '.join(changed[:3])}).",
                "the same settings.",
                "Resume with them, or continue from the saved LoRA instead.",
            )
        self.step_number, self.losses = int(state["step"]), list(state["losses"])
        self.adapters.load(state["adapters"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        if self.adversary is not None and self.critic is not None:
            self.adversary.heads.load(state["heads"])
            self.critic.load_state_dict(state["critic"])
        self._remember()


def _adamw(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW, as one kernel over all parameters where the device has it."""
    parameters = list(parameters)
    try:
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)


@dataclass(frozen=True)
class _Batch:
    """One share of a drawn batch; index, cfg, captions and level are on the CPU."""

    clean: Tensor
    captions: Tensor
    index: Tensor
    cfg: Tensor
    noise: Tensor
    level: Tensor | None
    renoise: tuple[Tensor, Tensor] | None
