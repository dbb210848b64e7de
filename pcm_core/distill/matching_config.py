"""The settings of a matching stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..phases import Spacing, Terminal
from .config import DistillConfig, cosine, require


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Settings of the matching stage.

    Attributes:
        phases, grid, spacing, terminal: as in ``DistillConfig``; those of the LoRA to start from.
        steps: updates of the student; the cosine ends there.
        batch: samples per pass over all processes; ``accumulate`` passes make an update of the student or the fake.
        lr, warmup, weight_decay, max_grad_norm, ema: of the student, as in ``DistillConfig``.
        cfg: guidance of the real score; above the teacher's own, for it is what moves the student.
        matched_cfg: how much of it the matching part holds; the rest is a guidance part at levels of
            ``guidance_span``. ``None`` for all of it, at one draw of levels.
        span, guidance_span: part of the noise range that levels are drawn from, 0 its lower and 1 its upper end.
        reach: that range: up to the top of the ``phase``, or of the whole ``path``.
        floor: of the per-sample normalization, see ``matching_gradient``.
        phase: which phase is matched: the ``last``, or a ``random`` one at each update.
        unroll: through how many earlier jumps the gradient goes; -1 for all.
        recompute: keep the activations of one jump at a time.
        renoised: steps of the path of a LoRA with one phase that is sampled as LCM, every step but the last renoised; 0
            for jumps along the phase edges. Its ends depend on noise that the bank does not hold, so there is no
            regression.
        matching, regression, hold: weights of the matching loss; of the pseudo-Huber loss (``regression_c``) between
            the end and the teacher's own walk; and of that (``hold_c``) between jumps of the upper phases and their
            stored ends.
        spread: weight of the loss that keeps samples of one text as far apart as the teacher's, see ``spread``.
        regression_warmup: updates by regression alone before all others, at ``regression_lr`` down to 2 % of it: what a
            student of one step needs (10,000 pairs in DMD2, ``train_sd_ode.py``).
        fake_rank, fake_lr, fake_updates, fake_warmup: of the fake: its rank (``None`` as the student), rate, updates
            per update of the student, and updates before the first one.
        teacher_cfg: guidance of the teacher's walk in the bank.
        walk: where that walk begins: at the top of the ``path``, pure noise, or where the student enters its last
            ``phase``, which makes the bank of M phases up to M times cheaper and the result less good.
        collapse: the run stops if the spread of samples under one text falls below this part of what it was.
        autocast, seed: as in ``DistillConfig``.
    """

    phases: int = 4
    grid: int = 40
    spacing: Spacing = "trailing"
    terminal: Terminal = "zero"
    steps: int = 450
    batch: int = 32
    accumulate: int = 1
    lr: float = 2e-4
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema: float = 0.995
    cfg: float = 4.0
    matched_cfg: float | None = None
    span: tuple[float, float] = (0.02, 0.98)
    guidance_span: tuple[float, float] = (0.02, 0.98)
    reach: Literal["phase", "path"] = "phase"
    floor: float = 0.05
    phase: Literal["last", "random"] = "last"
    unroll: int = -1
    recompute: bool = False
    renoised: int = 0
    matching: float = 1.0
    regression: float = 2.0
    regression_c: float = 0.1
    hold: float = 0.0
    hold_c: float = 0.02
    spread: float = 0.0
    regression_warmup: int = 0
    regression_lr: float = 1e-3
    fake_rank: int | None = None
    fake_lr: float = 5e-4
    fake_updates: int = 1
    fake_warmup: int = 150
    teacher_cfg: float = 3.0
    walk: Literal["phase", "path"] = "path"
    collapse: float = 0.5
    autocast: torch.dtype | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "fake_updates", "fake_rank"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1.")
        rates = ("lr", "fake_lr", "regression_lr")
        for name in (*rates, "max_grad_norm", "regression_c", "hold_c", "floor", "cfg", "teacher_cfg"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, name, value, "a number above 0.")
        for name in ("ema", "collapse"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 up to 1, 1 excluded.")
        weights, warmups = ("matching", "regression", "hold", "spread"), ("warmup", "fake_warmup", "regression_warmup")
        for name in (*weights, *warmups, "weight_decay"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more.")
        reaches = ("phase", "path")
        for name, known in (("reach", reaches), ("walk", reaches), ("phase", ("last", "random"))):
            require(getattr(self, name) in known, name, getattr(self, name), f"{known[0]} or {known[1]}.")
        for name in ("span", "guidance_span"):
            low, high = getattr(self, name)
            require(0 <= low < high <= 1, name, (low, high), "two numbers from 0 to 1, rising.")
        require(self.unroll >= -1, "unroll", self.unroll, "-1 for all, or a number of jumps.")
        if self.regression_warmup:
            require(self.regression > 0, "regression", self.regression, "above 0 with regression_warmup.")
            require(self.phase == "last", "phase", self.phase, "last with regression_warmup.")
        require(self.renoised >= 0, "renoised", self.renoised, "0, or a number of steps.")
        if self.renoised:
            require(self.phases == 1, "phases", self.phases, "1 with renoised steps.")
            require(self.regression == 0, "regression", self.regression, "0 with renoised steps: no end is known.")
            require(self.unroll == -1, "unroll", self.unroll, "-1 with renoised steps.")

    @property
    def guided(self) -> bool:
        """Whether a null caption is needed."""
        return self.cfg != 1 or self.teacher_cfg != 1

    @property
    def all_steps(self) -> int:
        """Updates of the student and those that only prepare them."""
        return self.regression_warmup + self.fake_warmup + self.steps

    def regression_rate(self, step: int) -> float:
        return cosine(self.regression_lr, step, 0, self.regression_warmup)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 2 %."""
        return cosine(self.lr, step, self.warmup, self.steps)


def matching_metadata(config: MatchingConfig) -> dict[str, str]:
    """What a file says of its matching stage."""
    stage = {"pcm_matching_steps": str(config.steps), "pcm_matching_cfg": str(config.cfg)}
    if config.renoised:
        stage |= {"pcm_determinism": "0.0", "pcm_steps": str(config.renoised)}
    return stage


def matching_after(consistency: DistillConfig, *, steps: int, cfg: float, **more: Any) -> MatchingConfig:
    """The usual matching stage after a consistency stage: same phases, batch and precision, rates that follow its.

    All of it was measured on the demo world (``benchmarks/results/experiments.md``). The student's rate is a fifth of
    that of the consistency stage, the fake's a half. The fake warms up as long as the student trains, at most 600
    updates, which cost a third. The bank's teacher is guided as the middle of the consistency stage's range. By phases:

    - one has most to learn: regression alone comes first, in as many updates; then the student's rate is a half and the
      fake's the whole, and the fake has three updates for one;
    - two are pushed far by guidance: the walks of the bank have less of it, and the regression is lighter;
    - more have a loss that holds the spread.
    """
    usual: dict[str, Any] = {
        "phases": consistency.phases,
        "grid": consistency.grid,
        "spacing": consistency.spacing,
        "terminal": consistency.terminal,
        "steps": steps,
        "batch": consistency.batch,
        "accumulate": consistency.accumulate,
        "lr": consistency.lr / 5,
        "fake_lr": consistency.lr / 2,
        "cfg": cfg,
        "teacher_cfg": sum(consistency.cfg) / 2,
        "fake_warmup": min(600, steps),
        "autocast": consistency.autocast,
        "seed": consistency.seed,
    }
    if consistency.phases == 1 and not more.get("renoised"):
        usual |= {"lr": consistency.lr / 2, "fake_lr": consistency.lr, "fake_updates": 3, "regression": 0.3}
        usual |= {"regression_warmup": steps, "regression_lr": consistency.lr}
    elif consistency.phases == 2:
        usual |= {"teacher_cfg": 1 + 0.75 * (usual["teacher_cfg"] - 1), "regression": 1.0}
    elif consistency.phases > 2:
        usual["spread"] = 20.0
    return MatchingConfig(**usual | more)
