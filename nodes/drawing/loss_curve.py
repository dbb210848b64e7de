"""Plot the loss of a training run, for any number of losses, also none or equal ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

_SIZE = (640, 240)
_MARGIN = 28
_SMOOTHING = 0.95
_INK, _FAINT, _LINE = (40, 40, 40), (200, 208, 216), (0, 96, 160)


def draw_loss(losses: Sequence[float], steps: int, below: Image.Image | None = None, note: str = "") -> Image.Image:
    """Losses on a logarithmic axis in a faint colour, with their moving average on top, and an image below the plot.

    Args:
        losses: the losses so far; values that are not finite and positive are left out.
        steps: number of steps of the whole run, which is the width of the plot.
        below: an image such as a sample grid; scaled to the width.
        note: a line of text below the axis.
    """
    width, height = _SIZE
    plot = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(plot)
    points = [(i, math.log10(loss)) for i, loss in enumerate(losses) if math.isfinite(loss) and loss > 0]
    pen.rectangle((_MARGIN, _MARGIN, width - _MARGIN, height - _MARGIN), outline=_FAINT)
    if points:
        low, high = min(value for _, value in points), max(value for _, value in points)
        spread = high - low or 1.0

        def place(i: int, value: float) -> tuple[float, float]:
            x = _MARGIN + (width - 2 * _MARGIN) * (i + 1) / max(steps, len(losses))
            return x, height - _MARGIN - (height - 2 * _MARGIN) * (value - low) / spread

        pen.line([place(*point) for point in points], fill=_FAINT)
        pen.line([place(*point) for point in _smooth(points)], fill=_LINE, width=2)
        pen.text((_MARGIN, 8), f"step {len(losses)} of {steps}   loss {losses[-1]:.5g}", fill=_INK)
        pen.text((2, _MARGIN), f"{10**high:.1e}", fill=_INK)
        pen.text((2, height - _MARGIN - 10), f"{10**low:.1e}", fill=_INK)
    pen.text((_MARGIN, height - _MARGIN + 8), note, fill=_INK)
    if below is None:
        return plot
    below = below.resize((width, max(1, round(below.height * width / below.width))))
    sheet = Image.new("RGB", (width, height + below.height), "white")
    sheet.paste(plot, (0, 0))
    sheet.paste(below, (0, height))
    return sheet


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average with bias correction."""
    smoothed: list[tuple[int, float]] = []
    total = weight = 0.0
    for i, value in points:
        total, weight = _SMOOTHING * total + value, _SMOOTHING * weight + 1
        smoothed.append((i, total / weight))
    return smoothed
