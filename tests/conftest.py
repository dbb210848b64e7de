"""Paths, and what several suites share.

The repository root goes to the end of ``sys.path``: ``import pcm_core`` and ``import demo`` work, and ``import nodes``
still finds the host's ``nodes.py`` once ``tests/host/conftest.py`` has put COMFYUI_PATH first.
"""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def _is_root(entry: str) -> bool:
    return not entry or Path(entry).resolve() == ROOT


sys.path[:] = [entry for entry in sys.path if not _is_root(entry)] + [str(ROOT)]


@pytest.fixture(scope="session")
def sd_table() -> torch.Tensor:
    """Sigmas of SD 1.5 and SDXL, ascending, float32 [1000], by the formula of the host's ModelSamplingDiscrete."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas) / alphas).sqrt().float()
