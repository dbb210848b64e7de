"""Common mistakes with few-step LoRAs that show in the model, the LoRA or the settings; one sentence each.

The list is what users of these methods report most often (wrong shift, cfg above 1, the other expert, another number of
steps). Nothing here stops a run: the settings may be intended.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..lora.base_models import BASE_MODEL_NAMES
from ..sigma_table import SigmaTable
from .profile import PCMProfile

# Two noise levels whose relative difference is above this are different, not the same level rounded.
TOLERANCE = 0.02
# The host's tables with zero terminal SNR end at sigma 4519, EDM's at 80.
ZERO_SNR = 1000.0
# Stable Diffusion 1, 2 and XL: diffusers' scaled_linear betas.
SCALED_LINEAR = 14.6146
SCALED_LINEAR_MIDDLE = 1.6129  # timestep 499
_FLOW_MAX = 1.01


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The facts about a model that the checks need.

    Attributes:
        base_model: as ``PCMProfile.base_model``.
        file: name of the file it was loaded from, if known.
        dtype: dtype of its weights, ``float8_e4m3fn``, ...
        image_input: whether it takes a start image; ``None`` if not known.
        sigma_max: its sigma of pure noise; 0 if not known.
    """

    base_model: str = ""
    file: str = ""
    dtype: str = ""
    image_input: bool | None = None
    sigma_max: float = 0.0


def loading_mistakes(
    profile: PCMProfile, lora: str, lora_base_model: str, model: ModelFacts, strength: float
) -> list[str]:
    """Mistakes in loading this LoRA on this model.

    Args:
        profile: the LoRA's profile.
        lora: its file name.
        lora_base_model: base model found in its keys.
        model: the model it is loaded on.
        strength: the user's strength.
    """
    found: list[str] = []
    if (
        profile.base_model in BASE_MODEL_NAMES
        and lora_base_model in BASE_MODEL_NAMES
        and profile.base_model != lora_base_model
    ):
        theirs, name = BASE_MODEL_NAMES[lora_base_model], BASE_MODEL_NAMES[profile.base_model]
        found.append(f"The name says {name}, the tensors are for {theirs}: is this file what its name says?")
    side = expert_of(model.file)
    if profile.expert and side and profile.expert != side:
        found.append(f"This LoRA is for the {profile.expert}-noise expert; the model is {model.file}.")
    if profile.method == "LightX2V-Wan2.1" and side == "high" and re.search(r"wan.?2[._]?2", model.file, re.I):
        found.append("A Wan 2.1 LoRA is weak on the high-noise model of Wan 2.2; people use strength 1.5 to 3 there.")
    wants_image = _takes_image(lora)
    if wants_image is not None and model.image_input is not None and wants_image != model.image_input:
        kinds = {True: "image-to-video", False: "text-to-video"}
        found.append(f"This is a LoRA for {kinds[wants_image]} on a model for {kinds[model.image_input]}.")
    if profile.base_model == "qwen-image" and "bf16" in lora.lower() and model.dtype == "float8_e4m3fn":
        found.append("A bf16 LoRA on plain fp8 weights shows a grid; use a scaled fp8 model or the fp8 version.")
    if profile.strength != 1 and math.isclose(strength, profile.strength):
        found.append(
            f"strength {strength:g} comes on top of the {profile.strength:g} that this method is made for; use 1."
        )
    return found + _other_noise(profile, model.sigma_max)


def sampling_mistakes(
    profile: PCMProfile, table: SigmaTable, *, cfg: float | None, determinism: float | None = None
) -> list[str]:
    """Mistakes in the sampling settings.

    Args:
        profile: profile of the LoRA on the model.
        table: the model's table, after its shift.
        cfg: guidance of the first step, if known.
        determinism: the user's value, if set.
    """
    found: list[str] = []
    low, high = profile.cfg_range
    if cfg is not None and cfg > max(high, 1.0) * 1.001:
        found.append(
            f"cfg is {cfg:g}, and {profile.method} is made for {_range(low, high)}: it burns and takes longer."
        )
    elif cfg is not None and cfg < low * 0.999:
        found.append(f"cfg is {cfg:g}, and {profile.method} is made for {_range(low, high)}: prompts count for little.")
    other = _other_table(profile, table)
    unlike = profile.shift and table.shift is not None and abs(table.shift / profile.shift - 1) > TOLERANCE
    if unlike and not other:  # a table without a shift is said once
        found.append(f"The model's shift is {table.shift:.4g}, and {profile.method} is made for {profile.shift:g}.")
    if profile.sampling_class == "renoised" and determinism:
        found.append(f"determinism is {determinism:g}, and {profile.method} is made for 0, new noise in every step.")
    return found + _other_noise(profile, table.top) + other


def _other_table(profile: PCMProfile, table: SigmaTable) -> list[str]:
    """A node of another pack has put sigmas into the model that no model is trained with, and each phase moves."""
    if profile.dynamic_shift or (profile.sigmas and profile.timesteps is None):  # which ask no table
        return []
    if table.flow:
        belongs = table.shift is None or table.is_shifted(TOLERANCE)
    elif _trained_on_scaled_linear(profile) and math.isclose(table.top, SCALED_LINEAR, rel_tol=TOLERANCE):
        belongs = math.isclose(table.sigma_at(0.5), SCALED_LINEAR_MIDDLE, rel_tol=TOLERANCE)
    else:
        belongs = True  # not known, or said by ``_other_noise``
    if belongs:
        return []
    return [
        f"The model's sigmas are not those it was trained with, and {profile.method} counts on them: remove the node "
        "that replaced them (a ModelSampling node of another pack)."
    ]


def _other_noise(profile: PCMProfile, sigma_max: float) -> list[str]:
    """LoRAs of Stable Diffusion start at sigma 14.61, unless their metadata says otherwise.

    Motion modules of AnimateDiff, and LoRAs made with them, were trained with linear betas (25.15), EDM models with
    sigmas up to 80, zero terminal SNR goes higher. The same timestep then is another noise level.
    """
    if not _trained_on_scaled_linear(profile) or sigma_max <= _FLOW_MAX:
        return []
    if sigma_max >= ZERO_SNR:
        return [f"The model has zero terminal SNR (sigma up to {sigma_max:.0f}); {profile.method} was trained without."]
    if abs(sigma_max / SCALED_LINEAR - 1) <= TOLERANCE:
        return []
    return [
        f"The model's noise goes up to sigma {sigma_max:.4g}, and {profile.method} was trained on scaled_linear betas, "
        f'up to {SCALED_LINEAR:.4g}: use the betas of the image model ("use existing" in AnimateDiff-Evolved), or a '
        "LoRA made for these."
    ]


def _trained_on_scaled_linear(profile: PCMProfile) -> bool:
    spoken_for = "metadata" in profile.sources.values() or profile.method.startswith("Animate")
    return profile.base_model in ("sd15", "sd21", "sdxl") and not spoken_for


def schedule_mistakes(
    profile: PCMProfile, sigmas: Sequence[float], table: SigmaTable, own: Sequence[float] | None
) -> list[str]:
    """Mistakes in a schedule from another node: its steps and noise levels against the method's own.

    A part of the method's schedule is not a mistake.

    Args:
        profile: profile of the LoRA on the model.
        sigmas: the schedule that runs.
        table: the model's table.
        own: the method's own sigmas, with the same number of steps if it allows any; ``None`` if it has no such
            schedule.
    """
    steps = len(sigmas) - 1
    if steps < 1 or not math.isclose(sigmas[0], table.top, rel_tol=TOLERANCE) or _is_part(sigmas, own or (), table):
        return []
    if profile.exact_steps not in (None, steps):
        return [f"{steps} steps, and {profile.method} is made for exactly {profile.exact_steps}."]
    if profile.dynamic_shift:  # the size of the image is not known here
        return []
    if profile.method == "Z-Image-Turbo" and steps == 9:
        return ["9 steps: the ninth of Z-Image-Turbo is an idle call at sigma 0; use 8."]
    if own is None:
        return [f"{steps} steps, and {profile.method} is made for about {profile.steps}."]
    worst = max(abs(a - b) / b for a, b in zip(sigmas[:-1], own[:-1], strict=True))
    if worst <= TOLERANCE:
        return []
    return [f"The sigmas are up to {worst:.0%} off those {profile.method} is made for; use its own schedule."]


def _is_part(sigmas: Sequence[float], own: Sequence[float], table: SigmaTable) -> bool:
    """Whether the sigmas are only the first steps of a schedule, with the rest left to another sampler or cut off.

    They end above the lowest level, or they are two or more sigmas of the method's own schedule followed by 0
    (KSamplerAdvanced without leftover noise).
    """
    if sigmas[-1] > table.bottom * (1 + TOLERANCE):
        return True
    first = sigmas[:-1]
    return 1 < len(first) < len(own) - 1 and all(
        math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(first, own, strict=False)
    )


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def expert_of(name: str) -> str:
    """The expert that a file name stands for, ``high`` or ``low``; empty if the name does not say."""
    match = re.search(r"(high|low)[-_ ]?noise|[-_](high|low)[-_.]", name, re.IGNORECASE)
    return (match[1] or match[2]).lower() if match else ""


def _takes_image(name: str) -> bool | None:
    match = re.search(r"(i2v|ti2v|t2v)", name, re.IGNORECASE)
    return None if match is None or match[1].lower() == "ti2v" else match[1].lower() == "i2v"
