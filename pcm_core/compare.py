"""What the compare node needs without a host: the columns people type, and how alike two pictures are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PCMError
from .phases import MAX_COUNT

_ENTRY = re.compile(
    r"(?:(?P<model>[a-z])\s*:\s*)?"
    r"(?:(?P<sampler>[\w+-]+)\s*/\s*(?P<scheduler>[\w+-]+)\s*@\s*)?"
    r"(?P<steps>auto|\d{1,6})"
    r"(?:\s+cfg\s*(?P<cfg>\d+(?:\.\d+)?))?"
    r"(?:\s*=\s*(?P<label>[^=]+))?",
    re.IGNORECASE,
)
# U+FF0C is the comma of Chinese and Japanese input methods.
_SEPARATORS = re.compile("[,\uff0c\n]")
MAX_COLUMNS = 64
_MAX_LABEL = 200  # a sheet is as wide as its labels
_WINDOW, _SIGMA = 11, 1.5


@dataclass(frozen=True, kw_only=True)
class Column:
    """One way to sample.

    Attributes:
        model: which connected model, ``a`` for the first.
        steps: evaluations; 0 for what the model's profile says.
        cfg: ``None`` for the profile's, and 1 for stock samplers.
        sampler, scheduler: of the host; empty for PCM.
        label: what the user calls it; empty for a made one.
    """

    model: str
    steps: int
    cfg: float | None = None
    sampler: str = ""
    scheduler: str = ""
    label: str = ""

    @property
    def title(self) -> str:
        if self.label:
            return self.label
        steps = f"{self.steps} {'step' if self.steps == 1 else 'steps'}" if self.steps else "auto"
        prefix = "" if self.model == "a" else f"{self.model}: "
        return f"{prefix}{self.sampler + ' ' if self.sampler else ''}{steps}"


def parse_columns(text: str) -> tuple[Column, ...]:
    """Columns from entries separated by commas or lines: ``4``, ``auto cfg 3``, ``b: euler/simple@25 cfg 7 = teacher``.

    Raises:
        PCMError: if there is none, there are more than 64, or one cannot be read.
    """
    entries = [entry.strip() for entry in _SEPARATORS.split(text)]
    entries = [entry for entry in entries if entry]
    if len(entries) > MAX_COLUMNS:
        raise PCMError(f"columns has {len(entries)} entries.", f"at most {MAX_COLUMNS}.", "Compare fewer at a time.")
    columns = tuple(map(_column, entries))
    if not columns:
        raise PCMError("columns is empty.", "at least one way to sample.", 'Write "1, 2, 4, 8".')
    return columns


def _column(entry: str) -> Column:
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise PCMError(
            f'columns contains "{entry}".',
            'a step count, "auto", or "sampler/scheduler@steps"; with "b:" before it and "cfg 7" or "= name" after it.',
            'Write for example "1, 2, 4, b: euler/simple@25 cfg 7 = teacher".',
        )
    part = found.groupdict(default="")
    steps = 0 if part["steps"].lower() == "auto" else int(part["steps"])
    least = 1 if part["sampler"] or part["steps"].lower() != "auto" else 0
    if not least <= steps <= MAX_COUNT:
        raise PCMError(
            f'columns contains "{entry}".', f"1 to {MAX_COUNT} steps; auto for PCM only.", "Change the number."
        )
    return Column(
        model=part["model"].lower() or "a",
        steps=steps,
        cfg=float(part["cfg"]) if part["cfg"] else None,
        sampler=part["sampler"],
        scheduler=part["scheduler"],
        label=check_label(part["label"].strip()),
    )


def check_label(label: str) -> str:
    """The label, if it can be drawn.

    Raises:
        PCMError: if it has more than 200 letters.
    """
    if len(label) > _MAX_LABEL:
        raise PCMError(f'The label "{label[:40]}..." is long.', f"at most {_MAX_LABEL} letters.", "Shorten it.")
    return label


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape, batch and all; 1 if both are zero."""
    _same_shape(a, b)
    x, y = a.double().flatten(), b.double().flatten()
    norms = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norms if norms else float(torch.equal(x, y))


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1; infinite for equal ones."""
    _same_shape(a, b)
    error = float((a.double() - b.double()).square().mean())
    return -10 * math.log10(error) if error else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5, K = 0.01 and 0.03, channel mean.

    Args:
        a, b: pictures [B, H, W, C] in 0..1. The window shrinks where a side is shorter than it.
    """
    _same_shape(a, b)
    x, y = a.double().movedim(-1, 1), b.double().movedim(-1, 1)
    window = _gaussian(min(_WINDOW, x.shape[-1], x.shape[-2]))

    def blur(value: Tensor) -> Tensor:
        return F.conv2d(value.flatten(0, 1).unsqueeze(1), window)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    scale = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(((2 * mean_x * mean_y + c1) * (2 * covariance + c2) / scale).mean())


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, infinite if any value is."""
    return sum(values) / len(values)


def _gaussian(size: int) -> Tensor:
    """Normalised window [1, 1, size, size], float64."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    row = torch.exp(-at.square() / (2 * _SIGMA**2))
    window = torch.outer(row, row)
    return (window / window.sum()).expand(1, 1, size, size)


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise PCMError(
            f"Two results have the shapes {tuple(a.shape)} and {tuple(b.shape)}.",
            "one shape for all that are compared.",
            "Compare models whose latents and VAE are the same.",
        )
