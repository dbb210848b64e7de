"""What the video node does to a model before it samples: shift, settings, context windows, second expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...pcm_core import video
from ...pcm_core.errors import PCMError
from ...pcm_core.profiles import PCMProfile
from ...pcm_core.video.noise import WINDOW_NOISES, Windows
from .. import host
from .plan import AUTO, advised
from .settings import NONE, with_method

# What two experts have in common, of the sizes that the host's detection finds.
_TWINS = ("image_model", "model_type", "in_dim", "out_dim", "dim", "num_layers", "in_channels", "model_channels")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model made ready: shifted, with its settings attached. The caller's model stays as it was."""

    model: Any
    video_model: video.VideoModel
    profile: PCMProfile
    windows: Windows | None = None
    notes: tuple[str, ...] = ()

    def noted(self, *notes: str) -> Setup:
        """With more to report."""
        return replace(self, notes=self.notes + notes)


def set_up(model: Any, preset: str, steps: int, shift: float, method: str = AUTO) -> Setup:
    """Find out what the model is and wants.

    Args:
        method: as in ``with_method``; ``none`` also leaves the default preset of the video model out.

    Raises:
        PCMError: if it is no video model, the preset is not for it, or the shift cannot be.
    """
    with advised("Use PCM Sampler, which serves every model."):
        video_model = video.video_model_of(host.base_model_of(model))
    if method != AUTO and preset != AUTO:
        raise PCMError(f"preset is {preset} and method is {method}.", "one of them.", "Set the other to auto.")
    model, found = with_method(model, method) if preset == AUTO else (model, ())
    bare = method == NONE
    profile, notes = (PCMProfile(), ()) if bare else video.choose(video_model, host.profile_of(model), preset)
    notes = (*found, *notes)
    model, shift_notes = _with_shift(model, profile, shift, keep_patch=preset == AUTO)
    table = host.sigma_table(model)
    listed = profile.sigmas is not None and profile.timesteps is None and profile.method not in video_model.uniform
    profile = video.with_sigmas(video_model, profile, table, steps)
    if shift and listed:
        shift_notes = (f"{profile.method} has a fixed list of sigmas; shift {shift:g} does not move them.",)
    model = host.attach_profile(model, profile)
    return Setup(model=model, video_model=video_model, profile=profile, notes=notes + shift_notes)


def check_clip(video_model: video.VideoModel, shape: Sequence[int]) -> None:
    """Refuse a latent that is not a clip of the video model.

    Raises:
        PCMError: see above.
    """
    batched = "Use Empty Latent Image with one image per frame."
    clip = f"Use the empty video latent of {video_model.name}, and set its length."
    with advised(clip if video_model.frames_axis else batched):
        video_model.check_latent(shape)


def _with_shift(model: Any, profile: PCMProfile, asked: float, *, keep_patch: bool) -> tuple[Any, tuple[str, ...]]:
    """``asked`` (0: not) goes before a ModelSampling node, that before the profile, that before the model's own."""
    if not (math.isfinite(asked) and asked >= 0):
        raise PCMError(f"shift is {asked}.", "a number above 0, or 0 for what the model wants.", "Use 0.")
    own, wanted = host.flow_shift(model), profile.shift
    if own is None:
        if asked:
            raise PCMError(
                f"shift is {asked:g}.", "0: this is not a flow model, so it has no shift.", "Set shift to 0."
            )
        return model, ()
    unlike = wanted is not None and not math.isclose(asked or own, wanted, rel_tol=1e-3)
    if not asked and keep_patch and "model_sampling" in model.object_patches:
        note = f"A ModelSampling node set shift {own:g}, {profile.method} wants {wanted}; set shift here to change it."
        return model, (note,) if unlike else ()
    notes = (f"shift is {asked:g}; {profile.method} wants {wanted:g}.",) if asked and wanted and unlike else ()
    if unlike and not asked and "model_sampling" in model.object_patches:
        notes = (f"The model came with shift {own:g} from another node; {wanted:g} of the preset is used instead.",)
    target = asked or wanted or own
    return (model if math.isclose(target, own) else host.with_flow_shift(model, target)), notes


def second_expert(first: Setup, model: Any) -> Setup:
    """The low-noise expert with the shift and the settings of the first.

    Raises:
        PCMError: if the two are not of one kind.
    """
    if differ := [f"{name} {a} and {b}" for name, a, b in _compare(first.model, model) if a != b]:
        raise PCMError(
            f"The two models differ: {', '.join(differ)}.",
            "the high-noise and the low-noise model of one pair.",
            "Connect the pair that belongs together.",
        )
    own, notes = host.profile_of(model), ()
    if own is not None and own.known:
        names = ("method", "phases", "cfg", "determinism", "gamma")
        unlike = [name for name in names if getattr(own, name) != getattr(first.profile, name)]
        if unlike:
            notes = (f"The second model's LoRA ({own.method}) wants another {', '.join(unlike)}; used the first's.",)
    shift, its = host.flow_shift(first.model), host.flow_shift(model)
    if shift is not None and its is not None and not math.isclose(shift, its):
        model = host.with_flow_shift(model, shift)
    return replace(first, model=host.attach_profile(model, first.profile), windows=None, notes=notes)


def _compare(first: Any, second: Any) -> list[tuple[str, Any, Any]]:
    ours, other = (model.model.model_config.unet_config for model in (first, second))
    sizes = [(name, ours.get(name), other.get(name)) for name in _TWINS]
    return [("class", type(first.model).__name__, type(second.model).__name__), *sizes]


def with_windows(setup: Setup, window: int, overlap: int, *, nested: bool, noise: str = WINDOW_NOISES[0]) -> Setup:
    """Attach context windows, unless the model brings its own.

    Args:
        window: frames in one window; 0 for none.
        overlap: frames that neighbouring windows share.
        nested: the latent holds more than the video.
        noise: the arrangement that was asked for; a model whose own windows arrange the noise says that it is not used.

    Raises:
        PCMError: if the video model has no clips of that length, the overlap is not shorter, or the windows have to
            be AnimateDiff-Evolved's.
    """
    if window and "ADE" in getattr(setup.model, "additional_models", {}):
        raise PCMError(
            f"window is {window}, and the model has a motion module of AnimateDiff-Evolved.",
            "window 0: that pack has context windows of its own.",
            "Set window to 0, and connect its Context Options to its loader.",
        )
    own = setup.model.model_options.get("context_handler")
    if own is not None:
        if window:
            setup = setup.noted("The model brings its own context windows; window and overlap are not used.")
        if getattr(own, "freenoise", True):
            ignored = f"The model's own windows arrange the noise; window_noise {noise} is not used."
            return setup if noise == WINDOW_NOISES[0] else setup.noted(ignored)
        overlap = min(own.context_overlap, own.context_length - 1)
        return replace(setup, windows=Windows(length=own.context_length, overlap=overlap))
    if not window:
        return setup
    stride = setup.video_model.stride
    length = setup.video_model.latent_frames(window, "window")
    shared = -(-overlap // stride)
    if not 0 <= shared < length:
        raise PCMError(
            f"window is {window} frames and overlap is {overlap}.",
            "a window longer than its overlap.",
            f"Use overlap {window // 4 // stride * stride}.",
        )
    windows = Windows(length=length, overlap=shared)
    model = host.with_context_windows(setup.model, length, shared, setup.video_model.frames_axis, nested=nested)
    return replace(setup, model=model, windows=windows)
