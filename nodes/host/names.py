"""Add names to ComfyUI's lists of samplers and schedulers; calling it again is harmless.

Other packs put lists of their own in the place of the host's. What is no list any more stays as it is, and is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
from torch import Tensor


def add_sampler(name: str, function: Callable[..., Tensor]) -> None:
    """Offer a k-diffusion style function under ``name`` wherever samplers are chosen by name."""
    if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
        setattr(comfy.k_diffusion.sampling, f"sample_{name}", function)
    _append(name, comfy.samplers, "SAMPLER_NAMES")
    _append(name, comfy.samplers.KSampler, "SAMPLERS")


def add_scheduler(name: str, handler: Callable[[Any, int], Tensor]) -> None:
    """Offer ``handler(model_sampling, steps) -> sigmas`` wherever schedulers are chosen by name."""
    handlers = getattr(comfy.samplers, "SCHEDULER_HANDLERS", None)
    if not isinstance(handlers, dict):
        _say(name, "SCHEDULER_HANDLERS", handlers)
        return  # a name that nothing stands behind would end in the host's own error
    handlers.setdefault(name, comfy.samplers.SchedulerHandler(handler))
    _append(name, comfy.samplers, "SCHEDULER_NAMES")
    _append(name, comfy.samplers.KSampler, "SCHEDULERS")


def _append(name: str, owner: Any, attribute: str) -> None:
    names = getattr(owner, attribute, None)
    if not isinstance(names, list):
        _say(name, attribute, names)
    elif name not in names:
        names.append(name)


def _say(name: str, attribute: str, found: Any) -> None:
    logging.warning(
        'Phased Consistency: another pack has put a %s in the place of %s, so the name "%s" is not in it. '
        "The PCM nodes work.", type(found).__name__, attribute, name,
    )  # fmt: skip


def listed(names: Any) -> list[str]:
    """The names in one of the host's lists, whatever a pack has put there."""
    return [name for name in names if isinstance(name, str)] if isinstance(names, (list, tuple, set, dict)) else []
