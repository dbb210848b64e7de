"""Load PCM LoRA: apply a LoRA completely and attach its settings, or refuse with one sentence."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..pcm_core.errors import PCMError
from ..pcm_core.lora import LoraReport, Update
from ..pcm_core.profiles import PCMProfile
from ..pcm_core.profiles.advice import loading_mistakes
from . import host
from .host import lora as host_lora
from .host.text_encoder import patch_clip
from .loading.fit import LoraOnDisk
from .loading.stack import apply_stack, entries
from .sampling.settings import configure
from .validation import checked

FROM_LORA, KEEP = "from the LoRA", "keep the model's"
_UNTOUCHED = "strength is 0: the model is as it came, settings and all."


class PCMLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMLoraLoader",
            display_name="Load PCM LoRA",
            category="PCM/loaders",
            description="Applies a PCM or other few-step LoRA in any key format and attaches its steps, cfg, schedule "
            "and noise to the MODEL for the PCM nodes. Reports what it found, and refuses a LoRA that does not fit.",
            search_aliases=["phased consistency", "pcm", "lora", "load lora", "lcm", "tcd", "hyper", "lightning",
                            "few step", "4 step"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model the LoRA is for."),
                io.Combo.Input("lora_name", options=host_lora.lora_names(),
                               tooltip="A .safetensors file in models/loras."),
                io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01,
                               tooltip="1 is the authors' own strength, also for files that others load at 0.125."),
                io.Boolean.Input("allow_partial", default=False, advanced=True,
                                 tooltip="Apply the tensors that fit, instead of refusing a file where some do not."),
                io.Combo.Input("settings", options=[FROM_LORA, KEEP], default=FROM_LORA, advanced=True,
                               optional=True,  # prompts of 0.1.0 do not name it
                               tooltip="Keep the model's steps, cfg, schedule and shift, for a second few-step LoRA "
                               "that its authors recommend to combine."),
                io.Clip.Input("clip", optional=True,
                              tooltip="Text encoders, for files that change these too. Few-step LoRAs rarely do."),
                io.Custom("LORA_STACK").Input("lora_stack", optional=True,
                                              tooltip="Other LoRAs, from a LoRA stacker of another pack. They are "
                                              "applied before this one; none of them may be a few-step LoRA."),
                io.Float.Input("strength_clip", default=1.0, min=-100.0, max=100.0, step=0.01, advanced=True,
                               optional=True, tooltip="Strength of this file on the text encoders."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA and its settings."),
                io.String.Output(display_name="report", tooltip="What was found in the file, and how it was applied."),
                io.Clip.Output(display_name="clip", tooltip="The text encoders with the LoRAs; empty if none are "
                                                            "connected."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> tuple[str, int, int]:
        return host_lora.file_state(lora_name)

    @classmethod
    @checked
    def execute(
        cls, model: Any, lora_name: str, strength: float, allow_partial: bool = False, settings: str = FROM_LORA,
        clip: Any = None, lora_stack: Any = None, strength_clip: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        keep, path = settings == KEEP, host_lora.lora_path(lora_name)
        others = entries(lora_stack)
        file = _checked_file(model, path, strength, keep_settings=keep)
        model, clip, loaded, notes = apply_stack(model, clip, others, allow_partial=allow_partial)
        model = host.with_loras(model, loaded) if loaded else model
        patched, report = _on_model(model, file, strength, allow_partial=allow_partial, keep_settings=keep)
        clip, report = _on_clip(clip, file, strength_clip, report)
        return io.NodeOutput(patched, report.noted(notes).text(), clip)


def load_lora(
    model: Any, path: Path, strength: float, *, allow_partial: bool = False, keep_settings: bool = False
) -> tuple[Any, LoraReport]:
    """Apply a file: returns the model with the LoRA and its settings, and the report.

    Args:
        model: a ModelPatcher.
        path: the file.
        strength: the user's strength; at 0 the model is returned unchanged.
        allow_partial: apply the tensors that fit if others do not.
        keep_settings: keep the model's steps, cfg, schedule and shift.

    Raises:
        PCMError: if the strength is not a number, or the file or a part of it does not fit the model.
    """
    file = _checked_file(model, path, strength, keep_settings=keep_settings)
    return _on_model(model, file, strength, allow_partial=allow_partial, keep_settings=keep_settings)


def _checked_file(model: Any, path: Path, strength: float, *, keep_settings: bool) -> LoraOnDisk:
    """The file, refused where its method or its settings cannot go on the model."""
    if not math.isfinite(strength):
        raise PCMError(f"strength is {strength}.", "a finite number.", "Use 1.")
    file = LoraOnDisk.read(path)
    if strength:
        _refuse(model, path.name, file.profile, keep_settings=keep_settings)
    return file


def _on_model(
    model: Any, file: LoraOnDisk, strength: float, *, allow_partial: bool, keep_settings: bool
) -> tuple[Any, LoraReport]:
    updates, report = file.fit(model, allow_partial=allow_partial)
    if not strength:
        return model, report.with_settings(host.profile_of(model) or PCMProfile(), [_UNTOUCHED], applied=0)
    model, report = _applied(model, updates, report, strength, keep_settings=keep_settings)
    return host.with_loras(model, [host.LoadedLora.of(file.path, strength)]), report


def _on_clip(clip: Any, file: LoraOnDisk, strength: float, report: LoraReport) -> tuple[Any, LoraReport]:
    """The CLIP with the file's updates for text encoders, and what the report says of them."""
    if clip is None or not report.text_encoder:
        return clip, report
    if not strength:
        return clip, replace(report, text_encoder_use="left out; strength_clip is 0")
    patched, count = patch_clip(clip, file.tensors, strength)
    if not count:
        return clip, replace(report, text_encoder_use="left out; none of them fits this CLIP")
    use = f"change {count} weights of the CLIP, at strength {strength:g}"
    return patched, replace(report, text_encoder_use=use)


def _applied(
    model: Any, updates: list[Update], report: LoraReport, strength: float, *, keep_settings: bool
) -> tuple[Any, LoraReport]:
    """The model with the updates and, unless they are kept out, the LoRA's settings."""
    profile, present = report.profile, host.profile_of(model)
    factor, notes = _strength(profile, report, strength)
    warnings: list[str] = []
    if host_lora.carries(model, updates):
        warnings.append("The model already carries this very LoRA: it is now applied twice. Remove one loader.")
    patched = host_lora.patch_lora(model, updates, strength * factor)
    if profile.known and not keep_settings:
        patched, profile, more = configure(patched, profile)
        notes += more
        facts = host_lora.model_facts(model)
        warnings += loading_mistakes(profile, report.name, report.base_model, facts, strength)
    else:
        notes += _kept(profile, present)
        profile = present or PCMProfile()
    for warning in warnings:
        logging.warning("Load PCM LoRA: %s", warning)
    report = report.with_settings(profile, [*notes, *warnings])
    logging.info("Load PCM LoRA: %s", report.line())
    return patched, report


def _refuse(model: Any, name: str, profile: PCMProfile, *, keep_settings: bool) -> None:
    """Refuse a method that has no list of sigmas, and a second few-step LoRA on one model."""
    if profile.sampling_class == "unsupported":
        raise PCMError(f"{name} is {profile.method}.", "a method that a list of sigmas can sample.", profile.note)
    present = host.profile_of(model)
    if present is None or not present.known or not profile.known:
        return
    if not keep_settings:
        raise PCMError(
            f"{name} is a {profile.method} LoRA, and the model already carries one of {present.method}.",
            "one few-step LoRA per model: each bends the model towards its own schedule, two of them fit neither.",
            f'Remove one of the two loaders, or set settings to "{KEEP}" here to mix them on purpose.',
        )


def _kept(profile: PCMProfile, present: PCMProfile | None) -> list[str]:
    """A note on whose settings are used if this LoRA sets none."""
    what = f"The settings of {profile.method} are not used" if profile.known else "No few-step LoRA known to this pack"
    if present is not None:
        return [f"{what}; the settings of {present.method} stay in force."]
    return [f"{what}, and the model has none: set steps and cfg yourself."] if profile.known else []


def _strength(profile: PCMProfile, report: LoraReport, strength: float) -> tuple[float, list[str]]:
    """The factor on the user's strength for this file, and notes."""
    factor = profile.strength
    if report.alpha_missing and profile.strength_no_alpha is not None:
        factor = profile.strength_no_alpha
    if factor == 1:
        return 1.0, []
    return factor, [f"strength {strength:g} x {factor:g}, the strength {profile.method} is made for."]
