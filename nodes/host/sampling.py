"""ComfyUI's own sampling code, called like SamplerCustomAdvanced does."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.nested_tensor
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ...pcm_core.errors import PCMError
from .model import model_sampling
from .names import listed

CFGGuider = comfy.samplers.CFGGuider
Latent = dict[str, Any]


def stock_sigmas(model: Any, scheduler: str, steps: int, denoise: float) -> Tensor:
    """The sigmas of KSampler with one of the host's own schedulers: the last steps of a longer schedule."""
    total = steps if denoise > 0.9999 else int(steps / denoise)
    return comfy.samplers.calculate_sigmas(model_sampling(model), scheduler, total)[-(steps + 1) :]


def ksampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER that calls ``function(model, x, sigmas, extra_args, callback, disable, **options)``."""
    return comfy.samplers.KSAMPLER(function, options)


def patcher_of(model: Any) -> Any:
    """The ModelPatcher behind the ``model`` that a sampler function receives."""
    return model.inner_model.model_patcher


def steps(count: int, *, disable: bool | None) -> Iterator[int]:
    """``range(count)`` with the host's console progress bar; Cancel ends it."""
    for i in comfy.k_diffusion.sampling.trange(count, disable=disable):
        check_interrupted()
        yield i


def check_interrupted() -> None:
    """Raise the host's InterruptProcessingException if the user pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def parts(samples: Any) -> list[Tensor]:
    """The tensors of a latent: a single one, or video and audio of a nested latent."""
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
            "at least one image of at least one latent pixel.",
            "Check the batch size and the crop that made it.",
        )
    hints = {key: latent[key] for key in ("downscale_ratio_spacial", "downscale_ratio_temporal") if key in latent}
    fixed = {key: value for key, value in latent.items() if key not in hints}
    fixed["samples"] = comfy.sample.fix_empty_latent_channels(model, samples, **hints)
    return fixed


def pixels_of(model: Any, latent: Latent) -> int:
    """Width times height of the image of a latent."""
    samples = parts(fix_latent(model, latent)["samples"])[0]
    ratio = model.get_model_object("latent_format").spacial_downscale_ratio
    return samples.shape[-1] * samples.shape[-2] * ratio * ratio


def noise_for(latent: Latent, seed: int) -> Any:
    """Noise like ``latent["samples"]``, drawn on the CPU; ``batch_index`` selects items of a larger batch."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def sample(
    guider: Any, sampler: Any, sigmas: Tensor, latent: Latent, *, seed: int, add_noise: bool = True, noise: Any = None
) -> tuple[Latent, Latent]:
    """Run a guider and a sampler over ``sigmas``: masks, batch_index, nested latents, previews and all.

    Args:
        guider: a CFGGuider with its conditioning set.
        sigmas: [N + 1] descending; empty returns the latent as it is.
        latent: never modified.
        seed: seed of the initial noise, and of any noise that the sampler draws.
        add_noise: False for a latent that already has noise.
        noise: initial noise like the fixed latent; default ``noise_for``.

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
    """The SAMPLER and sigmas that KSampler makes from its widgets.

    Raises:
        PCMError: if the host has no such sampler or scheduler.
    """
    check_names(sampler, scheduler)
    walk = comfy.samplers.KSampler(model, steps, model.load_device, sampler, scheduler, denoise)
    return comfy.samplers.sampler_object(sampler), walk.sigmas.cpu()


def check_names(sampler: str, scheduler: str) -> None:
    """Refuse names that this host does not have.

    Raises:
        PCMError: if it has no such sampler or scheduler.
    """
    for kind, name, known in (
        ("sampler", sampler, listed(comfy.samplers.KSampler.SAMPLERS)),
        ("scheduler", scheduler, listed(comfy.samplers.KSampler.SCHEDULERS)),
    ):
        if name not in known:
            close = difflib.get_close_matches(name, known) or sorted(known)[:5]
            raise PCMError(f'There is no {kind} "{name}".', f"one of the host's {kind}s.", f"Try {', '.join(close)}.")


def simple_sigmas(sampling: Any, steps: int) -> Tensor:
    """The host's own ``simple`` schedule: the trailing timesteps of the table, rounded down."""
    return comfy.samplers.simple_scheduler(sampling, steps)
