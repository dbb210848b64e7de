"""Draw a labelled grid of images: one row per method, one column per prompt."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SCALE = 3
GAP = 8
MARGIN = 28
LABELS = 232
HEADER = 58
PAPER, INK, SOFT = (255, 255, 255), (28, 30, 34), (112, 117, 126)


def draw_grid(rows: Sequence[tuple[str, str, Sequence[Image.Image]]], columns: Sequence[str]) -> Image.Image:
    """Rows of (title, detail, images of equal size) under column headings, enlarged three times."""
    width, height = (SCALE * size for size in rows[0][2][0].size)
    left, top = MARGIN + LABELS, MARGIN + HEADER
    sheet = Image.new(
        "RGB",
        (left + len(columns) * (width + GAP) - GAP + MARGIN, top + len(rows) * (height + GAP) - GAP + MARGIN),
        PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    title_font, detail_font = ImageFont.load_default(21), ImageFont.load_default(16)
    for column, text in enumerate(columns):
        centre = left + column * (width + GAP) + width // 2
        pen.text((centre, top - 14), two_lines(text), INK, detail_font, anchor="md", align="center", spacing=5)
    for row, (title, detail, pictures) in enumerate(rows):
        y = top + row * (height + GAP)
        pen.text((MARGIN, y + height // 2 - 4), title, INK, title_font, anchor="ld")
        pen.text((MARGIN, y + height // 2 + 6), detail, SOFT, detail_font, anchor="la")
        for column, picture in enumerate(pictures):
            big = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(big, (left + column * (width + GAP), y))
    return sheet


def two_lines(text: str) -> str:
    """Break "a red circle on blue" before the background, and "a red circle moving left" before the motion."""
    for word in ("on", "moving", "standing"):
        text = text.replace(f" {word} ", f"\n{word} ")
    return text
