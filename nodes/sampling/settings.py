"""The settings of a few-step method put on a model: by its LoRA, by its file name, or by a method that was chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...pcm_core.errors import PCMError
from ...pcm_core.profiles import PCMProfile, method_choices, profile_from_name, profile_of_method
from ...pcm_core.profiles.lookup import base_models
from .. import host

AUTO, NONE = "auto", "none"
Notes = tuple[str, ...]


def methods() -> list[str]:
    """What the ``method`` widgets offer."""
    return [AUTO, NONE, *method_choices()]


def with_method(model: Any, method: str) -> tuple[Any, Notes]:
    """A model with the settings to sample it with: what it carries, what its file name says, or what was chosen.

    Args:
        method: ``auto``, ``none``, or a method of the table.

    Returns:
        The model, and what was recognized, overridden or switched off, one sentence each.

    Raises:
        PCMError: if the method is for another base model, or no list of sigmas can serve the model.
    """
    carried = host.profile_of(model)
    if method == AUTO:
        return (model, ()) if carried is not None and carried.known else _recognized(model)
    if method == NONE:
        known = carried is not None and carried.known
        notes = (f"method is none: the settings of {carried.method} are not used.",) if carried and known else ()
        return (host.attach_profile(model, PCMProfile()), notes) if known else (model, ())
    return with_settings(model, profile_of_method(method), method)


def with_settings(model: Any, profile: PCMProfile, name: str) -> tuple[Any, Notes]:
    """A model with settings that somebody chose, over those it carries.

    Args:
        name: of what was chosen, for the sentences.

    Raises:
        PCMError: as ``with_method``.
    """
    _check_fits(model, profile, name)
    carried = host.profile_of(model)
    other = carried is not None and carried.known and carried.method != profile.method
    notes = (f"Used {name}, not {carried.method}, which the model carries.",) if carried and other else ()
    model, _, changed = configure(model, profile)
    return model, (*notes, *changed)


def _recognized(model: Any) -> tuple[Any, Notes]:
    """By the name of the checkpoint; the model as it is where that says nothing."""
    path, base_model = host.file_of(model), host.base_model_of(model)
    profile = profile_from_name(path, "checkpoint", base_model) if path else None
    if profile is None:
        return model, ()
    _check_served(profile, host.file_name(model))
    own = "model_sampling" in model.object_patches
    shift = "" if profile.shift is None else f", shift {profile.shift:g}"
    notes = [f"Recognized by its file name: {profile.method}, {profile.steps} steps, cfg {profile.cfg:g}{shift}."]
    notes += [] if profile.verified or not profile.note else [profile.note]
    if own and profile.shift is not None and not host.has_shift(model, profile.shift, profile.audio_shift):
        notes.append(f"A ModelSampling node set shift {host.flow_shift(model):.4g}, which stays.")
        profile = replace(profile, shift=None, audio_shift=None)
    model, _, changed = configure(model, profile)
    return model, (*notes, *changed)


def _check_fits(model: Any, profile: PCMProfile, name: str) -> None:
    """Refuse a method for another base model, as far as both are known: metadata may say any name."""
    _check_served(profile, name)
    own, wanted = host.base_model_of(model), profile.base_model
    if own != wanted and {own, wanted} <= base_models():
        raise PCMError(
            f"{name} is a method for {wanted}, and the model is {own}.", f"a method for {own}.", "Choose another."
        )


def _check_served(profile: PCMProfile, name: str) -> None:
    if profile.sampling_class == "unsupported":
        raise PCMError(f"{name} is {profile.method}.", "a method that a list of sigmas can sample.", profile.note)


def configure(model: Any, profile: PCMProfile) -> tuple[Any, PCMProfile, list[str]]:
    """A clone with the profile, its shift set and its timesteps looked up.

    Returns:
        The model, the profile as it was attached, and what was changed, one sentence each.
    """
    notes: list[str] = []
    current = host.flow_shift(model)
    if profile.shift is not None and current is None:
        profile = replace(profile, shift=None, audio_shift=None)
    elif profile.shift is not None and not host.has_shift(model, profile.shift, profile.audio_shift):
        model = host.with_flow_shift(model, profile.shift, profile.audio_shift)
        notes.append(f"The model's shift was {current:.4g}; {profile.method} needs {profile.shift:g}: now set.")
    if profile.timesteps is not None:
        profile = profile.resolved(host.sigma_table(model))
    return host.attach_profile(model, profile), profile, notes


def with_own_guidance(model: Any, positive: Any, negative: Any) -> tuple[Any, Any, Notes]:
    """Conditioning with the embedded guidance that the model's settings ask for; one that is there already stays."""
    profile = host.profile_of(model)
    wanted = None if profile is None else profile.embedded_guidance
    if profile is None or wanted is None:
        return positive, negative, ()
    there = {values["guidance"] for _, values in positive if "guidance" in values}
    notes = tuple(
        f"The conditioning has embedded guidance {value:g}; {profile.method} is made for {wanted:g}."
        for value in sorted(there)
        if abs(value - wanted) > 1e-6
    )
    return with_guidance(positive, wanted, override=False), with_guidance(negative, wanted, override=False), notes


def with_guidance(conditioning: Any, value: float, *, override: bool) -> Any:
    """Conditioning with an embedded guidance; one that is there already stays unless ``override``."""
    return [
        [text, values if "guidance" in values and not override else {**values, "guidance": value}]
        for text, values in conditioning
    ]
