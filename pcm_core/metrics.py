"""Similarity of two images: cosine, PSNR and SSIM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PCMError

_WINDOW, _SIGMA = 11, 1.5


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine similarity of two tensors of the same shape, over all dimensions; 1 if both are zero."""
    _same_shape(a, b)
    x, y = _wide(a).flatten(), _wide(b).flatten()
    norms = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norms if norms else float(torch.equal(x, y))


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..1; infinite if they are equal."""
    _same_shape(a, b)
    error = float((_wide(a) - _wide(b)).square().mean())
    return -10 * math.log10(error) if error else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5, K = 0.01 and 0.03, channel mean.

    Args:
        a, b: images [B, H, W, C] in 0..1. The window shrinks if a side of the image is shorter.
    """
    _same_shape(a, b)
    x, y = _wide(a).movedim(-1, 1), _wide(b).movedim(-1, 1)
    window = _gaussian(min(_WINDOW, x.shape[-1], x.shape[-2]))

    def blur(value: Tensor) -> Tensor:
        return F.conv2d(value.flatten(0, 1).unsqueeze(1), window)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    scale = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(((2 * mean_x * mean_y + c1) * (2 * covariance + c2) / scale).mean())


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, infinite if any value is."""
    return sum(values) / len(values)


def _wide(x: Tensor) -> Tensor:
    """In float64, on the CPU: Apple's GPUs have none."""
    return x.cpu().double()


def _gaussian(size: int) -> Tensor:
    """Normalized window [1, 1, size, size], float64."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    row = torch.exp(-at.square() / (2 * _SIGMA**2))
    window = torch.outer(row, row)
    return (window / window.sum()).expand(1, 1, size, size)


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise PCMError(
            f"Two results have the shapes {tuple(a.shape)} and {tuple(b.shape)}.",
            "one shape for all that are compared.",
            "Compare models whose latents and VAE are the same.",
        )
