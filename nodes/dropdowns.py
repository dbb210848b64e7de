"""The name ``pcm`` in the stock drop-downs, for nodes that select a sampler and a scheduler by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..pcm_core.phases import MAX_COUNT, build_schedule
from . import host
from .sampling.function import sample_phased

NAME = "pcm"


def register() -> None:
    """Add both names; nothing is replaced or removed, and calling it again changes nothing."""
    host.add_sampler(NAME, sample_phased)
    host.add_scheduler(NAME, phase_sigmas)


def phase_sigmas(model_sampling: Any, steps: int) -> Tensor:
    """The trailing timesteps with one phase per step; other settings need the PCM nodes.

    KSampler asks for ``steps / denoise`` steps and keeps the last ones, so more than 64 are the end of a long list.
    """
    table = host.table_of(model_sampling)
    if steps > MAX_COUNT:
        return host.simple_sigmas(model_sampling, steps)
    return build_schedule(steps, grid=100).sigmas(table)  # trailing takes any grid that holds the phases
