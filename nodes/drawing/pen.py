"""A pen for charts: lines, dots and text in design units, with Pillow; two colour themes."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

ThemeName = Literal["dark", "light"]
Colour = tuple[int, int, int]
Point = tuple[float, float]
SUPERSAMPLING = 2
_DESIGN = (1024, 640)


@dataclass(frozen=True)
class Theme:
    paper: Colour
    panel: Colour
    ink: Colour
    muted: Colour
    rule: Colour
    curve: Colour
    accent: Colour
    rival: Colour
    saturation: float
    value: float
    tint: float


THEMES: dict[str, Theme] = {
    "dark": Theme(
        paper=(22, 24, 29), panel=(30, 33, 40), ink=(236, 238, 242), muted=(150, 156, 168), rule=(58, 63, 74),
        curve=(128, 136, 152), accent=(255, 176, 66), rival=(120, 200, 255), saturation=0.58,
        value=0.86, tint=0.27,
    ),
    "light": Theme(
        paper=(255, 255, 255), panel=(247, 248, 250), ink=(28, 31, 38), muted=(98, 104, 116), rule=(214, 218, 226),
        curve=(120, 127, 142), accent=(206, 92, 0), rival=(24, 104, 184), saturation=0.72, value=0.78,
        tint=0.20,
    ),
}  # fmt: skip


class Pen:
    """Draws in the units of a 1024 x 640 page, independent of the size of the image."""

    def __init__(self, width: int, height: int, theme: Theme) -> None:
        self.theme = theme
        # Small images get fewer units instead of unreadable text.
        self.scale = max(min(width / _DESIGN[0], height / _DESIGN[1]), 0.8) * SUPERSAMPLING
        self.width, self.height = (side * SUPERSAMPLING / self.scale for side in (width, height))
        self.image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), theme.paper)
        self._draw = ImageDraw.Draw(self.image)
        self._taken: list[tuple[float, float, float, float]] = []

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._draw.rectangle([v * self.scale for v in (left, top, right, bottom)], fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1.0) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * self.scale)), joint="curve")

    def dashes(self, start: Point, end: Point, colour: Colour, width: float = 1.0, dash: float = 6.0) -> None:
        length = math.dist(start, end)
        for i in range(0, max(1, round(length / dash)), 2):
            a, b = (min((i + k) * dash / max(length, dash), 1.0) for k in (0, 1))
            self.line([_between(start, end, a), _between(start, end, b)], colour, width)

    def dot(self, at: Point, radius: float, fill: Colour, outline: Colour | None = None, width: float = 2.0) -> None:
        x, y, r = (v * self.scale for v in (*at, radius))
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill, outline, round(width * self.scale) if outline else 0)

    def text(self, at: Point, text: str, colour: Colour, size: float = 13, anchor: str = "lm") -> None:
        self._draw.text((at[0] * self.scale, at[1] * self.scale), text, colour, self._font(size), anchor=anchor)

    def length(self, text: str, size: float) -> float:
        return self._font(size).getlength(text) / self.scale

    def claim(self, at: Point, text: str, size: float, anchor: str) -> bool:
        """Whether a text fits on the page without overlapping an earlier one; if so, reserve its place."""
        box = self._draw.textbbox((at[0] * self.scale, at[1] * self.scale), text, self._font(size), anchor=anchor)
        left, top, right, bottom = (v / self.scale for v in box)
        mine = (left - 4, top - 2, right + 4, bottom + 2)
        if mine[0] < 0 or mine[2] > self.width or any(_overlap(mine, other) for other in self._taken):
            return False
        self._taken.append(mine)
        return True

    def _font(self, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(size * self.scale)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _between(a: Point, b: Point, share: float) -> Point:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
