"""Measures of clips: optical flow, change between frames, similarity of neighboring frames."""

from __future__ import annotations

import itertools

import numpy as np
from torch import Tensor

from pcm_core.metrics import mean

from .clip import unit
from .report import EXTRA, MissingError


def farneback(frames: Tensor) -> float:
    """Mean length in pixels of Farneback's optical flow between neighboring frames of uint8 [T, 3, H, W].

    Raises:
        MissingError: if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingError(f"it needs OpenCV: {EXTRA}") from error
    gray = [cv2.cvtColor(np.ascontiguousarray(frame.movedim(0, -1).numpy()), cv2.COLOR_RGB2GRAY) for frame in frames]
    lengths: list[float] = []
    for one, other in itertools.pairwise(gray):
        start = np.zeros((*one.shape, 2), np.float32)
        flow = cv2.calcOpticalFlowFarneback(one, other, start, 0.5, 3, 15, 3, 5, 1.2, 0)
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
    return mean(lengths)


def frame_difference(frames: Tensor) -> float:
    """Mean absolute change of a pixel between neighboring frames, in 0..1."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean().item() / 255


def between_frames(embeddings: Tensor) -> float:
    """Mean cosine of the CLIP embeddings [T, D] of neighboring frames."""
    rows = unit(embeddings)
    return (rows[1:] * rows[:-1]).sum(-1).mean().item()
