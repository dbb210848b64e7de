"""The matching stage: the student's ends must have the guided teacher's distribution. See ``matching``.

Four networks on one backbone: the teacher (``off``), the student, its average, and the fake, which learns the score of
the student's own landings. Starts from what consistency learned; its bank says where the student stood then.
"""
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
from .adversarial import renoise
from .bank import Bank, BankPlan
from .diagnosis import Collapsed, Diagnosis, diagnosis_of
from .loop import NULL_CAPTION, Backbone, Processes, StepReport, TrainingLoop, adamw
from .low_rank import SetState
from .matching import Scores, fake_loss, matching_gradient, matching_loss, renoised_path, unroll
from .matching_config import MatchingConfig
from .matching_draws import Draws, MatchingBatch
from .objective import jump_batch, pseudo_huber
from .spread import Spread

_DIAGNOSE_EVERY = 50


@dataclass(frozen=True)
class MatchingReport(StepReport):
    """One update: ``loss`` is that of the student (of the fake before its first one), ``generator_loss`` the matching
    part and ``discriminator_loss`` that of the fake.

    Attributes:
        regression, hold, spread: the parts of the loss, before their weights.
        matching, guidance: RMS of the two parts of the gradient, before they are normalized.
        diagnosis: every 50 updates.
    """

    regression: float = 0.0
    hold: float = 0.0
    spread: float = 0.0
    matching: float = 0.0
    guidance: float = 0.0
    diagnosis: Diagnosis | None = None


class MatchingTrainer(TrainingLoop):
    """Train the student against a fake on the same backbone.

    Args:
        backbone, adapters, table, flow, processes: as ``Trainer``; the student holds the LoRA to start from. A set
            ``fake`` is added.
        bank: made with ``plan`` for this student, the held-out pairs first.

    Raises:
        PCMError: if the plan has other phases, or a batch cannot be shared by the processes.
    """

    def __init__(
        self, backbone: Backbone, adapters: Adapters, bank: Bank, plan: BankPlan, table: SigmaTable | Tensor,
        config: MatchingConfig, *, flow: bool, processes: Processes | None = None,
    ) -> None:  # fmt: skip
        if len(plan.edges) != config.phases + 1:
            raise PCMError(
                f"The bank has {len(plan.edges) - 1} phases.", f"{config.phases}.", "Make it with the same settings."
            )
        self.start = adapters.student.state()
        self.config, self.plan, self.flow = config, plan, flow
        self.held, self.bank = bank.rows(0, plan.held), bank.rows(plan.held)
        self.edges = plan.edges
        self.path = renoised_path(table, config.renoised, plan.edges[-1]) if config.renoised else plan.edges
        self.fake = adapters.add_set(
            "fake", config.fake_rank or adapters.rank, generator=torch.Generator().manual_seed(config.seed + 1)
        )
        super().__init__(
            backbone, adapters, processes, steps=config.all_steps, ema=config.ema,
            autocast=config.autocast, seed=config.seed,
        )  # fmt: skip
        part = self.processes.part(config.batch)
        self.draws = Draws(config, self.bank, self.edges, table, self.generator, part, flow)
        self.device = next(adapters.student.parameters()).device
        self.optimizer = adamw(adapters.student.trained, config.lr, (0.0, 0.99), config.weight_decay)
        self.fake_optimizer = adamw(self.fake.trained, config.fake_lr, (0.0, 0.99), 0.0)
        self.spread = Spread.of(self.bank) if config.spread else None
        self.first_spread: float | None = None

    @property
    def updates(self) -> int:
        """Updates of the student against the fake so far."""
        return max(0, self.step_number - self.config.regression_warmup - self.config.fake_warmup)

    def step(self) -> MatchingReport:
        """One update of the student by regression, then of the fake alone, then of the student and some of the fake."""
        self._check_attached()
        batches = [self.draws.batch() for _ in range(self.config.accumulate)]
        alone = self.step_number < self.config.regression_warmup
        if not alone and self.step_number < self.config.regression_warmup + self.config.fake_warmup:
            return self._warm(batches)
        report = self._update_student(batches, alone)
        self._watch(report)
        return report

    def _warm(self, batches: list[MatchingBatch]) -> MatchingReport:
        # The bank's states are those of the student that it was made with.
        jumps = -1 if self.config.regression_warmup else 0
        with torch.no_grad():
            landings = [self._land(batch, jumps)[0] for batch in batches]
        self._remember()
        loss, norm = self._update_fake(batches, landings)
        self.step_number += 1
        self.losses.append(loss)
        return MatchingReport(self.step_number, loss, 0.0, loss, norm, self.config.fake_lr)

    def _update_student(self, batches: list[MatchingBatch], alone: bool) -> MatchingReport:
        """``alone``: by regression, without a fake."""
        config, parameters = self.config, self.adapters.student.trained
        self.optimizer.zero_grad(set_to_none=True)
        passes = [self._pass(batch, alone) for batch in batches]
        figures, landings = torch.stack([found for found, _ in passes]).mean(0), [landing for _, landing in passes]
        self.processes.average([figures, *(p.grad for p in parameters if p.grad is not None)])
        norm = float(nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        loss, matching, regression, hold, spread, push, guidance = (float(figure) for figure in figures)
        for name, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise self._diverged(name)
        self._remember()
        lr = config.regression_rate(self.step_number) if alone else config.learning_rate(self.updates)
        for group in self.optimizer.param_groups:
            # Regression is ordinary learning. Against a fake there is no momentum, as in GANs.
            group |= {"lr": lr, "betas": (0.9 if alone else 0.0, 0.99)}
        self.optimizer.step()
        self.adapters.student.publish()
        count = 0 if alone else config.fake_updates
        fakes = [self._update_fake(batches, landings, again=i > 0)[0] for i in range(count)]
        self._count_update(loss)
        done = self.step_number if alone else self.updates
        return MatchingReport(
            self.step_number, loss, matching, sum(fakes) / max(count, 1), norm, lr, regression, hold, spread, push,
            guidance, self.diagnose() if done % _DIAGNOSE_EVERY == 0 else None,
        )  # fmt: skip

    def _pass(self, batch: MatchingBatch, alone: bool) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of one batch: its loss, parts and gradient sizes, float64 [7], and its landings."""
        landing, denoised = self._land(batch, self.config.unroll)
        # A fake that equals the teacher pushes nowhere.
        scores = Scores(landing.detach(), landing.detach()) if alone else self._scores(batch, landing)
        gradient = matching_gradient(scores, denoised, self.config.floor)
        parts = [matching_loss(landing, gradient), self._regression(batch, landing), self._hold(batch)]
        parts.append(self._spread(batch, landing))
        total = sum(weight * part for weight, part in zip(self._weights(), parts, strict=True))
        assert isinstance(total, Tensor)
        self._check_frozen(total)
        (total / self.config.accumulate).backward()
        sizes = [_rms(scores.fake - scores.real), _rms(scores.guidance)]
        figures = torch.stack([total.detach(), *(part.detach() for part in parts), *sizes]).cpu().double()
        return figures, landing.detach()

    def _weights(self) -> tuple[float, float, float, float]:
        return self.config.matching, self.config.regression, self.config.hold, self.config.spread

    def _land(self, batch: MatchingBatch, jumps: int) -> tuple[Tensor, Tensor]:
        """The student from the bank through so many earlier jumps (-1: all) and its phase: landing and last x0."""
        first = 0 if jumps < 0 else max(0, batch.phase - jumps)
        x = self.bank.states[first][batch.rows].to(self.device)
        student, recompute = self._as("student", batch.captions), self.config.recompute
        if self.config.renoised:
            return unroll(student, x, self.path, recompute=recompute, noises=batch.renoising.unbind(1), flow=self.flow)
        return unroll(student, x, self.edges[first : batch.phase + 2], recompute=recompute)

    @torch.no_grad()
    def _scores(self, batch: MatchingBatch, landing: Tensor) -> Scores:
        """The fake's and the guided teacher's x0 of the renoised landings."""
        config, captions = self.config, batch.captions
        noised, level = self._renoised(batch, landing, batch.level, batch.noise)
        fake = self._as("fake", captions)(noised, level)
        matched = config.cfg if config.matched_cfg is None else config.matched_cfg
        conditional, unconditional = self._pair(captions, noised, level, guided=matched != 1)
        real = unconditional + matched * (conditional - unconditional)
        if matched == config.cfg:
            return Scores(fake, real)
        noised, level = self._renoised(batch, landing, batch.guidance_level, batch.guidance_noise)
        conditional, unconditional = self._pair(captions, noised, level, guided=True)
        return Scores(fake, real, (config.cfg - matched) * (conditional - unconditional))

    def _renoised(self, batch: MatchingBatch, landing: Tensor, level: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        level = level.to(landing)
        edge = torch.full_like(level, self.edges[batch.phase + 1])
        return renoise(landing, edge, level, noise.to(landing), flow=self.flow), level

    def _pair(self, captions: Tensor, x: Tensor, sigma: Tensor, *, guided: bool) -> tuple[Tensor, Tensor]:
        """The teacher with and without the caption; the same where there is no guidance."""
        if not guided:
            conditional = self._as("off", captions)(x, sigma)
            return conditional, conditional
        both = torch.cat([captions, torch.full_like(captions, NULL_CAPTION)])
        conditional, unconditional = self._as("off", both)(torch.cat([x, x]), torch.cat([sigma, sigma])).chunk(2)
        return conditional, unconditional

    def _regression(self, batch: MatchingBatch, landing: Tensor) -> Tensor:
        """Loss between the student's results and the teacher's own trajectory."""
        if not self.config.regression or batch.phase + 1 < self.config.phases:
            return landing.new_zeros(())
        return pseudo_huber(landing - self.bank.ends[batch.rows].to(landing), self.config.regression_c)

    def _spread(self, batch: MatchingBatch, landing: Tensor) -> Tensor:
        if self.spread is None or batch.phase + 1 < self.config.phases:
            return landing.new_zeros(())
        return self.spread.loss(landing, batch.rows, self.processes)

    def _hold(self, batch: MatchingBatch) -> Tensor:
        """Loss between jumps of the upper phases and their results stored in the bank."""
        count, upper = len(batch.held_rows), self.config.phases - 1
        if not self.config.hold or not upper:
            return torch.zeros((), device=self.device)
        phase = torch.arange(count) % upper
        states = torch.stack(self.bank.states)
        x, end = (states[phase + i, batch.held_rows].to(self.device) for i in (0, 1))
        edges = torch.tensor(self.edges)
        sigma, below = (edges[phase + i].to(x) for i in (0, 1))
        landing = jump_batch(x, self._as("student", self.bank.captions[batch.held_rows])(x, sigma), sigma, below)
        error = landing - end
        if not self.flow:  # to unit variance: latents of variance exploding models grow with sigma
            error = error * (1 + below.square()).rsqrt().reshape(-1, *[1] * (x.ndim - 1))
        return pseudo_huber(error, self.config.hold_c)

    def _update_fake(
        self, batches: list[MatchingBatch], landings: list[Tensor], *, again: bool = False
    ) -> tuple[float, float]:  # fmt: skip
        """One update of the fake on landings of the student: its loss and the norm of its gradient."""
        parameters = self.fake.trained
        self.fake_optimizer.zero_grad(set_to_none=True)
        losses = [self._fake_pass(*pair, again=again) for pair in zip(batches, landings, strict=True)]
        figure = torch.stack(losses).mean()
        self.processes.average([figure, *(p.grad for p in parameters if p.grad is not None)])
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not math.isfinite(float(figure)) or not math.isfinite(norm):
            raise self._diverged("fake's loss")
        self.fake_optimizer.step()
        self.fake.publish()
        return float(figure), norm

    def _fake_pass(self, batch: MatchingBatch, landing: Tensor, *, again: bool) -> Tensor:
        level, noise = (self.draws.levels(batch.phase), self.draws.noise()) if again else (batch.level, batch.noise)
        edge = torch.full_like(level, self.edges[batch.phase + 1]).to(landing)
        fake = self._as("fake", batch.captions)
        loss = fake_loss(fake, landing, edge, level.to(landing), noise.to(landing), flow=self.flow)
        (loss / self.config.accumulate).backward()
        return loss.detach().cpu().double()

    def diagnose(self) -> Diagnosis:
        """Diagnose the moving average, or the student if there is none, on the held-out pairs."""
        held, noises = self.held, None
        if self.config.renoised:  # the same at every diagnosis
            generator = torch.Generator().manual_seed(self.config.seed)
            noises = [torch.randn(held.ends.shape, generator=generator) for _ in self.path[1:-1]]
        with torch.no_grad():
            student, x = self._as("ema", held.captions), held.states[0].to(self.device)
            ends, _ = unroll(student, x, self.path, noises=noises, flow=self.flow)
        found = diagnosis_of(ends.float().cpu(), held, self.first_spread)
        # A start that scatters more than the teacher may come down to it.
        if self.first_spread is None:
            self.first_spread = min(found.spread, 1.0)
        return found

    def _watch(self, report: MatchingReport) -> None:
        """Stop the run if its samples collapse."""
        if self.first_spread is None:
            self.diagnose()
        first = self.first_spread
        assert first is not None
        if report.diagnosis is not None and report.diagnosis.spread < self.config.collapse * first:
            raise Collapsed(first, report.diagnosis.spread)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on to the same bits, but the bank: tensors, numbers and lists only."""
        return {
            "stage": "matching",
            "step": self.step_number,
            "losses": list(self.losses),
            "adapters": self.adapters.state(),
            "alpha": self.adapters.alpha,
            "adapter_dtype": self.adapters.dtype_name,
            "start": self.start,
            "first_spread": self.first_spread,
            **({"spread": self.spread.state()} if self.spread else {}),
            "optimizer": self.optimizer.state_dict(),
            "fake_optimizer": self.fake_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "config": {name: str(value) for name, value in asdict(self.config).items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from ``state``, with the bank it was made with.

        Raises:
            PCMError: if it was made with other settings, by another stage, or starts from another LoRA.
        """
        if changed := self._differences(state):
            raise PCMError(
                f"The checkpoint was made with other settings ({'; '.join(changed[:3])}).",
                "the same settings.",
                "Resume with them, or continue from the saved LoRA instead.",
            )
        self.step_number, self.losses = int(state["step"]), list(state["losses"])
        self.first_spread = state["first_spread"]
        if self.spread:
            self.spread.load(state["spread"])
        self.adapters.load(state["adapters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fake_optimizer.load_state_dict(state["fake_optimizer"])
        self.generator.set_state(state["generator"])
        self._remember()

    def _differences(self, state: dict[str, Any]) -> list[str]:
        if state.get("stage") != "matching":
            return [f"stage {state.get('stage', 'consistency')} -> matching"]
        now = {name: str(value) for name, value in asdict(self.config).items()}
        # A setting newer than the checkpoint had its default value then.
        made = {field.name: str(field.default) for field in fields(self.config)} | state["config"]
        changed = [f"{name} {made[name]} -> {value}" for name, value in now.items() if made[name] != value]
        changed += self.adapters.differences(state["adapters"], state["alpha"], state.get("adapter_dtype", "float32"))
        if not changed and not _same(state["start"], self.start):
            changed.append("another LoRA to start from")
        return changed


def _same(one: SetState, other: SetState) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(weight, other[name][part]) for name, weights in one.items() for part, weight in weights.items()
    )


def _rms(value: Tensor | float) -> Tensor:
    return value.square().mean().sqrt() if isinstance(value, Tensor) else torch.tensor(value)
