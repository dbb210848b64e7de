"""PCM Settings: the settings of a few-step method without its weights, for LoRAs that something else applied."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..pcm_core.errors import PCMError
from ..pcm_core.lora.report import profile_lines
from ..pcm_core.profiles import PCMProfile, method_choices, profile_from_name, profile_of_method
from . import host, inputs
from .sampling.settings import with_settings
from .validation import checked

BY_NAME = "by file name"


class PCMSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMSettings",
            display_name="PCM Settings",
            category="PCM/loaders",
            description="Attaches the settings of a few-step method to a model and loads nothing: for a LoRA that "
            "another loader, a manager, a hook or a prompt applies, or a model without a telling name.",
            search_aliases=["phased consistency", "pcm", "few step", "method", "lightning", "turbo", "power lora"],
            inputs=[
                inputs.model(),
                io.Combo.Input(
                    "method", options=[BY_NAME, *method_choices()], default=BY_NAME,
                    tooltip="The method whose settings to use, or what file_name says.",
                ),
                io.String.Input(
                    "file_name", default="", optional=True,
                    tooltip="Name of the LoRA or checkpoint that holds the method. Nothing is opened.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the settings."),
                io.String.Output(display_name="report", tooltip="Which settings these are and where they come from."),
            ],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(cls, model: Any, method: str, file_name: str = "") -> io.NodeOutput:
        name = file_name.strip() if method == BY_NAME else method
        profile = _named(model, name) if method == BY_NAME else profile_of_method(method)
        model, notes = with_settings(model, profile, name)
        attached = host.profile_of(model) or profile
        for note in notes:
            logging.info("PCM Settings: %s", note)
        return io.NodeOutput(model, "\n".join([*profile_lines(attached), *notes]))


def _named(model: Any, name: str) -> PCMProfile:
    """The settings a file name carries, as a LoRA's first.

    Raises:
        PCMError: if it carries none.
    """
    base_model = host.family_of(model)
    profile = profile_from_name(name) or profile_from_name(name, "checkpoint", base_model) if name else None
    if profile is None:
        raise PCMError(
            f'The name "{name[:80]}" says nothing that this pack knows.', "the name of a released few-step file.",
            "Choose a method from the list.",
        )  # fmt: skip
    return profile
