"""The Frechet distance of two sets of features: FID with features of Inception, FID-CLIP with those of a CLIP model."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .report import MissingError


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to two sets of features [N, F] (Heusel et al. 2017), in float64.

    Raises:
        MissingError: if there are too few images for a covariance.
    """
    if min(len(a), len(b)) < 2:
        raise MissingError("a covariance needs two images in A and in B, a meaningful one thousands")
    (mean_a, x), (mean_b, y) = _centered(a), _centered(b)
    cross = _few(x, y) if max(len(x), len(y)) < x.shape[1] else _many(x, y)
    return float(np.square(mean_a - mean_b).sum() + np.square(x).sum() + np.square(y).sum() - 2 * cross)


def _centered(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The mean [F], and rows X [N, F] whose ``X' X`` is the covariance."""
    values = features.double().numpy()
    mean = values.mean(0)
    return mean, (values - mean) / np.sqrt(len(values) - 1)


def _few(x: np.ndarray, y: np.ndarray) -> float:
    """The trace of ``sqrt(A B)`` of few rows: ``X' X Y' Y`` has the eigenvalues of ``M M'`` with ``M = X Y'``."""
    return float(np.linalg.svd(x @ y.T, compute_uv=False).sum())


def _many(x: np.ndarray, y: np.ndarray) -> float:
    """The trace of ``sqrt(A B)``: that of ``sqrt(sqrt(A) B sqrt(A))``, which stays real when a feature never fires."""
    values, vectors = np.linalg.eigh(x.T @ x)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    return float(np.sqrt(np.linalg.eigvalsh(root @ (y.T @ y) @ root).clip(min=0)).sum())
