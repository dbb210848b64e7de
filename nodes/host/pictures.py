"""Read images as a viewer shows them: upright, 16-bit as grey, transparency over white, the first of several frames."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# The colour under transparent parts of an image.
BACKGROUND = (255, 255, 255)


def as_seen(path: Path) -> Image.Image:
    """An image as RGB, as a viewer shows it.

    Its EXIF orientation is applied, like in the host's Load Image; 16-bit values are scaled to 8 bits; transparent
    parts are laid over ``BACKGROUND``; of a file with several frames the first is used.

    Raises:
        OSError: if the file cannot be read.
    """
    with Image.open(path) as file:
        file.seek(0)
        picture = ImageOps.exif_transpose(file) or file
        if picture.mode.startswith("I") or picture.mode == "F":
            return _eight_bits(picture).convert("RGB")
        if not _is_transparent(picture):
            return picture.convert("RGB")
        colours = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, (*BACKGROUND, 255)), colours).convert("RGB")


def remarks(paths: Iterable[Path]) -> list[str]:
    """What ``as_seen`` drops from these images, one sentence for each kind."""
    counts: Counter[str] = Counter()
    for path in paths:
        with Image.open(path) as picture:
            counts["transparent"] += _is_transparent(picture)
            counts["several frames"] += getattr(picture, "n_frames", 1) > 1
    texts = {
        "transparent": "pictures have transparent parts, which are laid over white.",
        "several frames": "pictures have several frames; the first of each is used.",
    }
    return [f"{count} {texts[kind]}" for kind, count in counts.items() if count]


def say(paths: Iterable[Path]) -> None:
    """Log ``remarks``."""
    for remark in remarks(paths):
        logging.warning("%s", remark)


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey values of 16 bits or more, which PIL clips. Floating point is 0 to 1, or 0 to 255 where it is beyond."""
    values = np.asarray(picture, dtype=np.float64)
    highest = 1.0 if picture.mode == "F" else 65535.0
    highest = 255.0 if picture.mode == "F" and values.max(initial=0) > 1 else highest
    return Image.fromarray((values.clip(0, highest) * (255 / highest)).round().astype(np.uint8))
