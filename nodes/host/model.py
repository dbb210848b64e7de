"""What a model is to ComfyUI: its sigmas, its shift, and what is attached to it."""

from __future__ import annotations

import inspect
import math
from pathlib import PurePosixPath
from typing import Any

import comfy.context_windows
import comfy.model_sampling

from ...pcm_core.errors import PCMError
from ...pcm_core.lora.base_models import CLASS_BASE_MODELS, UNET_BASE_MODELS
from ...pcm_core.profiles import PCMProfile
from ...pcm_core.sigma_table import SigmaTable
from ...pcm_core.video import video_models
from .networks import sampling_for
from .status import running_prompt

_PROFILE_KEY = "pcm_profile"
# MiniMax-H3 maps the video's noise level to the audio's itself, and so must know both shifts (MiniMaxH3SigmaShift).
_NETWORK_SHIFTS = {
    "minimax_h3_sigma_shift_video": "sigma_shift_video",
    "minimax_h3_sigma_shift_audio": "sigma_shift_audio",
}
# Parametrisations whose noise PCM knows: x = x0 + sigma noise, and x = (1 - sigma) x0 + sigma noise. Classes that
# change only how x0 comes out of the network inherit one of them.
_SERVED = ("EPS", "CONST", "COSMOS_RFLOW")
_REFUSED = {
    "IMG_TO_IMG": "an image-to-image model (Lotus)",
    "IMG_TO_IMG_FLOW": "an image-to-image flow model (FlowRVS)",
    "V_PREDICTION_DDPM": "a variance-preserving v model (CogVideoX)",
}


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
    """Standard deviation of a flow model's noise; 1 for all but one of the host's classes."""
    return float(getattr(model_sampling(model), "noise_scale", 1.0))


def base_model_of(model: Any) -> str:
    """``sd15``, ``sdxl``, ``sd3``, ...; the host's class name in lower case for models we have no name for."""
    names = [parent.__name__ for parent in type(model.model).__mro__]
    if names[0] == "BaseModel":
        return UNET_BASE_MODELS.get(model.model.model_config.unet_config.get("context_dim"), "unet")
    return next((CLASS_BASE_MODELS[name] for name in names if name in CLASS_BASE_MODELS), names[0].lower())


def file_of(model: Any) -> str:
    """Path of the checkpoint a model was loaded from; empty if not known.

    Loaders of other packs (GGUF, Nunchaku) do not say it; the prompt that runs does, if a single file feeds the node.
    """
    loader = getattr(model, "cached_patcher_init", None)
    if loader:
        return loader[1][0] if loader[1] and isinstance(loader[1][0], str) else ""
    return _file_in_prompt()


def _file_in_prompt() -> str:
    if (running := running_prompt()) is None:
        return ""
    # Imported where a loader does not say its file: the host starts without it.
    from ...pcm_core.workflow_check.files import loaded_file
    from ...pcm_core.workflow_check.read import read_workflow

    try:
        return loaded_file(read_workflow(running[0]), running[1])
    except PCMError:
        return ""  # what runs is no prompt that the check can read


def file_name(model: Any) -> str:
    """Name of the checkpoint a model was loaded from; empty if not known."""
    return PurePosixPath(file_of(model).replace("\\", "/")).name


def flow_shift(model: Any) -> float | None:
    """The linear timestep shift of a flow model that has one to set; ``None`` for other models.

    Read from the sigmas: other packs put tables of their own into an object whose ``shift`` says something else
    (RES4LYF's ModelSamplingAdvanced), and the host's classes mean the shift or its logarithm by it.
    """
    settable = (comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.ModelSamplingDiscreteFlow)
    return sigma_table(model).shift if isinstance(model_sampling(model), settable) else None


def has_shift(model: Any, shift: float, audio_shift: float | None = None) -> bool:
    """Whether a flow model has that linear shift, and what its network reads of it (``_NETWORK_SHIFTS``) agrees."""
    current = flow_shift(model)
    if current is None or not math.isclose(current, shift, rel_tol=1e-4):
        return False
    audio = getattr(model_sampling(model), "audio_shift", None)
    if audio is not None and audio_shift is not None and not math.isclose(audio, audio_shift, rel_tol=1e-4):
        return False
    told = _network_shifts(model)
    return all(
        math.isclose(told[key], value, rel_tol=1e-4) for key, value in _wanted_shifts(model, shift, audio_shift).items()
    )


def with_flow_shift(model: Any, shift: float, audio_shift: float | None = None) -> Any:
    """A clone of a flow model with that linear shift, in the class of sampling it already has.

    Whatever else its sampling object was set to stays as it is, such as the shift of an audio half.

    Args:
        shift: of the video half of a model that makes video and audio.
        audio_shift: of its audio half; ``None`` leaves it.

    Raises:
        PCMError: if the object has a setting that cannot be read from it, and so would be lost.
    """
    current = model_sampling(model)
    sampling = type(current)(model.model.model_config)
    flux = isinstance(sampling, comfy.model_sampling.ModelSamplingFlux)
    asked = {"shift": math.log(shift) if flux else shift}
    if audio_shift is not None and getattr(current, "audio_shift", None) is not None:
        asked["audio_shift"] = audio_shift
    sampling.set_parameters(**_settings(current) | asked)
    if hasattr(current, "noise_scale"):
        sampling.set_noise_scale(current.noise_scale)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    if wanted := _wanted_shifts(clone, shift, audio_shift):
        options = clone.model_options.get("transformer_options", {})
        clone.model_options["transformer_options"] = {**options, **wanted}
    return clone


def _settings(sampling: Any) -> dict[str, Any]:
    """What ``set_parameters`` of a sampling object was called with, but for the length of its table."""
    names = [name for name in inspect.signature(sampling.set_parameters).parameters if name != "timesteps"]
    for name in names:
        if not hasattr(sampling, name):
            kind = next(parent.__name__ for parent in type(sampling).__mro__ if "set_parameters" in vars(parent))
            raise PCMError(
                f'The sampling object {kind} does not say what its setting "{name}" is.',
                "settings that can be kept when the shift is changed.",
                "Set the shift with the node that is made for this model.",
            )
    return {name: getattr(sampling, name) for name in names}


def _network_shifts(model: Any) -> dict[str, float]:
    """The shifts that the network itself reads, by their names in ``transformer_options``."""
    network, options = model.model.diffusion_model, model.model_options.get("transformer_options", {})
    return {
        option: float(options.get(option, getattr(network, attribute)))
        for option, attribute in _NETWORK_SHIFTS.items()
        if hasattr(network, attribute)
    }


def _wanted_shifts(model: Any, shift: float, audio_shift: float | None) -> dict[str, float]:
    wanted = {"minimax_h3_sigma_shift_video": shift, "minimax_h3_sigma_shift_audio": audio_shift}
    own = _network_shifts(model)
    return {name: own[name] if value is None else value for name, value in wanted.items() if name in own}


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
    """A clone of the model that carries the profile; it survives later clones and patches.

    Where the method's network has to be called another way than the host would, the clone's sampling object does so.
    """
    clone = model.clone()
    clone.set_attachments(_PROFILE_KEY, profile)
    if profile.network:
        sampling = sampling_for(profile.network, model_sampling(clone), model.model.model_config)
        clone.add_object_patch("model_sampling", sampling)
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
    for way in ("noise_scaling", "calculate_input"):
        owner = next((parent.__name__ for parent in type(sampling).__mro__ if way in vars(parent)), _SERVED[0])
        if owner not in _SERVED:
            raise PCMError(
                f"The host adds noise to this model as {owner}, which this pack does not know.",
                "an eps, v, EDM or flow model.",
                "Sample it with the host's own nodes, or update this pack.",
            )


def latent_ratios(model: Any) -> tuple[int, int]:
    """Pixels per latent pixel along a side, and frames per latent frame."""
    form = model.get_model_object("latent_format")
    time = getattr(form, "temporal_downscale_ratio", None)
    if time is None:  # an older host does not say
        base = base_model_of(model)
        time = next((known.stride for known in video_models().values() if base in known.bases), 1)
    return int(getattr(form, "spacial_downscale_ratio", 8)), int(time)
