"""Draw the icon and the banner of the registry page: a sigma curve cut into four phases, and the four jumps along it.

``python -m devtools.generate.art``
"""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

from ..paths import ROOT

ASSETS = ROOT / "assets"
SUPERSAMPLING = 4
PHASES = 4
PAPER, INK, SOFT = "#16181d", "#f4f6fa", "#9aa3b2"
BANDS = ("#7a3b8f", "#3f5fc0", "#1f8fa8", "#3aa56b")
DOT = "#ffb042"


def curve(at: float) -> float:
    """Noise level 1 to 0 for progress 0 to 1, steep at first, like the sigmas of a diffusion model."""
    return (math.exp(-2.2 * at) - math.exp(-2.2)) / (1 - math.exp(-2.2))


def draw_phases(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], line: float) -> None:
    """Draw the area under the curve in bands, and the jumps, inside ``box`` (left, top, right, bottom)."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top

    def point(at: float) -> tuple[float, float]:
        return left + at * width, bottom - curve(at) * height

    for phase, colour in enumerate(BANDS):
        x0, x1 = (left + edge / PHASES * width for edge in (phase, phase + 1))
        pen.rectangle((x0, top, x1 - line / 3, bottom), colour)
    samples = [point(i / 400) for i in range(401)]
    pen.polygon([(left, top), *samples, (right, top)], PAPER)
    stops = [point(phase / PHASES) for phase in range(PHASES + 1)]
    pen.line(stops, DOT, round(line), joint="curve")
    for x, y in stops:
        pen.ellipse((x - 1.7 * line, y - 1.7 * line, x + 1.7 * line, y + 1.7 * line), DOT, PAPER, round(line * 0.6))


def icon(size: int = 400) -> Image.Image:
    big = size * SUPERSAMPLING
    image = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, big - 1, big - 1), big // 7, PAPER)
    draw_phases(pen, (big * 0.14, big * 0.16, big * 0.86, big * 0.84), big / 42)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def banner(width: int = 2100) -> Image.Image:
    """21:9."""
    height = width * 9 // 21
    image = Image.new("RGB", (width * 2, height * 2), PAPER)
    pen = ImageDraw.Draw(image)
    w, h = image.size
    draw_phases(pen, (w * 0.55, h * 0.16, w * 0.95, h * 0.84), h / 60)
    title, line = ImageFont.load_default(h * 0.13), ImageFont.load_default(h * 0.062)
    pen.text((w * 0.05, h * 0.34), "Phased", INK, title, anchor="lm")
    pen.text((w * 0.05, h * 0.49), "Consistency", INK, title, anchor="lm")
    pen.text((w * 0.05, h * 0.66), "Few-step sampling for ComfyUI", SOFT, line, anchor="lm")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    ASSETS.mkdir(exist_ok=True)
    icon().save(ASSETS / "icon.png", optimize=True)
    banner().save(ASSETS / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
