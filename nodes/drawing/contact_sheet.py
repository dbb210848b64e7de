"""Draw a labelled contact sheet: one column per setting, one row per prompt and seed, figures below the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_PAPER, _INK, _SOFT, _ACCENT, _TRACK = "#ffffff", "#1c1e22", "#6c727d", "#2f6fde", "#e3e6eb"


@dataclass(frozen=True, kw_only=True)
class Heading:
    """The texts of one column.

    Attributes:
        title, detail: written above the images.
        figure: written below them.
        bar: length 0..1 of a bar below the figure; ``None`` for no bar.
    """

    title: str
    detail: str
    figure: str
    bar: float | None


def draw(pictures: Sequence[Sequence[Tensor]], headings: Sequence[Heading], rows: Sequence[str], cell: int) -> Tensor:
    """The sheet as an IMAGE: float32 [1, H, W, 3] in 0..1.

    Args:
        pictures: by row, then column, each [H, W, C] in 0..1 and of one size.
        rows: the label of each row.
        cell: longer side of an image on the sheet, in pixels.
    """
    small = [[_picture(picture, cell) for picture in row] for row in pictures]
    width, height = small[0][0].size
    unit = max(cell // 22, 12)  # font size, and the unit of every gap
    title_font, font = ImageFont.load_default(round(unit * 1.3)), ImageFont.load_default(unit)
    width = max(width, *(_columns_width(heading, title_font, font) for heading in headings))
    names = max(round(font.getlength(line)) for row in rows for line in row.splitlines())
    left, top = names + 2 * unit, 5 * unit
    right = left + len(headings) * (width + unit)
    bottom = top + len(rows) * (height + unit)
    sheet = Image.new("RGB", (right, bottom + 3 * unit), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        x = left + column * (width + unit) + width // 2
        pen.text((x, unit + unit // 2), heading.title, _INK, title_font, anchor="mt")
        pen.text((x, round(3.3 * unit)), heading.detail, _SOFT, font, anchor="mt")
        pen.text((x, bottom), heading.figure, _INK, font, anchor="mt")
        if heading.bar is not None:
            _bar(pen, (x - width // 2, bottom + round(1.5 * unit)), width, unit // 2, heading.bar)
    for row, name in enumerate(rows):
        y = top + row * (height + unit)
        pen.text((unit, y + height // 2), name, _INK, font, anchor="lm", spacing=unit // 2)
        for column, picture in enumerate(small[row]):
            sheet.paste(picture, (left + column * (width + unit) + (width - picture.width) // 2, y))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255).unsqueeze(0)


def _picture(picture: Tensor, cell: int) -> Image.Image:
    array = picture[..., :3].clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()
    image = Image.fromarray(array)
    scale = cell / max(image.size)
    return image.resize([max(round(side * scale), 1) for side in image.size], Image.Resampling.LANCZOS)


def _columns_width(heading: Heading, title_font: Font, font: Font) -> int:
    lines = (title_font.getlength(heading.title), font.getlength(heading.detail), font.getlength(heading.figure))
    return round(max(lines))


def _bar(pen: ImageDraw.ImageDraw, at: tuple[int, int], width: int, height: int, share: float) -> None:
    x, y = at
    pen.rectangle((x, y, x + width, y + height), _TRACK)
    if share > 0:
        pen.rectangle((x, y, x + round(width * min(share, 1)), y + height), _ACCENT)
