"""Few-step video: the video models and their presets, and how two experts share one schedule.

The video models are data, in ``presets.json``; the settings of their presets are in ``methods.json``, with every other
few-step release. The noise of clips is in ``noise``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import PCMError
from ..phases import MAX_COUNT
from ..profiles import PCMProfile, profile_from_name
from ..sigma_table import SigmaTable

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class VideoModel:
    """A video model (Wan, HunyuanVideo, ...); ``presets.json`` explains the attributes."""

    name: str
    bases: Sequence[str]
    frames_axis: int = 2
    stride: int = 1
    first: int = 1
    first_frames: int = 1
    frames: int = 1
    embedded_guidance: bool = False
    whole_images: bool = False
    presets: Mapping[str, str] = field(default_factory=dict[str, str])
    default: str = ""
    uniform: Sequence[str] = ()

    def preset(self, name: str) -> PCMProfile:
        """The settings of one of its presets.

        Raises:
            PCMError: if it has no preset of that name.
        """
        profile = profile_from_name(self.presets[name], None) if name in self.presets else None
        if profile is None:
            raise PCMError(
                f"The preset {name} is not for {self.name}.",
                f"{' or '.join([AUTO, *self.presets])}.",
                "Choose one of these.",
            )
        return replace(profile, sources={})

    def latent_frames(self, frames: int, what: str) -> int:
        """Number of latent frames of a clip of ``frames`` frames.

        Raises:
            PCMError: if the model has no clips of that length.
        """
        more = frames - self.first
        if more < 0 or more % self.stride:
            near = max(round(more / self.stride), 0) * self.stride + self.first
            clips = f"{self.stride}n + {self.first} frames" if self.stride > 1 else "at least 1 frame"
            raise PCMError(f"{what} is {frames}.", f"{self.name} has clips of {clips}.", f"Use {near}.")
        return more // self.stride * self.frames + self.first_frames

    def check_latent(self, shape: Sequence[int]) -> None:
        """Refuse a latent that is not a clip of this model.

        Args:
            shape: shape of the latent, or of the video part of a nested one.

        Raises:
            PCMError: if the frames are in another dimension than the model's.
        """
        if self.frames_axis == 0 and len(shape) != 4:
            raise PCMError(
                f"The latent has shape {tuple(shape)}.",
                f"[frames, channels, height, width]: {self.name} takes its frames in the batch.",
                "Put the frames into the batch.",
            )
        if self.frames_axis == 2 and len(shape) == 4 and shape[0] > 1:
            raise PCMError(
                f"The latent is a batch of {shape[0]} images.",
                f"one clip, [batch, channels, frames, height, width], for {self.name}.",
                "Use an empty latent of that video_model, and set its length.",
            )


@cache
def video_models() -> Mapping[str, VideoModel]:
    """Every video model by name."""
    text = Path(__file__).with_name("presets.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)["video_models"]
    return {row["name"]: VideoModel(**row) for row in rows}


def preset_names() -> tuple[str, ...]:
    """The presets of all video models."""
    return tuple(name for video_model in video_models().values() for name in video_model.presets)


def video_model_of(base: str) -> VideoModel:
    """The video model of a base model, which is named as in ``methods.json`` or by the host's class in lower case.

    Raises:
        PCMError: if it is an image model, or a video model that is not listed.
    """
    for video_model in video_models().values():
        if base in video_model.bases:
            return video_model
    raise PCMError(
        f"The model is an image model, or a video model that is not listed ({base}).",
        f"one of {', '.join(video_models())}.",
        "Sample it as an image model.",
    )


def choose(
    video_model: VideoModel, attached: PCMProfile | None, name: str = AUTO
) -> tuple[PCMProfile, tuple[str, ...]]:
    """The settings to start from: the chosen preset, else the LoRA's own, else the default preset of the video model.

    Returns:
        The settings, and what was overridden or assumed.

    Raises:
        PCMError: if the video model has no such preset.
    """
    lora = attached if attached is not None and attached.known else None
    if name != AUTO:
        other = lora is not None and lora.method != name
        return video_model.preset(name), (f"Used the preset {name}, not what the LoRA says.",) if other else ()
    if lora is not None:
        return lora, ()
    if not video_model.default:
        return PCMProfile(), ()
    default = video_model.default
    note = f"The model carries no few-step settings; assumed {default}. Load a few-step LoRA, or choose a preset."
    return video_model.preset(default), (note,)


def with_sigmas(video_model: VideoModel, profile: PCMProfile, table: SigmaTable, steps: int = 0) -> PCMProfile:
    """The profile with its sigmas spaced on the model's own table, where its releases are spaced evenly.

    Args:
        table: of the model after its shift.
        steps: asked for; 0 for the profile's own.

    Raises:
        PCMError: if ``steps`` is out of range.
    """
    if not 0 <= steps <= MAX_COUNT:
        raise PCMError(f"steps is {steps}.", f"1 to {MAX_COUNT}, or 0 for what the model wants.", "Use 0.")
    if profile.method not in video_model.uniform:
        return profile.resolved(table, steps)
    count = steps or profile.steps
    sigmas = (*(table.sigma_at(1 - i / count) for i in range(count)), 0.0)
    return replace(profile, sigmas=sigmas, steps=count)


def expert_edge(sigmas: Sequence[float], boundary: float, table: SigmaTable) -> tuple[float, str]:
    """The phase edge at which the second expert takes over: the one nearest to ``boundary``.

    Args:
        sigmas: the whole schedule, descending, as for a full denoise.
        boundary: timestep, 0 to 1000, on the scale the experts were trained with: 1000 sigma for flow models.
        table: of the model.

    Returns:
        The sigma from which on the second expert is evaluated, and a sentence that says so.

    Raises:
        PCMError: if the boundary is out of range or the schedule has a single step.
    """
    if not 0 <= boundary <= 1000:  # also refuses NaN
        raise PCMError(f"The boundary is {boundary}.", "a timestep from 0 to 1000.", "Wan 2.2 uses 875.")
    inner = [float(sigma) for sigma in sigmas[1:-1]]
    if not inner:
        raise PCMError("The schedule has a single step.", "at least one for each expert.", "Use 2 steps or more.")
    # Ties go to the noisier edge.
    edge = min(inner, key=lambda sigma: abs(_timestep(sigma, table) - boundary))
    first = sum(float(sigma) > edge for sigma in sigmas)
    return edge, (
        f"The second expert takes over at timestep {_timestep(edge, table):g}, the phase edge nearest to the "
        f"boundary {boundary:g}: {first} of {len(sigmas) - 1} steps on the first."
    )


def _timestep(sigma: float, table: SigmaTable) -> float:
    """On the scale of the boundary, which people type with at most two decimals."""
    return round(table.model_timestep(sigma), 2)
