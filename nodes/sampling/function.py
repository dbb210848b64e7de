"""The phase jump as a sampler function of the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.plan import plan, resolve_r
from ...pcm_core.profiles import PCMProfile
from ...pcm_core.profiles.advice import sampling_mistakes, schedule_mistakes
from ...pcm_core.sampling import is_finite, sample_pcm
from ...pcm_core.sigma_table import SigmaTable
from .. import host
from ..host.status import show_on_node
from .plan import UNSET, levels_of, log, noise_settings

Callback = Callable[[dict[str, Any]], None]


def sample_phased(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    determinism: float = UNSET,
    gamma: float = UNSET,
    **others: Any,
) -> Tensor:
    """The sampler for sigmas from another node; it reads everything else from the model when it runs.

    Unusual sigmas and settings are logged and shown on the running node. ``others``: options that a node hands to
    every sampler, such as RES4LYF's SharkSampler; they are named in the log and not used.

    Raises:
        PCMError: if the schedule or the noise setting is refused, or a prediction contains NaN or infinity, which
            otherwise would end in a black image.
    """
    if others:
        logging.info("PCM Sampler: not used, for they are of other samplers: %s.", ", ".join(sorted(others)))
    patcher, levels = host.patcher_of(model), levels_of(sigmas)
    table, profile = host.sigma_table(patcher), host.profile_of(patcher) or PCMProfile()
    asked = noise_settings(determinism, gamma)
    r = resolve_r(profile, sigmas, table, **asked)
    if profile.known and levels:
        cfg = getattr(model.inner_model, "cfg", None)
        found = sampling_mistakes(profile, table, cfg=cfg, determinism=asked["determinism"])
        found += schedule_mistakes(profile, levels, table, _own(profile, table, len(levels) - 1))
        log("PCM Sampler", *found)
        show_on_node("\n".join(found))
    return sample_planned(model, x, sigmas, extra_args, callback, disable, r=r)


def sample_planned(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    r: Sequence[float],
) -> Tensor:
    """The sampler of a node that has planned the run and already warned. ``r``: determinism of each step.

    Raises:
        PCMError: if a prediction contains NaN or infinity.
    """
    return walk(model, x, sigmas, extra_args, refuse_broken(callback, sigmas), disable, r=r)


def walk(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None,
    callback: Callback,
    disable: bool | None,
    *,
    r: Sequence[float],
    **options: Any,
) -> Tensor:
    """Call ``pcm_core.sampling.sample_pcm`` for a model of the host; ``options`` are passed on."""
    patcher = host.patcher_of(model)
    table = host.sigma_table(patcher)
    samples = sample_pcm(
        model,
        x,
        sigmas,
        extra_args,
        callback,
        determinism=r,
        flow=table.flow,
        noise_scale=host.noise_scale(patcher),
        progress=partial(host.steps, disable=disable),
        **options,
    )
    return table.finished(samples, float(sigmas[-1])) if len(sigmas) else samples


def _own(profile: PCMProfile, table: SigmaTable, steps: int) -> list[float] | None:
    """The profile's own sigmas, with the same number of steps if it allows any."""
    try:
        return plan(profile, table, steps=0 if profile.exact_steps else steps).sigmas.tolist()
    except PCMError:  # more steps than any few-step schedule has
        return None


def refuse_broken(callback: Callback | None, whole: Tensor) -> Callback:
    """A callback that ends the run at NaN or infinity; ``whole`` is the full schedule, for the step number."""

    def watch(info: dict[str, Any]) -> None:
        if not is_finite(info["denoised"]):
            raise _broken(info, whole)
        if callback is not None:
            callback(info)

    return watch


def _broken(info: dict[str, Any], whole: Tensor) -> PCMError:
    """The error for NaN or infinity: from the model, or already in its input."""
    step = int((whole > info["sigma"]).sum()) + 1
    where = f"step {step} of {len(whole) - 1} (sigma {float(info['sigma']):.4g})"
    if not is_finite(info["x"]):
        return PCMError(
            f"The latent or its noise held NaN or infinity before {where}.",
            "finite values.",
            "Look at what made the latent: a VAE in fp16, or the sampler before this one.",
        )
    return PCMError(
        f"The model returned NaN or infinity at {where}.",
        "a finite prediction.",
        "Lower the LoRA strength or cfg, or run the model in a wider dtype (bf16 or fp32).",
    )
