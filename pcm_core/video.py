"""Few-step video: which family a model is, what its releases want, how two experts share one schedule.

Families and presets are data, in ``video_presets.json``. A LoRA brings its own profile; a preset says what a whole
checkpoint wants, and how to space the steps of a released model to the digit. Noise of clips is in ``video_noise``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from .errors import PCMError
from .phases import MAX_COUNT
from .profiles import PCMProfile, SamplingClass

AUTO = "auto"
Rule = Literal["trailing", "uniform", "linear_quadratic", "sigmas"]


@dataclass(frozen=True, kw_only=True)
class VideoFamily:
    """A family of video models.

    Attributes:
        name: for people.
        classes: the host's model classes; a subclass belongs to its nearest listed ancestor.
        frames_axis: axis of the latent that counts frames: 2, or 0 for frames in the batch.
        stride: pictures per latent frame after the first.
        embedded_guidance: the model takes a guidance scalar beside its text.
        default: preset for a model that carries no profile; empty for none.
    """

    name: str
    classes: tuple[str, ...]
    frames_axis: int = 2
    stride: int = 1
    embedded_guidance: bool = False
    default: str = ""

    def latent_frames(self, frames: int, what: str) -> int:
        """Latent frames of a clip of ``frames`` pictures.

        Raises:
            PCMError: if the family has no clip of that length.
        """
        if frames < 1 or (frames - 1) % self.stride:
            near = max(round((frames - 1) / self.stride), 0) * self.stride + 1
            clips = f"{self.stride}n + 1 pictures" if self.stride > 1 else "at least 1 picture"
            raise PCMError(f"{what} is {frames}.", f"{self.name} has clips of {clips}.", f"Use {near}.")
        return (frames - 1) // self.stride + 1

    def check_latent(self, shape: Sequence[int]) -> None:
        """Refuse a latent that is no clip of this family.

        Args:
            shape: of the latent, or of the video part of a nested one.

        Raises:
            PCMError: if frames are where the family does not look for them.
        """
        if self.frames_axis == 0 and len(shape) != 4:
            raise PCMError(
                f"The latent has shape {tuple(shape)}.",
                f"[frames, channels, height, width]: {self.name} takes its frames in the batch.",
                "Use Empty Latent Image with as many pictures as frames.",
            )
        if self.frames_axis == 2 and len(shape) == 4 and shape[0] > 1:
            raise PCMError(
                f"The latent is a batch of {shape[0]} pictures.",
                f"one clip, [batch, channels, frames, height, width], for {self.name}.",
                f"Use the empty video latent of {self.name}, and set its length.",
            )


@dataclass(frozen=True, kw_only=True)
class VideoPreset:
    """What a released few-step video model wants.

    Attributes:
        rule: how its steps are spaced: ``uniform`` before the shift, ``linear_quadratic`` (Mochi's
            ``linear_quadratic_schedule(steps, threshold, linear_steps)``), fixed ``sigmas``, or the timesteps of
            ``trailing``.
        shift: linear flow shift; ``None`` leaves the model's own.
        source: where the values come from.
        verified: False where a value is an assumption.

    The other attributes mean what they mean in ``PCMProfile``.
    """

    name: str
    family: str
    sampling_class: SamplingClass
    rule: Rule
    source: str
    steps: int = 0
    sigmas: tuple[float, ...] = ()
    threshold: float = 0.0
    linear_steps: int = 0
    shift: float | None = None
    cfg: float = 1.0
    cfg_range: tuple[float, float] = (1.0, 1.0)
    embedded_guidance: float | None = None
    determinism: float = 1.0
    verified: bool = True

    def profile(self) -> PCMProfile:
        """As the profile of a LoRA; ``with_sigmas`` adds the schedule once the model's table is known."""
        return PCMProfile(
            family=self.name,
            sampling_class=self.sampling_class,
            steps=self.steps or len(self.sigmas) - 1,
            cfg=self.cfg,
            cfg_range=self.cfg_range,
            determinism=self.determinism,
            shift=self.shift,
            embedded_guidance=self.embedded_guidance,
            verified=self.verified,
        )

    def schedule(self, table: Tensor, steps: int = 0) -> tuple[float, ...] | None:
        """Sigmas including the final 0, or ``None`` where they are phases (rule ``trailing``).

        Args:
            table: [L] the model's ascending sigma table after its shift.
            steps: for ``uniform``; the other rules have one length.
        """
        if self.rule == "sigmas":
            return self.sigmas
        if self.rule == "linear_quadratic":
            return linear_quadratic(self.steps, self.threshold, self.linear_steps)
        if self.rule == "uniform":
            count = steps or self.steps
            return (*(sigma_at(table, 1 - i / count) for i in range(count)), 0.0)
        return None


@dataclass(frozen=True)
class _Tables:
    families: Mapping[str, VideoFamily]
    presets: Mapping[str, VideoPreset]
    images: frozenset[str]


@cache
def _tables() -> _Tables:
    def rows(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: tuple(cast(list[Any], v)) if isinstance(v, list) else v for k, v in row.items()} for row in values]

    data = json.loads(Path(__file__).with_name("video_presets.json").read_text(encoding="utf-8"))
    families = [VideoFamily(**row) for row in rows(data["families"])]
    presets = [VideoPreset(**row) for row in rows(data["presets"])]
    return _Tables({f.name: f for f in families}, {p.name: p for p in presets}, frozenset(data["images"]))


def families() -> Mapping[str, VideoFamily]:
    """Every family by name."""
    return _tables().families


def presets() -> Mapping[str, VideoPreset]:
    """Every preset by name."""
    return _tables().presets


def family_of(class_names: Sequence[str]) -> VideoFamily:
    """The family of a model.

    Args:
        class_names: its class and the classes above it, nearest first. ``BaseModel``, from which every model of the
            host derives, counts only as the class itself: SD 1.5.

    Raises:
        PCMError: if it is an image model, or a video model that is not listed.
    """
    listed = {name: family for family in families().values() for name in family.classes}
    for depth, name in enumerate(class_names):
        if name in _tables().images or (depth and name == "BaseModel"):
            break
        if name in listed:
            return listed[name]
    raise PCMError(
        f"This is an image model, or a video model without presets ({class_names[0]}).",
        f"one of {', '.join(families())}.",
        "Use PCM Sampler, which serves every model.",
    )


def choose(
    family: VideoFamily, attached: PCMProfile | None, name: str = AUTO
) -> tuple[PCMProfile, VideoPreset | None, tuple[str, ...]]:
    """The settings to start from: the preset asked for, else what the LoRA says, else the family's own preset.

    Returns:
        The profile, the preset that spaces its steps if there is one, and what was assumed.

    Raises:
        PCMError: if the preset is unknown or of another family.
    """
    if name != AUTO:
        preset = presets().get(name)
        if preset is None or preset.family != family.name:
            ours = [p.name for p in presets().values() if p.family == family.name]
            raise PCMError(
                f"The preset {name} is {'unknown' if preset is None else f'for {preset.family}'}.",
                f"one for {family.name}.",
                f"Choose {' or '.join([AUTO, *ours])}.",
            )
        other = attached is not None and attached.known and attached.family != name
        notes = (f"Used the preset {name}, not what the LoRA says ({attached.family}).",) if other and attached else ()
        return preset.profile(), preset, notes
    if attached is not None and attached.known:
        preset = presets().get(attached.family)
        if preset is not None:
            guidance = attached.embedded_guidance
            attached = replace(
                attached,
                shift=preset.shift if attached.shift is None else attached.shift,
                embedded_guidance=preset.embedded_guidance if guidance is None else guidance,
            )
        return attached, preset, ()
    if not family.default:
        return PCMProfile(), None, ()
    note = f"The model carries no few-step settings; assumed {family.default}. Use Load PCM LoRA, or choose a preset."
    return presets()[family.default].profile(), presets()[family.default], (note,)


def with_sigmas(profile: PCMProfile, preset: VideoPreset | None, table: Tensor, steps: int = 0) -> PCMProfile:
    """The profile with its preset's schedule, unless it has one of its own.

    Args:
        table: [L] the model's ascending sigma table after its shift.
        steps: asked for; 0 for the preset's own.

    Raises:
        PCMError: if ``steps`` is out of range.
    """
    if not 0 <= steps <= MAX_COUNT:
        raise PCMError(f"steps is {steps}.", f"1 to {MAX_COUNT}, or 0 for what the model wants.", "Use 0.")
    if preset is None or profile.sigmas is not None or profile.phases is not None:
        return profile
    sigmas = preset.schedule(table, steps)
    return profile if sigmas is None else replace(profile, sigmas=sigmas, steps=len(sigmas) - 1)


def sigma_at(table: Tensor, share: float) -> float:
    """The model's sigma at a share of the way from the picture (0) to pure noise (1), between entries of its table.

    Exact at every entry: ``sigma_at(table, (i + 1) / L)`` is ``table[i]``.
    """
    place = min(max(share, 0.0), 1.0) * len(table) - 1
    low = max(math.floor(place + 1e-6), 0)
    high = min(low + 1, len(table) - 1)
    share_high = max(place - low, 0.0)
    low_sigma = float(table[low])
    return low_sigma if share_high < 1e-6 else low_sigma + share_high * (float(table[high]) - low_sigma)


def linear_quadratic(steps: int, threshold: float, linear_steps: int) -> tuple[float, ...]:
    """Sigmas 1 to 0 that fall by ``threshold`` over ``linear_steps`` equal steps, then ever faster.

    A parabola continues the line with the same slope and ends at 0: the schedule of Mochi's ``infer.py``.
    """
    slope = threshold / linear_steps
    rest = steps - linear_steps
    bend = (1 - threshold - slope * rest) / rest**2
    line = [1 - slope * i for i in range(linear_steps)]
    curve = [1 - threshold - slope * i - bend * i * i for i in range(rest)]
    return (*line, *curve, 0.0)


def expert_edge(sigmas: Sequence[float], boundary: float, table: Tensor) -> tuple[float, str]:
    """The phase edge at which the second expert takes over: the one nearest to ``boundary``.

    Args:
        sigmas: the whole schedule, descending, as for a full denoise.
        boundary: timestep, 0 to 1000, on the scale the experts were trained with: 1000 sigma for flow models.
        table: [L] the model's ascending sigma table.

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
    edge = min(inner, key=lambda sigma: abs(timestep_of(sigma, table) - boundary))
    first = sum(float(sigma) > edge for sigma in sigmas)
    return edge, (
        f"The second expert takes over at timestep {timestep_of(edge, table):g}, the phase edge nearest to the "
        f"boundary {boundary:g}: {first} of {len(sigmas) - 1} steps on the first."
    )


def timestep_of(sigma: float, table: Tensor) -> float:
    """Timestep on the scale 0 to 1000: 1000 sigma for flow tables, which end at 1, else the nearest index."""
    if float(table[-1]) <= 1:
        return round(1000 * sigma, 2)
    return int((table - sigma).abs().argmin()) * 1000 // len(table)


def beta_warning(profile: PCMProfile, table: Tensor) -> str | None:
    """What to tell about an SD LoRA on a motion model with another noise schedule; ``None`` if there is nothing.

    SD 1.5, SDXL and the LoRAs for them use diffusers' scaled_linear betas (sigma_max 14.61); AnimateDiff's motion
    modules, and the LoRAs made with them, were trained on linear ones (25.15). The same timestep is another noise level
    there.
    """
    linear = math.isclose(float(table[-1]), 25.146115, rel_tol=1e-3)
    if not linear or not profile.known or profile.family.startswith("Animate"):
        return None
    return (
        "The motion model has linear betas (sigma_max 25.15), the LoRA was trained on scaled_linear ones (14.61), so "
        "its phases end at other noise levels than it learned. Set the motion model's beta_schedule to linear "
        "(ComfyUI's name for scaled_linear), or use a LoRA made for AnimateDiff."
    )
