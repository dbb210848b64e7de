"""The Frechet distance of two sets of features: FID with features of Inception, FID-CLIP with those of a CLIP model."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .report import MissingError


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to two sets of features [N, F] (Heusel et al. 2017), in float64.

    The trace of ``sqrt(A B)`` is that of ``sqrt(sqrt(A) B sqrt(A))``, which stays real when a feature never fires.

    Raises:
        MissingError: if there are too few images for a covariance.
    """
    if min(len(a), len(b)) < 2:
        raise MissingError("a covariance needs two images in A and in B, a meaningful one thousands")
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = features.double().numpy()
    return values.mean(0), np.atleast_2d(np.cov(values, rowvar=False))
