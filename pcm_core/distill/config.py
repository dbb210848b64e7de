"""The settings of a distillation, its error when it diverges, and the metadata of its file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import PCMError
from ..phases import Spacing, Terminal, phase_edges

# Noise levels and learning rate of the discriminator: the only pair that helped in benchmarks/results/experiments.md.
# The authors use the whole phase and 1e-5, which are the defaults below.
ADVERSARIAL_SPAN: tuple[float, float] = (0.0, 0.25)
ADVERSARIAL_LR = 1e-3


def usual_warmup(steps: int) -> int:
    """A tenth of a run, at most 100 steps."""
    return min(100, steps // 10)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of the consistency stage.

    Attributes:
        phases, grid, spacing, terminal: the phases, and the solver grid of their edges; see ``matching_grid``.
        steps: optimizer steps of the whole run; the cosine ends there.
        batch: samples per forward pass over all processes; ``accumulate`` passes make one optimizer step.
        lr, warmup, weight_decay, max_grad_norm: AdamW, linear warm-up then cosine to 2 %, gradient clipping.
        loss: ``huber`` (pseudo-Huber with ``huber_c``, official) or ``l2``.
        cfg: range of the teacher's guidance in ComfyUI's convention (official w + 1). (1, 1) distils without guidance
            and without a second teacher pass: the student can then be sampled over a wide range of cfg.
        caption_dropout: fraction of captions replaced by the null caption, for student and teacher; official 0.1 for
            distillation without guidance.
        ema: decay of the moving average, 0 for none; it ramps up, ``min(ema, (step + 1) / (step + 10))``.
        target: the network of the target's jump: the ``student`` without gradient (official) or the ``ema``.
        adversarial: weight of the adversarial loss (official 0.1); ``adversarial_lr``: learning rate of its heads.
        adversarial_span: range within the phase, from 0 (lower edge) to 1 (upper edge), of the noise level at which the
            discriminator sees both predictions. Official (0, 1); ``ADVERSARIAL_SPAN`` did better on images.
        autocast: compute dtype of the passes, such as ``torch.bfloat16``; the adapters stay float32.
        seed: seed of all random draws.
    """

    phases: int = 4
    grid: int = 40
    spacing: Spacing = "trailing"
    terminal: Terminal = "zero"
    steps: int = 1000
    batch: int = 4
    accumulate: int = 1
    lr: float = 1e-4
    warmup: int = 50
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = 1e-3
    cfg: tuple[float, float] = (1.0, 1.0)
    caption_dropout: float = 0.0
    ema: float = 0.0
    target: Literal["student", "ema"] = "student"
    adversarial: float = 0.0
    adversarial_lr: float = 1e-5
    adversarial_span: tuple[float, float] = (0.0, 1.0)
    autocast: torch.dtype | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1.")
        for name in ("lr", "huber_c", "max_grad_norm", "adversarial_lr"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, name, value, "a number above 0.")
        for name in ("caption_dropout", "ema"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 up to 1, 1 excluded.")
        for name in ("adversarial", "weight_decay", "warmup"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more.")
        for name, known in (("loss", ("huber", "l2")), ("target", ("student", "ema"))):
            require(getattr(self, name) in known, name, getattr(self, name), f"{known[0]} or {known[1]}.")
        low, high = self.cfg
        require(0 < low <= high < math.inf, "cfg", self.cfg, "a range of numbers above 0, smaller first.")
        bottom, top = self.adversarial_span
        require(0 <= bottom < top <= 1, "adversarial_span", self.adversarial_span, "two numbers from 0 to 1, rising.")
        require(self.target == "student" or self.ema > 0, "target", self.target, "an ema above 0 to go with it.")

    @property
    def guided(self) -> bool:
        return self.cfg != (1.0, 1.0)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 2 %."""
        return cosine(self.lr, step, self.warmup, self.steps)


def cosine(lr: float, step: int, warmup: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up over ``warmup`` steps to ``lr``, then a cosine to 2 % at ``steps``."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def require(good: bool, name: str, value: object, expected: str) -> None:
    """Refuse a setting in one sentence.

    Raises:
        PCMError: if not ``good``.
    """
    if not good:
        raise PCMError(f"{name} is {value}.", expected, f"Correct {name}.")


class Diverged(PCMError):  # noqa: N818
    """Loss or gradient became non-finite at ``step`` (1 is the first); the adapters were rolled back.

    They are those of the last finite step: the update that led to this one is undone, if there was one.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"The {what} became NaN or infinite at step {step}.",
            "finite numbers.",
            "The adapters are those of the last good step. Lower the learning rate, or check the latents for NaN.",
        )
        self.step = step


def distill_metadata(
    config: DistillConfig, *, prediction: str, base_model: str, steps: int, shift: float | None = None
) -> dict[str, str]:
    """The safetensors metadata that ``profile_from_metadata`` reads to configure loader and sampler.

    A student that was distilled with guidance is sampled at cfg 1; one without at the user's cfg, default 1.
    """
    low, high = config.cfg
    entries: dict[str, object] = {
        "phases": config.phases,
        "spacing": config.spacing,
        "grid": config.grid,
        "edges": ",".join(map(str, phase_edges(config.phases, config.grid))),
        "terminal": config.terminal,
        "guidance_min": low,
        "guidance_max": high,
        "cfg": 1.0,
        "prediction": prediction,
        "base_model": base_model,
        "train_steps": steps,
        "loss": f"pseudo-huber {config.huber_c:g}" if config.loss == "huber" else "l2",
    }
    if config.adversarial:
        entries["adversarial"] = config.adversarial
    if shift is not None:
        entries["shift"] = shift
    return {f"pcm_{name}": str(value) for name, value in entries.items()} | {"format": "pt"}
