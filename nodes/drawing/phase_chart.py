"""Plot a sigma schedule: phases as bands, the sigma curve, steps as dots, other schedules as lanes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .pen import THEMES, Colour, Pen, Point, ThemeName, hsv, mix


@dataclass(frozen=True)
class Band:
    """One phase: its start and end in progress (0 pure noise, 1 image), and its labels.

    ``short`` replaces ``name`` if the bands are narrow; ``note`` is written below it.
    """

    start: float
    end: float
    name: str
    short: str = ""
    note: str = ""


@dataclass(frozen=True)
class Lane:
    """The evaluations of one schedule, by progress."""

    name: str
    progress: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PhaseChart:
    """The content of the chart. Points are (progress, sigma).

    Attributes:
        curve: the model's sigmas; empty if they are not known.
        steps: the evaluations, with their ``labels``.
        end: the end of the last jump.
        entry: progress at which sampling starts, if not at pure noise; ``entry_note`` is written there.
        lanes: schedules to compare, the chart's own first.
        logarithmic: whether sigma has a logarithmic scale; sigma 0 then has its own row below it.
    """

    title: str
    subtitle: str
    curve: tuple[Point, ...]
    steps: tuple[Point, ...]
    labels: tuple[str, ...]
    end: Point | None
    bands: tuple[Band, ...]
    entry: float | None
    entry_note: str
    lanes: tuple[Lane, ...]
    logarithmic: bool
    axis: str


def draw_chart(chart: PhaseChart, width: int, height: int, theme: ThemeName) -> Tensor:
    """The chart as a ComfyUI IMAGE: float32 [1, height, width, 3] in 0..1."""
    pen = Pen(width, height, THEMES[theme])
    frame = _Frame(chart, pen)
    _draw_bands(chart, frame, pen)
    _draw_sigma_axis(frame, pen)
    _draw_progress_axis(chart, frame, pen)
    _draw_lanes(chart, frame, pen)
    _draw_curve(chart, frame, pen)
    _draw_entry(chart, frame, pen)
    _draw_steps(chart, frame, pen)
    _draw_heading(chart, frame, pen)
    pixels = np.asarray(pen.image.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.from_numpy(pixels / 255).unsqueeze(0)


class _Frame:
    """Maps progress and sigma to the page."""

    def __init__(self, chart: PhaseChart, pen: Pen) -> None:
        self.lane_height = 27.0
        self.left, self.right = 92.0, pen.width - 30
        self.top = 96.0
        self.header = 54.0
        self.lanes_bottom = pen.height - 50
        self.bottom = self.lanes_bottom - self.lane_height * len(chart.lanes) - (8 if chart.lanes else 0)
        levels = [sigma for _, sigma in (*chart.curve, *chart.steps) if sigma > 0] or [1.0]
        self.logarithmic, self.high, self.low = chart.logarithmic, max(levels), min(levels)
        self.zero = self.bottom - 16
        self.floor = self.zero - (26 if chart.logarithmic else 0)
        self.ceiling = self.top + self.header + 16

    def x(self, progress: float) -> float:
        return self.left + 14 + progress * (self.right - self.left - 28)

    def y(self, sigma: float) -> float:
        if not self.logarithmic:
            return self.zero - sigma / self.high * (self.zero - self.ceiling)
        if sigma <= 0:
            return self.zero
        share = math.log(sigma / self.low) / math.log(self.high / self.low) if self.high > self.low else 1.0
        return self.floor - max(share, 0.0) * (self.floor - self.ceiling)

    def at(self, point: Point) -> Point:
        return self.x(point[0]), self.y(point[1])

    def radius(self, chart: PhaseChart) -> float:
        """Radius of the dots, small enough that neighbours do not touch."""
        gaps = [self.x(b[0]) - self.x(a[0]) for a, b in pairwise(chart.steps)]
        return max(min([6.0, *(gap * 0.36 for gap in gaps)]), 2.0)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            step = 10 ** math.floor(math.log10(self.high)) / 4
            while self.high / step > 6:
                step *= 2
            return [i * step for i in range(int(self.high / step + 1e-6) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 3) if len(decades) <= 5 else (1,)
        candidates = [factor * 10.0**decade for decade in decades for factor in factors]
        return [0.0, *(tick for tick in candidates if self.low * 0.999 <= tick <= self.high * 1.001)]


def _draw_bands(chart: PhaseChart, frame: _Frame, pen: Pen) -> None:
    theme, count = pen.theme, len(chart.bands)
    pen.box(frame.left, frame.top, frame.right, frame.lanes_bottom, theme.panel)
    spans = [(frame.x(band.start), frame.x(band.end)) for band in chart.bands]
    if spans:
        spans[0], spans[-1] = (frame.left, spans[0][1]), (spans[-1][0], frame.right)
    for i, (left, right) in enumerate(spans):
        # From violet for noise to green for the image.
        hue = hsv(0.80 - 0.36 * i / max(count - 1, 1), theme.saturation, theme.value)
        tint = theme.tint * (1.0 if i % 2 == 0 else 0.8)
        pen.box(left, frame.top, right, frame.lanes_bottom, mix(theme.panel, hue, tint))
        pen.box(left, frame.top, right, frame.top + 4, hue)
        if i:
            pen.line([(left, frame.top), (left, frame.lanes_bottom)], mix(theme.panel, hue, 0.75), 1)
    rows = ([band.name for band in chart.bands], [band.short for band in chart.bands])
    if any(_write_row(row, spans, frame.top + 22, theme.ink, pen) for row in rows):
        _write_row([band.note for band in chart.bands], spans, frame.top + 40, mix(theme.muted, theme.ink, 0.4), pen)


def _write_row(texts: list[str], spans: list[Point], y: float, colour: Colour, pen: Pen) -> bool:
    """Write one text per band, or none if they do not all fit."""
    if any(pen.length(text, 13) > right - left - 6 for text, (left, right) in zip(texts, spans, strict=True)):
        return False
    for text, (left, right) in zip(texts, spans, strict=True):
        pen.text(((left + right) / 2, y), text, colour, 13, "mm")
    return True


def _draw_sigma_axis(frame: _Frame, pen: Pen) -> None:
    for tick in frame.ticks():
        y = frame.y(tick)
        pen.line([(frame.left, y), (frame.right, y)], mix(pen.theme.panel, pen.theme.rule, 0.8), 0.75)
        pen.text((frame.left - 10, y), f"{tick:g}", pen.theme.muted, 12, "rm")
    name = "sigma, log" if frame.logarithmic else "sigma"
    pen.text((frame.left - 10, frame.top + 21), name, pen.theme.ink, 12, "rm")
    if frame.logarithmic:
        middle = (frame.zero + frame.floor) / 2
        for drop in (-3, 3):
            start = (frame.left - 6, middle + drop + 3)
            pen.line([start, (start[0] + 12, start[1] - 6)], pen.theme.muted, 1)


def _draw_progress_axis(chart: PhaseChart, frame: _Frame, pen: Pen) -> None:
    y = frame.lanes_bottom
    pen.line([(frame.left, y), (frame.right, y)], pen.theme.rule, 1)
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = frame.x(share)
        pen.line([(x, y), (x, y + 5)], pen.theme.muted, 1)
        pen.text((x, y + 15), f"{share:.0%}", pen.theme.muted, 12, "mm")
    pen.text((frame.x(0.5), y + 35), chart.axis, pen.theme.muted, 12, "mm")


def _draw_lanes(chart: PhaseChart, frame: _Frame, pen: Pen) -> None:
    theme = pen.theme
    if chart.lanes:
        pen.line([(frame.left, frame.bottom), (frame.right, frame.bottom)], theme.rule, 1)
    radius = frame.radius(chart)
    for i, lane in enumerate(chart.lanes):
        y = frame.bottom + 4 + (i + 0.5) * frame.lane_height
        colour = theme.accent if i == 0 else theme.rival
        pen.text((frame.left - 10, y), lane.name, theme.ink if i == 0 else theme.muted, 12, "rm")
        pen.line([(frame.left + 6, y), (frame.right - 6, y)], theme.rule, 1)
        for progress in lane.progress:
            if i == 0:
                pen.dot((frame.x(progress), y), min(5, radius), colour)
            else:
                pen.dot((frame.x(progress), y), min(4.5, radius), theme.panel, colour)


def _draw_curve(chart: PhaseChart, frame: _Frame, pen: Pen) -> None:
    if len(chart.curve) > 1:
        pen.line([frame.at(point) for point in chart.curve], pen.theme.curve, 2.5)
    landings = [*chart.steps[1:], *([chart.end] if chart.end else [])]
    for start, landing in zip(chart.steps, landings, strict=False):
        pen.dashes(frame.at(start), frame.at(landing), pen.theme.accent, 1.75, 5)


def _draw_entry(chart: PhaseChart, frame: _Frame, pen: Pen) -> None:
    if chart.entry is None:
        return
    x = frame.x(chart.entry)
    header = frame.top + frame.header - 4
    left, top, right, bottom = (round(v * pen.scale) for v in (frame.left, header, x, frame.bottom))
    skipped = pen.image.crop((left, top, max(right, left + 1), bottom))
    pen.image.paste(Image.blend(skipped, Image.new("RGB", skipped.size, pen.theme.paper), 0.6), (left, top))
    pen.dashes((x, header), (x, frame.bottom), pen.theme.accent, 1.5)
    side, anchor = (-8, "rm") if chart.entry > 0.5 else (8, "lm")
    at = (x + side, frame.zero - 4)
    if pen.claim(at, chart.entry_note, 13, anchor):
        pen.text(at, chart.entry_note, pen.theme.accent, 13, anchor)


def _draw_steps(chart: PhaseChart, frame: _Frame, pen: Pen) -> None:
    theme = pen.theme
    radius = frame.radius(chart)
    if chart.end:
        pen.dot(frame.at(chart.end), min(5, radius), theme.panel, theme.accent)
    for point in chart.steps:
        pen.dot(frame.at(point), radius, theme.accent, theme.paper, min(1.5, radius / 4))
    for point, label in zip(chart.steps, chart.labels, strict=True):
        x, y = frame.at(point)
        for at, anchor in (((x + radius + 4, y - radius - 5), "lm"), ((x, y - radius - 12), "mm")):
            if pen.claim(at, label, 13, anchor):
                pen.text(at, label, theme.ink, 13, anchor)
                break


def _draw_heading(chart: PhaseChart, frame: _Frame, pen: Pen) -> None:
    theme = pen.theme
    pen.text((frame.left, 30), chart.title, theme.ink, 21, "lm")
    pen.text((frame.left, 56), chart.subtitle, theme.muted, 13, "lm")
    entries: list[tuple[str, Callable[[float, float], None]]] = [
        ("evaluated at t" if chart.curve else "evaluated", lambda x, y: pen.dot((x + 11, y), 6, theme.accent)),
        ("jump", lambda x, y: pen.dashes((x, y), (x + 22, y), theme.accent, 1.75, 5)),
    ]
    if chart.curve:
        entries.append(("model's sigmas", lambda x, y: pen.line([(x, y), (x + 22, y)], theme.curve, 2.5)))
    if len(chart.lanes) > 1:
        entries.append(("stock schedulers", lambda x, y: pen.dot((x + 11, y), 4.5, theme.panel, theme.rival)))
    x, y = frame.left, 80.0
    for name, sample in entries:
        sample(x, y)
        pen.text((x + 29, y), name, theme.muted, 12, "lm")
        x += 29 + pen.length(name, 12) + 24
