"""Add names to ComfyUI's lists of samplers and schedulers; calling it again is harmless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
from torch import Tensor


def add_sampler(name: str, function: Callable[..., Tensor]) -> None:
    """Offer a k-diffusion style function under ``name`` wherever samplers are chosen by name."""
    if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
        setattr(comfy.k_diffusion.sampling, f"sample_{name}", function)
    _append(name, comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS)


def add_scheduler(name: str, handler: Callable[[Any, int], Tensor]) -> None:
    """Offer ``handler(model_sampling, steps) -> sigmas`` wherever schedulers are chosen by name."""
    comfy.samplers.SCHEDULER_HANDLERS.setdefault(name, comfy.samplers.SchedulerHandler(handler))
    _append(name, comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS)


def _append(name: str, *lists: list[str]) -> None:
    for names in lists:
        if name not in names:
            names.append(name)
