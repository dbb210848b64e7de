"""The settings of a few-step method put on a model, whoever says which method it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...pcm_core.profiles import PCMProfile
from .. import host


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
