"""The consistency stage: deterministic for a seed, resumable, and safe to stop at any step."""
# pyright: reportUnknownMemberType=false
# (Tensor.backward and Optimizer.step are untyped in torch.)

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PCMError
from ..sigma_table import SigmaTable
from .adapters import Adapters
from .adversarial import Discriminator, hinge_discriminator, hinge_generator, renoise
from .checkpoint import migrate
from .config import DistillConfig
from .data import Data
from .loop import NULL_CAPTION, Backbone, Processes, StepReport, TrainingLoop, adamw
from .objective import Denoiser, PhasedPair, SolverGrid, guided, phased_pair, pseudo_huber


@dataclass(frozen=True)
class _Batch:
    """This process's part of a drawn batch; index, cfg, captions and level are on the CPU."""

    clean: Tensor
    captions: Tensor
    index: Tensor
    cfg: Tensor
    noise: Tensor
    level: Tensor | None
    renoise: tuple[Tensor, Tensor] | None


class Trainer(TrainingLoop):
    """Train adapters on one backbone that is teacher, student and target in turn.

    Args:
        backbone: ``(x, sigma [B], captions [B]) -> x0`` through modules that ``adapters`` is attached to. Called with
            twice the batch for a guided teacher: the captions, then the null caption -1.
        adapters: attached by the caller (``with adapters.attached():``); the model is frozen.
        data: the training data.
        table: the model's sigma table, as for ``SolverGrid.from_table``.
        flow: whether latents are noised as in flow models.
        discriminator: needed if ``config.adversarial`` is above 0.
        processes: every process draws the global batch and keeps its part, so n processes train the same as one.

    Raises:
        PCMError: if settings contradict each other.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Adapters,
        data: Data,
        table: SigmaTable | Tensor,
        config: DistillConfig,
        *,
        flow: bool,
        discriminator: Discriminator | None = None,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(
            backbone, adapters, processes, steps=config.steps, ema=config.ema, autocast=config.autocast,
            seed=config.seed,
        )  # fmt: skip
        self.data, self.config, self.flow = data, config, flow
        self.grid = SolverGrid.from_table(table, config.phases, config.grid, config.terminal)
        self.discriminator = discriminator if config.adversarial else None
        if config.adversarial and discriminator is None:
            raise PCMError("adversarial is above 0 without a discriminator.", "one.", "Pass a Discriminator.")
        self._part = self.processes.part(config.batch)
        self.optimizer = adamw(adapters.student.trained, config.lr, (0.9, 0.99), config.weight_decay)
        self.discriminator_optimizer = None
        if self.discriminator is not None:
            self.discriminator_optimizer = adamw(
                self.discriminator.heads.parameters(), config.adversarial_lr, (0.0, 0.999), 0.01
            )

    def step(self) -> StepReport:
        """One optimizer step."""
        self._check_attached()
        config = self.config
        self._zero_grad()
        totals = torch.zeros(3, dtype=torch.float64)
        for _ in range(config.accumulate):
            totals += self._pass() / config.accumulate
        self.processes.average([totals, *self._gradients()])
        loss, generator_loss, discriminator_loss = (float(total) for total in totals)
        norm = float(nn.utils.clip_grad_norm_(self.adapters.student.trained, config.max_grad_norm))
        found = {"loss": loss, "discriminator": discriminator_loss + self._discriminator_norm(), "gradient": norm}
        if broken := [name for name, value in found.items() if not math.isfinite(value)]:
            raise self._diverged(broken[0])
        lr = config.learning_rate(self.step_number)
        self._update(lr)
        self._count_update(loss)
        return StepReport(self.step_number, loss, generator_loss, discriminator_loss, norm, lr)

    @torch.no_grad()
    def _update(self, lr: float) -> None:
        self._remember()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.adapters.student.publish()
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.step()

    def _heads(self) -> list[nn.Parameter]:
        return list(self.discriminator.heads.parameters()) if self.discriminator else []

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.zero_grad(set_to_none=True)

    def _discriminator_norm(self) -> float:
        """Sum of the norms of the discriminator's gradients; 0 without one."""
        norms: list[Tensor] = [torch.linalg.vector_norm(p.grad) for p in self._heads() if p.grad is not None]
        return float(torch.stack(norms).sum()) if norms else 0.0

    def _gradients(self) -> list[Tensor]:
        parameters = [*self.adapters.student.trained, *self._heads()]
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _pass(self) -> Tensor:
        """Forward and backward pass of one batch: consistency, generator and discriminator loss, float64 [3]."""
        batch = self._draw()
        pair = phased_pair(
            self._as("student", batch.captions),
            self._teacher(batch),
            self._as("ema" if self.config.target == "ema" else "student", batch.captions),
            batch.clean,
            batch.noise,
            batch.index,
            self.grid,
            flow=self.flow,
        )
        huber = self.config.loss == "huber"
        loss = total = pseudo_huber(pair.error, self.config.huber_c) if huber else pair.error.square().mean()
        self._check_frozen(loss)
        generator_loss = discriminator_loss = total.new_zeros(())
        if self.discriminator is not None:
            generator_loss, discriminator_loss = self._adversarial(self.discriminator, pair, batch)
            total = total + self.config.adversarial * generator_loss
        (total / self.config.accumulate).backward()
        return torch.stack([loss.detach(), generator_loss.detach(), discriminator_loss.detach()]).cpu().double()

    def _adversarial(self, discriminator: Discriminator, pair: PhasedPair, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Generator and discriminator loss; the backward pass of the latter is done already."""
        assert batch.level is not None and batch.renoise is not None
        captions, level = batch.captions, batch.level.to(pair.edge)
        noise_real, noise_fake = batch.renoise
        real = renoise(pair.landing, pair.edge, level, noise_real, flow=self.flow)
        fake = renoise(pair.prediction, pair.edge, level, noise_fake, flow=self.flow)
        with self._autocast(real), self.adapters.use("off"):
            with torch.no_grad():
                seen_real = discriminator.features(real, level, captions)
            seen_fake = discriminator.features(fake, level, captions)
            heads = discriminator.heads
            loss = hinge_discriminator(heads(seen_real), heads([feature.detach() for feature in seen_fake]))
            (loss / self.config.accumulate).backward()
            return hinge_generator(heads(seen_fake, frozen=True)), loss

    def _teacher(self, batch: _Batch) -> Denoiser:
        if not self.config.guided:
            return self._as("off", batch.captions)
        both = self._as("off", torch.cat([batch.captions, torch.full_like(batch.captions, NULL_CAPTION)]))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            conditional, unconditional = both(torch.cat([x, x]), torch.cat([sigma, sigma])).chunk(2)
            return guided(conditional, unconditional, batch.cfg.to(x))

        return denoise

    def _draw(self) -> _Batch:
        """Draw the global batch, keep this process's part."""
        config, generator, count, mine = self.config, self.generator, self.config.batch, self._part
        rows = self.data.draw(count, generator)
        clean = self.data.latents(rows[mine])
        captions = self.data.captions(rows)
        dropped = torch.rand(count, generator=generator) < config.caption_dropout
        captions = torch.where(dropped, NULL_CAPTION, captions)[mine]
        # Stratified: one point from each of B equal parts of the grid. Same distribution, less noise in the loss.
        index = (torch.arange(count) + torch.rand(count, generator=generator)) / count * len(self.grid)
        index = index.long().clamp(max=len(self.grid) - 1)[mine]
        low, high = config.cfg
        cfg = (low + (high - low) * torch.rand(count, generator=generator))[mine]
        shape = (count, *clean.shape[1:])

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator)[mine].to(clean)

        level = extra = None
        first = noise()
        if self.discriminator is not None:
            everyone = torch.zeros(count, dtype=torch.int64)
            everyone[mine] = index
            level = self.discriminator.level(self.grid, everyone, generator, config.adversarial_span)[mine]
            extra = (noise(), noise())
        return _Batch(clean, captions, index, cfg, first, level, extra)

    def state(self) -> dict[str, Any]:
        """Everything needed to resume to the same bits: tensors, numbers and lists only (``torch.save``)."""
        return {
            "step": self.step_number,
            "losses": list(self.losses),
            "adapters": self.adapters.state(),
            "alpha": self.adapters.alpha,
            "adapter_dtype": self.adapters.dtype_name,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "discriminator": self.discriminator.heads.state_dict() if self.discriminator else {},
            "discriminator_optimizer": (
                self.discriminator_optimizer.state_dict() if self.discriminator_optimizer else {}
            ),
            "config": {name: str(value) for name, value in asdict(self.config).items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from ``state``, which an earlier version may have written.

        Raises:
            PCMError: if it was made with other settings.
        """
        state = migrate(state)
        if changed := self._differences(state):
            raise PCMError(
                f"The checkpoint was made with other settings ({'; '.join(changed[:3])}).",
                "the same settings.",
                "Resume with them, or continue from the saved LoRA instead.",
            )
        self.step_number, self.losses = int(state["step"]), list(state["losses"])
        self.adapters.load(state["adapters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            self.discriminator.heads.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self._remember()

    def _differences(self, state: dict[str, Any]) -> list[str]:
        now = {name: str(value) for name, value in asdict(self.config).items()}
        # A setting newer than the checkpoint had its default value then.
        made = {field.name: str(field.default) for field in fields(self.config)} | state["config"]
        changed = [f"{name} {made[name]} -> {value}" for name, value in now.items() if made[name] != value]
        made_with = state.get("alpha", self.adapters.alpha), state.get("adapter_dtype", "float32")
        changed += self.adapters.differences(state["adapters"], *made_with)
        if self.discriminator is not None:
            changed += self.discriminator.heads.differences(state["discriminator"])
        return changed
