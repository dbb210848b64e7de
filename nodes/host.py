"""Everything the pack asks of ComfyUI: the only file that imports ``comfy``, ``folder_paths`` or ``latent_preview``.

Supported hosts: 0.16.3 to 0.30.0. When the host changes, this file changes and no other.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any

import comfy.context_windows
import comfy.k_diffusion.sampling
import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths as folder_paths  # for host_lora and host_training
import latent_preview
from torch import Tensor

from ..pcm_core.errors import PCMError
from ..pcm_core.lora.keys import CLASS_FAMILIES, UNET_FAMILIES
from ..pcm_core.profiles import PCMProfile
from ..pcm_core.sigma_table import SigmaTable

CFGGuider = comfy.samplers.CFGGuider
Latent = dict[str, Any]

_PROFILE_KEY = "pcm_profile"
_REFUSED = {
    "IMG_TO_IMG": "an image-to-image model (Lotus)",
    "IMG_TO_IMG_FLOW": "an image-to-image flow model (FlowRVS)",
    "V_PREDICTION_DDPM": "a variance-preserving v model (CogVideoX)",
}


# Model: what it is, which sigmas it knows, what was attached to it.


def model_sampling(model: Any) -> Any:
    """The model's sampling object, with every ModelSampling* patch applied.

    Args:
        model: a ModelPatcher.

    Raises:
        PCMError: if PCM cannot serve this parametrisation.
    """
    sampling = model.get_model_object("model_sampling")
    _refuse(sampling)
    return sampling


def sigma_table(model: Any) -> SigmaTable:
    """The model's sigmas by timestep, with every ModelSampling* patch applied.

    Raises:
        PCMError: if PCM cannot serve the parametrisation, or the table cannot be indexed by timestep.
    """
    return table_of(model_sampling(model))


def table_of(sampling: Any) -> SigmaTable:
    """``sigma_table`` of a sampling object, for callers that have no model."""
    _refuse(sampling)
    try:
        return SigmaTable.of(sampling.sigmas.float(), flow=isinstance(sampling, comfy.model_sampling.CONST))
    except PCMError as error:
        raise PCMError(
            error.found,
            error.expected,
            "Remove ModelSamplingDiscrete (lcm) or a similar patch from the model; PCM needs the model's own sigmas.",
        ) from error


def is_flow(model: Any) -> bool:
    """Whether x = (1 - sigma) x0 + sigma noise, rather than x = x0 + sigma noise."""
    return isinstance(model_sampling(model), comfy.model_sampling.CONST)


def noise_scale(model: Any) -> float:
    """Standard deviation of a flow model's noise; 1 for all but one family of the host."""
    return float(getattr(model_sampling(model), "noise_scale", 1.0))


def stock_sigmas(model: Any, scheduler: str, steps: int, denoise: float) -> Tensor:
    """What KSampler would walk with one of the host's own schedulers: the last steps of a longer schedule."""
    total = steps if denoise > 0.9999 else int(steps / denoise)
    return comfy.samplers.calculate_sigmas(model_sampling(model), scheduler, total)[-(steps + 1) :]


def family_of(model: Any) -> str:
    """``sd15``, ``sdxl``, ``sd3``, ...; the host's class name in lower case for models we have no name for."""
    names = [parent.__name__ for parent in type(model.model).__mro__]
    if names[0] == "BaseModel":
        return UNET_FAMILIES.get(model.model.model_config.unet_config.get("context_dim"), "unet")
    return next((CLASS_FAMILIES[name] for name in names if name in CLASS_FAMILIES), names[0].lower())


def flow_shift(model: Any) -> float | None:
    """The linear timestep shift of a flow model, whichever way the host stores it; ``None`` for other models."""
    sampling = model_sampling(model)
    if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
        return math.exp(sampling.shift)
    return float(sampling.shift) if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow) else None


def with_flow_shift(model: Any, shift: float) -> Any:
    """A clone of a flow model with that linear shift, in the class of sampling it already has."""
    current = model_sampling(model)
    sampling = type(current)(model.model.model_config)
    if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
        sampling.set_parameters(shift=math.log(shift))
    else:
        sampling.set_parameters(shift=shift, multiplier=current.multiplier)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def with_context_windows(model: Any, length: int, overlap: int, axis: int, *, nested: bool) -> Any:
    """A clone that is evaluated in fixed windows along an axis, each frame weighted by its distance from the edge.

    Raises:
        PCMError: if the latent is ``nested`` and the host has no windows for that.
    """
    api = comfy.context_windows
    if nested and not hasattr(api.IndexListContextHandler, "_build_window_state"):
        raise PCMError(
            "This ComfyUI has no windows for video with audio.", "a newer one.", "Update it, or use window 0."
        )
    handler = api.IndexListContextHandler(
        context_schedule=api.get_matching_context_schedule(api.ContextSchedules.STATIC_STANDARD),
        fuse_method=api.get_matching_fuse_method(api.ContextFuseMethods.PYRAMID),
        context_length=length, context_overlap=overlap, dim=axis,
    )  # fmt: skip
    # Puts a frame before each later window, for models whose first latent frame is one picture. Newer hosts only.
    handler.causal_window_fix = axis > 0
    clone = model.clone()
    clone.model_options["context_handler"] = handler
    api.create_prepare_sampling_wrapper(clone)
    return clone


def attach_profile(model: Any, profile: PCMProfile) -> Any:
    """A clone of the model that carries the profile; it survives later clones and patches."""
    clone = model.clone()
    clone.set_attachments(_PROFILE_KEY, profile)
    return clone


def profile_of(model: Any) -> PCMProfile | None:
    """The profile that ``attach_profile`` put on the model, or ``None``."""
    return model.get_attachment(_PROFILE_KEY)


def _refuse(sampling: Any) -> None:
    for parent in type(sampling).__mro__:
        if parent.__name__ in _REFUSED:
            raise PCMError(
                f"This is {_REFUSED[parent.__name__]}: the host samples it as {parent.__name__}.",
                "an eps, v, EDM or flow model.",
                "Sample it with the host's own nodes.",
            )


# Sampling: the host's own path, as SamplerCustomAdvanced walks it.


def ksampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER that calls ``function(model, x, sigmas, extra_args, callback, disable, **options)``."""
    return comfy.samplers.KSAMPLER(function, options)


def patcher_of(model: Any) -> Any:
    """The ModelPatcher behind the ``model`` that a sampler function receives."""
    return model.inner_model.model_patcher


def steps(count: int, *, disable: bool | None) -> Iterator[int]:
    """``range(count)`` with the host's console progress bar, ended by the user's Cancel."""
    for i in comfy.k_diffusion.sampling.trange(count, disable=disable):
        check_interrupted()
        yield i


def check_interrupted() -> None:
    """Raise the host's InterruptProcessingException if the user pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def parts(samples: Any) -> list[Tensor]:
    """The tensors of a latent: one, or video and audio of a nested one."""
    return list(samples.unbind()) if samples.is_nested else [samples]


def fix_latent(model: Any, latent: Latent) -> Latent:
    """A shallow copy whose samples have the channels and dimensions the model wants.

    Raises:
        PCMError: if the latent has no samples.
    """
    samples = latent["samples"]
    if any(part.numel() == 0 for part in parts(samples)):
        raise PCMError(
            f"The latent is empty: its shape is {[tuple(part.shape) for part in parts(samples)]}.",
            "at least one picture of at least one latent pixel.",
            "Check the batch size and the crop that made it.",
        )
    hints = {key: latent[key] for key in ("downscale_ratio_spacial", "downscale_ratio_temporal") if key in latent}
    fixed = {key: value for key, value in latent.items() if key not in hints}
    fixed["samples"] = comfy.sample.fix_empty_latent_channels(model, samples, **hints)
    return fixed


def noise_for(latent: Latent, seed: int) -> Any:
    """Noise like ``latent["samples"]``, drawn on the CPU; ``batch_index`` picks the items of a larger batch."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def sample(
    guider: Any, sampler: Any, sigmas: Tensor, latent: Latent, *, seed: int, add_noise: bool = True, noise: Any = None
) -> tuple[Latent, Latent]:
    """Run a guider and a sampler over ``sigmas``: masks, batch_index, nested latents, previews and all.

    Args:
        guider: a CFGGuider with its conditioning set.
        sigmas: [N + 1] descending; empty returns the latent as it is.
        latent: never written to.
        seed: of the starting noise, and of the sampler's own where it draws any.
        add_noise: False continues a latent that already carries noise.
        noise: starting noise like the fixed latent, instead of ``noise_for`` it.

    Returns:
        The result, and the model's last x0.

    Raises:
        PCMError: if the latent is empty.
    """
    model = guider.model_patcher
    fixed = fix_latent(model, latent)
    if len(sigmas) == 0:
        return fixed, fixed.copy()
    if noise is None:
        noise = noise_for(fixed, seed) if add_noise else fixed["samples"] * 0.0
    kept: dict[str, Any] = {}
    samples = guider.sample(
        noise,
        fixed["samples"],
        sampler,
        sigmas,
        denoise_mask=fixed.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1, kept),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    result = {**fixed, "samples": samples.to(comfy.model_management.intermediate_device())}
    return result, {**fixed, "samples": _x0_out(model, kept["x0"], samples) if "x0" in kept else result["samples"]}


def _x0_out(model: Any, x0: Any, samples: Any) -> Any:
    if samples.is_nested and not x0.is_nested:
        shapes = [part.shape for part in samples.unbind()]
        x0 = comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(x0, shapes))
    return model.model.process_latent_out(x0.to("cpu"))


def stock_sampling(model: Any, sampler: str, scheduler: str, steps: int, denoise: float) -> tuple[Any, Tensor]:
    """SAMPLER and sigmas as KSampler makes them from its widgets.

    Raises:
        PCMError: if the host has no such sampler or scheduler.
    """
    for kind, name, known in (
        ("sampler", sampler, comfy.samplers.KSampler.SAMPLERS),
        ("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS),
    ):
        if name not in known:
            close = difflib.get_close_matches(name, known) or sorted(known)[:5]
            raise PCMError(f'There is no {kind} "{name}".', f"one of the host's {kind}s.", f"Try {', '.join(close)}.")
    walk = comfy.samplers.KSampler(model, steps, model.load_device, sampler, scheduler, denoise)
    return comfy.samplers.sampler_object(sampler), walk.sigmas.cpu()


# Stock drop-downs: additive, and harmless when called again or when another pack has rebound the lists.


def add_sampler(name: str, function: Callable[..., Tensor]) -> None:
    """Offer a k-diffusion style function under ``name`` wherever samplers are chosen by name."""
    if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
        setattr(comfy.k_diffusion.sampling, f"sample_{name}", function)
    _append(name, comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS)


def add_scheduler(name: str, handler: Callable[[Any, int], Tensor]) -> None:
    """Offer ``handler(model_sampling, steps) -> sigmas`` wherever schedulers are chosen by name."""
    comfy.samplers.SCHEDULER_HANDLERS.setdefault(name, comfy.samplers.SchedulerHandler(handler))
    _append(name, comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS)


def simple_sigmas(sampling: Any, steps: int) -> Tensor:
    """The host's own ``simple`` schedule: the trailing timesteps of the table, rounded down."""
    return comfy.samplers.simple_scheduler(sampling, steps)


def _append(name: str, *lists: list[str]) -> None:
    for names in lists:
        if name not in names:
            names.append(name)
