"""The phase jump as a sampler function of the host."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.profiles import PCMProfile
from ...pcm_core.profiles.advice import sampling_mistakes
from ...pcm_core.sampling import ancestral_to_determinism, gamma_to_determinism, is_finite, sample_pcm
from ...pcm_core.sigma_table import SigmaTable
from .. import host
from .plan import UNSET


def sample_phased(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    determinism: float = UNSET,
    gamma: float = UNSET,
    whole: Tensor | None = None,
    said: bool = False,
    **options: Any,
) -> Tensor:
    """``pcm_core.sampling.sample_pcm`` inside the host: everything it needs is read from the model at run time.

    ``whole`` is the schedule of which ``sigmas`` are a part; ``said``: the caller knows what is unusual about them;
    ``options`` go to ``sample_pcm`` as they are.

    A schedule that ends at timestep 0 (terminal alpha0) leaves a variance-exploding latent with the noise of that
    step; it is scaled to variance-preserving there, as diffusers' DDIM does with set_alpha_to_one=False.

    Raises:
        PCMError: if the schedule or the noise is refused, or a prediction holds NaN or infinity: a black picture would
            not say why.
    """
    patcher = host.patcher_of(model)
    table = host.sigma_table(patcher)
    whole = sigmas if whole is None else whole
    if whole[:1].equal(sigmas[:1]):
        asked = None if determinism == UNSET else determinism
        _warn(patcher, whole[:0] if said else whole, table, getattr(model.inner_model, "cfg", None), asked)

    def watch(info: dict[str, Any]) -> None:
        if not is_finite(info["denoised"]):
            raise _broken(info, whole)
        if callback is not None:
            callback(info)

    samples = sample_pcm(
        model,
        x,
        sigmas,
        extra_args,
        watch,
        determinism=_rates(patcher, sigmas, table, determinism, gamma),
        flow=table.flow,
        noise_scale=host.noise_scale(patcher),
        progress=partial(host.steps, disable=disable),
        **options,
    )
    return table.finished(samples, float(sigmas[-1])) if len(sigmas) else samples


def _broken(info: dict[str, Any], whole: Tensor) -> PCMError:
    """What to say of NaN or infinity, and whether the model is to blame."""
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


def _warn(model: Any, sigmas: Tensor, table: SigmaTable, cfg: float | None, determinism: float | None) -> None:
    """Say in the log what people usually get wrong with this kind of LoRA."""
    profile = host.profile_of(model)
    if profile is None or not profile.known:
        return
    shift = host.flow_shift(model)
    for mistake in sampling_mistakes(profile, sigmas.tolist(), table, cfg=cfg, shift=shift, determinism=determinism):
        logging.warning("PCM Sampler: %s", mistake)


def _rates(
    model: Any, sigmas: Tensor, table: SigmaTable, determinism: float, gamma: float
) -> float | tuple[float, ...]:
    """r of Eq. 44 from the widgets, else from the profile; at most one of the widgets is set."""
    check_noise(determinism, gamma)
    if determinism == UNSET and gamma == UNSET:
        profile = host.profile_of(model) or PCMProfile()
        if profile.ancestral:
            return ancestral_to_determinism(sigmas, flow=table.flow)
        determinism, gamma = profile.determinism, UNSET if profile.gamma is None else profile.gamma
    return determinism if gamma == UNSET else gamma_to_determinism(gamma, sigmas, table)


def check_noise(determinism: float, gamma: float) -> None:
    """Refuse values outside 0..1 (-1 is unset) and two answers to one question.

    Raises:
        PCMError: see above.
    """
    for name, value in (("determinism", determinism), ("gamma", gamma)):
        if value != UNSET and not 0 <= value <= 1:  # also refuses NaN
            raise PCMError(f"{name} is {value}.", "0 to 1, or -1 for what the LoRA says.", "Use -1.")
    if UNSET not in (determinism, gamma):
        raise PCMError(f"determinism is {determinism} and gamma is {gamma}.", "one of them.", "Set the other to -1.")
