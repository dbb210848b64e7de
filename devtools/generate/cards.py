"""The card of a workflow in the template browser: a square that the browser shows about 230 pixels wide."""

from __future__ import annotations

import re

from PIL import Image, ImageDraw, ImageFont

from .art import BANDS, DOT, INK, PAPER, SOFT

SIZE = 512
SHRINK = 5
NODES_ON_CARD = (SHRINK * SIZE, 1480)  # screen pixels
_LEFT, _BAR, _TOP, _FADE = 28, (160, 176), 216, 56


def draw_card(title: str, steps: int, nodes: Image.Image) -> Image.Image:
    """A card: the subject in large type, the rest of the title below, a bar with one piece per step, and the nodes."""
    card = Image.new("RGB", (SIZE, SIZE), PAPER)
    pen = ImageDraw.Draw(card)
    words = re.fullmatch(r"(\S+(?: \d\S*)?) ?(.*)", title)  # a version belongs to its name: Wan 2.2
    assert words is not None, title
    first, rest = words.groups()
    large = fitting(first, 80)
    pen.text((_LEFT, 84), first, INK, large, anchor="ls")
    pen.text((_LEFT, 136), rest, SOFT, fitting(rest, 40), anchor="ls")
    draw_steps(pen, steps)
    small = nodes.resize((nodes.width // SHRINK, nodes.height // SHRINK), Image.Resampling.LANCZOS)
    card.paste(small, ((SIZE - small.width) // 2, _TOP + (SIZE - _TOP - small.height) // 2))
    fade = Image.linear_gradient("L").resize((SIZE, _FADE))
    card.paste(PAPER, (0, SIZE - _FADE), fade)  # tall nodes fade out at the edge
    return card


def fitting(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The default font, small enough for ``text`` to fit the card."""
    font = ImageFont.load_default(size)
    wide = font.getlength(text)
    return font if wide <= SIZE - 2 * _LEFT else ImageFont.load_default(size * (SIZE - 2 * _LEFT) / wide)


def draw_steps(pen: ImageDraw.ImageDraw, steps: int) -> None:
    """A bar from noise to image with a dot at the start of each jump; undivided if the step count is not fixed."""
    count = max(steps, 1)
    wide = (SIZE - 2 * _LEFT) / count
    if steps:
        pen.text((SIZE - _LEFT, _BAR[1] + 8), f"{steps} steps", SOFT, ImageFont.load_default(24), anchor="ra")
    for step in range(count):
        left = _LEFT + step * wide
        colour = BANDS[step * len(BANDS) // count]
        pen.rectangle((left, _BAR[0], left + wide - 4, _BAR[1]), colour)
        if steps:
            middle = sum(_BAR) / 2
            pen.ellipse((left - 8, middle - 8, left + 8, middle + 8), DOT, PAPER, 4)
