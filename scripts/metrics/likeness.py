"""Similarity of two images or clips with the same name: PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pcm_core.metrics import mean, psnr, ssim

from .report import Figures, MissingError
from .sources import Item


def pairs(a: Sequence[Item], b: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Pairs of items with the same name.

    Raises:
        MissingError: if A and B have no name in common.
    """
    named = {item.name: item for item in b}
    found = [(item, named[item.name]) for item in a if item.name in named]
    if not found:
        raise MissingError("no name is in both A and B")
    return found


def likeness(both: Sequence[tuple[Item, Item]]) -> Figures:
    """Mean PSNR in dB and SSIM over pairs.

    Raises:
        MissingError: if the items of a pair differ in shape.
    """
    values = [_likeness(one, other) for one, other in both]
    return {name: mean([value[name] for value in values]) for name in ("PSNR dB", "SSIM")}


def _likeness(one: Item, other: Item) -> Figures:
    x, y = one.frames, other.frames
    if x.shape != y.shape:
        raise MissingError(f'"{one.name}" is {_size(x)} in A and {_size(y)} in B')
    return {"PSNR dB": psnr(_unit(x), _unit(y)), "SSIM": ssim(_unit(x), _unit(y))}


def _unit(frames: Tensor) -> Tensor:
    """Frames as [T, H, W, 3] in 0..1."""
    return frames.movedim(1, -1) / 255


def _size(frames: Tensor) -> str:
    count, _, height, width = frames.shape
    return f"{count} x {width} x {height}"
