"""Load PCM LoRA: applied completely, and everything downstream configured, or one sentence that says why not."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..pcm_core import lora
from ..pcm_core.errors import PCMError
from ..pcm_core.lora import LoraReport
from ..pcm_core.profiles import PCMProfile, profile_for
from ..pcm_core.profiles.advice import loading_mistakes
from . import host
from .host import lora as host_lora
from .sampling.settings import configure
from .validation import checked


class PCMLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMLoraLoader",
            display_name="Load PCM LoRA",
            category="PCM/loaders",
            description="Applies a PCM or other few-step LoRA in any key format and hands its steps, cfg, schedule and "
            "noise to the PCM nodes with the MODEL. Says what it found, and refuses a LoRA that does not fit.",
            search_aliases=["phased consistency", "pcm", "lora", "load lora", "lcm", "tcd", "hyper", "lightning",
                            "few step", "4 step"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model the LoRA is for."),
                io.Combo.Input("lora_name", options=host_lora.lora_names(),
                               tooltip="A .safetensors file in models/loras."),
                io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01,
                               tooltip="1 is what its authors intend, also for files that others load at 0.125."),
                io.Boolean.Input("allow_partial", default=False, advanced=True,
                                 tooltip="Apply what fits where some tensors do not, instead of refusing the file."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA and its settings."),
                io.String.Output(display_name="report", tooltip="What was found in the file and what became of it."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> tuple[str, int, int]:
        return host_lora.file_state(lora_name)

    @classmethod
    @checked
    def execute(cls, model: Any, lora_name: str, strength: float, allow_partial: bool = False) -> io.NodeOutput:
        patched, report = load_lora(model, host_lora.lora_path(lora_name), strength, allow_partial=allow_partial)
        return io.NodeOutput(patched, report.text())


def load_lora(model: Any, path: Path, strength: float, *, allow_partial: bool = False) -> tuple[Any, LoraReport]:
    """What the node does with a file: the model with the LoRA and its settings, and what was found.

    Raises:
        PCMError: if the strength is no number, or the file or a part of it does not fit the model.
    """
    if not math.isfinite(strength):
        raise PCMError(f"strength is {strength}.", "a finite number.", "Use 1.")
    tensors, metadata = lora.read_lora(path)
    profile = profile_for(path, metadata)
    _refuse(model, path.name, profile)
    targets, shapes = host_lora.lora_targets(model)
    tensors, report = lora.normalize(
        tensors, targets, shapes, metadata=metadata, name=path.name, model_family=host.family_of(model),
        profile=profile, allow_partial=allow_partial,
    )  # fmt: skip
    factor, notes = _strength(profile, report, strength)
    patched = host_lora.patch_lora(model, tensors, shapes, strength * factor)
    if profile.known:
        patched, profile, more = configure(patched, profile)
        notes += more
        for mistake in loading_mistakes(profile, path.name, report.family, host_lora.model_facts(model), strength):
            logging.warning("Load PCM LoRA: %s", mistake)
            notes.append(mistake)
    elif (kept := host.profile_of(model)) is not None:
        profile = kept
        notes.append(f"No few-step LoRA known to this pack; the settings of {kept.method} stay in force.")
    report = lora.with_profile(report, profile, notes)
    logging.info("Load PCM LoRA: %s", report.line())
    return patched, report


def _refuse(model: Any, name: str, profile: PCMProfile) -> None:
    """A method no sigma list can serve, or a second few-step LoRA on one model."""
    if profile.sampling_class == "unsupported":
        raise PCMError(f"{name} is {profile.method}.", "a method that a list of sigmas can sample.", profile.note)
    present = host.profile_of(model)
    if present is not None and present.known and profile.known:
        raise PCMError(
            f"{name} is a {profile.method} LoRA, and the model already carries one of {present.method}.",
            "one few-step LoRA per model: each bends the model towards its own schedule, two of them fit neither.",
            "Remove one of the two loaders.",
        )


def _strength(profile: PCMProfile, report: LoraReport, strength: float) -> tuple[float, list[str]]:
    """What the user's 1.0 means for this file."""
    factor = profile.strength
    if report.alpha_missing and profile.strength_no_alpha is not None:
        factor = profile.strength_no_alpha
    if factor == 1:
        return 1.0, []
    return factor, [f"strength {strength:g} x {factor:g}, the strength {profile.method} is made for."]
