"""Noise for clips: correlated between frames, or repeated so that all windows of a long clip share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from ..errors import PCMError

WindowNoise = Literal["shuffled", "tiled", "independent"]
WINDOW_NOISES = cast(tuple[WindowNoise, ...], get_args(WindowNoise))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Context windows over a clip, in latent frames."""

    length: int
    overlap: int

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.overlap < self.length:
            raise PCMError(
                f"The window has {self.length} latent frames and overlaps by {self.overlap}.",
                "a window longer than its overlap.",
                "Raise window, or lower overlap.",
            )


class ClipNoise:
    """Turns independent noise into the noise of a clip.

    The k-th call of an object is the same function of its input in every run: use one object for the initial noise and
    then for each stochastic step.
    """

    def __init__(
        self,
        *,
        axis: int,
        seed: int,
        correlation: float = 0.0,
        windows: Windows | None = None,
        arrangement: WindowNoise = "shuffled",
    ) -> None:
        """
        Args:
            axis: the axis of the frames.
            correlation: rho between any two frames: 0 independent, 1 the same noise in all. The variance stays one.
            windows: the context windows, if the clip is sampled in windows.
            arrangement: see ``window_order``.

        Raises:
            PCMError: if the correlation is outside 0..1.
        """
        if not 0 <= correlation <= 1:  # also refuses NaN
            raise PCMError(f"The frame correlation is {correlation}.", "0 to 1.", "Use 0 for independent frames.")
        self.axis, self.seed, self.correlation = axis, seed, correlation
        self.windows = windows
        self.arrangement: WindowNoise = arrangement
        # The initial noise uses seed, the steps seed + 1: use neither.
        self._generator = torch.Generator().manual_seed((seed + 2) % 2**64)

    def __call__(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            parts: standard normal noise of the video, then of further parts (audio), each of any rank. The
                correlation applies to the video only; windows apply to all, scaled to their number of frames.

        Returns:
            New tensors of the same shapes.
        """
        frames = parts[0].shape[self.axis]
        arranged = [self._in_windows(part, frames) for part in parts]
        if self.correlation:
            arranged[0] = self._correlate(arranged[0])
        return arranged

    def _in_windows(self, noise: Tensor, video_frames: int) -> Tensor:
        frames = noise.shape[self.axis]
        if self.windows is None or self.arrangement == "independent":
            return noise
        scale = frames / video_frames
        length = max(round(self.windows.length * scale), 1)
        overlap = min(round(self.windows.overlap * scale), length - 1)
        order = window_order(frames, Windows(length=length, overlap=overlap), self.arrangement, self.seed)
        return noise.index_select(self.axis, torch.tensor(order, device=noise.device))

    def _correlate(self, noise: Tensor) -> Tensor:
        shape = list(noise.shape)
        shape[self.axis] = 1
        shared = torch.randn(shape, generator=self._generator, dtype=torch.float32).to(noise)
        return self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * noise


def window_order(frames: int, windows: Windows, arrangement: WindowNoise, seed: int) -> list[int]:
    """The index of the base noise frame for each frame of the clip; every window then has the same noise frames.

    The first window keeps its noise. With each stride, the frames that left the window are used again in a new order
    (``shuffled``: FreeNoise, arXiv 2310.15169, section 3.2) or in the same order (``tiled``).
    """
    stride = windows.length - windows.overlap
    order = list(range(frames if arrangement == "independent" else min(windows.length, frames)))
    generator = torch.Generator().manual_seed(seed)
    while len(order) < frames:
        start = len(order) - windows.length
        left = order[start : start + min(stride, frames - len(order))]
        if arrangement == "shuffled":
            left = [left[int(i)] for i in torch.randperm(len(left), generator=generator)]
        order += left
    return order
