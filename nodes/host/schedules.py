"""Noise levels as this ComfyUI makes them, for the workflow check: its sampling classes and schedulers, no weights."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.samplers
import comfy.supported_models

from ...pcm_core.sigma_table import SigmaTable
from ...pcm_core.workflow_check.schedules import Levels, base_models

_MOST_STEPS = 10_000


class HostSchedules:
    """What the host's own classes say; ``None`` for a base model or a scheduler it does not have."""

    def table(self, base: str, shift: float | None) -> SigmaTable | None:
        return _table(base, shift)

    def sigmas(self, base: str, shift: float | None, scheduler: str, steps: int) -> Levels | None:
        sampling = _sampling(base, shift)
        if sampling is None or scheduler not in comfy.samplers.SCHEDULER_HANDLERS or not 1 <= steps <= _MOST_STEPS:
            return None
        try:
            levels = tuple(comfy.samplers.calculate_sigmas(sampling, scheduler, steps).tolist())
            return levels if all(map(math.isfinite, levels)) else None
        except (ArithmeticError, ValueError, TypeError, LookupError, RuntimeError):
            return None  # schedulers of other packs may want more than a table, and some of the host's fail at one step


@lru_cache(maxsize=200)
def _sampling(base: str, shift: float | None) -> Any:
    """The model_sampling of a base model; at another shift as ModelSamplingSD3 or AuraFlow would set it."""
    facts = base_models().get(base, {"class": "", "patch": "", "shift": shift})  # only flow models have a shift
    if facts.get("shift", 1) is None:
        return None
    if facts.get("table") == "discrete":
        return comfy.model_base.model_sampling(_config({}), comfy.model_base.ModelType.EPS)
    own = getattr(comfy.supported_models, facts["class"], None)
    settings = dict(own.sampling_settings) if own else {}
    if facts["patch"] == "ModelSamplingAuraFlow":
        settings.setdefault("multiplier", 1.0)
    if shift is None and facts.get("mu"):
        return comfy.model_base.model_sampling(_config(settings), comfy.model_base.ModelType.FLUX)
    settings["shift"] = shift or facts["shift"]
    return comfy.model_base.model_sampling(_config(settings), comfy.model_base.ModelType.FLOW)


@lru_cache(maxsize=200)
def _table(base: str, shift: float | None) -> SigmaTable | None:
    sampling = _sampling(base, shift)
    return None if sampling is None else SigmaTable.of(sampling.sigmas)


def _config(settings: dict[str, Any]) -> Any:
    """All that the host's sampling classes read of a model's configuration."""
    return SimpleNamespace(sampling_settings=settings)


def own_shifts() -> dict[str, float]:
    """The linear shift of every base model that this host has, for the test that holds ``base_models.json``."""
    found: dict[str, float] = {}
    for base, facts in base_models().items():
        own = getattr(comfy.supported_models, facts.get("class", ""), None)
        if own is not None:
            shift = float(own.sampling_settings.get("shift", 1.15 if facts.get("mu") else 1.0))
            found[base] = math.exp(shift) if facts.get("mu") else shift
    return found
