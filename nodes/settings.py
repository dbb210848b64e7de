"""PCM Settings: the settings of a few-step method on a model whose LoRA another loader applies."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pcm_core.errors import PCMError, one_line
from ..pcm_core.profiles import PCMProfile, method_choices, profile_for, profile_from_name, profile_of_method
from ..pcm_core.profiles.advice import loading_mistakes
from . import host
from .host import lora as host_lora
from .host.status import show_on_node
from .sampling.plan import log
from .sampling.settings import AUTO, Notes, with_method, with_settings
from .validation import checked

_NODE = "PCM Settings"


class PCMSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMSettings",
            display_name=_NODE,
            category="PCM/loaders",
            description="Attaches the steps, cfg, schedule and shift of a few-step method to the MODEL, without its "
            "weights: for LoRAs that another node applies, and for checkpoints whose name says nothing.",
            search_aliases=["phased consistency", "pcm", "few step", "lightning", "turbo", "settings", "nunchaku",
                            "lora stack", "lora manager", "power lora loader"],
            inputs=[
                io.Model.Input("model", tooltip="The model, with the few-step LoRA applied by any node."),
                io.Combo.Input("method", options=[AUTO, *method_choices()], default=AUTO,
                               tooltip="The few-step method. auto: what file_name says; where that is empty, what the "
                               "name of the checkpoint says."),
                io.String.Input("file_name", default="", optional=True,
                                tooltip="Name of the few-step file, for method auto. Of a LoRA in models/loras the "
                                "file's own settings are read too."),
                io.Boolean.Input("replace", default=False, advanced=True, optional=True,
                                 tooltip="On: these settings also go on a model that carries those of another method, "
                                 "in their place. Off: such a model is refused."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the settings; same weights.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file_name: str | None = None, **_: Any) -> tuple[str, int, int] | None:
        """The state of the file that the settings are read from, where it lies in models/loras."""
        listed = host_lora.listed(file_name or "")
        return host_lora.file_state(listed) if listed else None

    @classmethod
    @checked
    def execute(cls, model: Any, method: str, file_name: str = "", replace: bool = False) -> io.NodeOutput:
        file_name = file_name.strip()
        if method != AUTO and file_name:
            raise PCMError(
                f'method is {method} and file_name is "{file_name[:80]}".', "one of them.",
                "Set method to auto, or clear file_name.",
            )  # fmt: skip
        patched, notes = apply_settings(model, method, file_name, replace=replace)
        log(_NODE, *notes)
        show_on_node("\n".join(notes))
        return io.NodeOutput(patched)


def apply_settings(model: Any, method: str, file_name: str, *, replace: bool) -> tuple[Any, Notes]:
    """A model with the settings of a method or of a file, and what to know about them.

    Raises:
        PCMError: if they are not known, not for this model, or the model carries those of another method.
    """
    if method == AUTO and not file_name:
        return _of_checkpoint(model)
    profile = _of_file(file_name, host.base_model_of(model)) if method == AUTO else profile_of_method(method)
    name = one_line(file_name[:80]) or method
    carried = host.profile_of(model)
    if carried is not None and carried.known and not replace and _differ(carried, profile):
        raise PCMError(
            f"{name} is {_short(profile)}, and the model already carries {_short(carried)}.",
            "the settings of one few-step method per model.",
            "Remove one of the two nodes, or set replace to use these settings instead.",
        )
    patched, changed = with_settings(model, profile, name)
    warnings = loading_mistakes(profile, file_name, "", host_lora.model_facts(model), 1.0)
    return patched, (f"{_short(profile)}, cfg {profile.cfg:g}.", *changed, *_of_other_loaders(profile), *warnings)


def _of_checkpoint(model: Any) -> tuple[Any, Notes]:
    """By the name of the checkpoint; what the model carries stays."""
    patched, notes = with_method(model, AUTO)
    found = host.profile_of(patched)
    if found is None or not found.known:
        raise PCMError(
            f'method is auto, file_name is empty, and the checkpoint "{host.file_name(model)}" is none that is known.',
            "a method, or the name of a few-step file.",
            "Choose a method, or give the name of the LoRA that another node applies.",
        )
    return patched, notes or (f"The model carries {_short(found)} already.",)


def _of_file(name: str, base_model: str) -> PCMProfile:
    """What a LoRA in models/loras says of itself, else what the name says of a LoRA, else of a checkpoint.

    Raises:
        PCMError: if none of them says anything.
    """
    if listed := host_lora.listed(name):
        profile = profile_for(host_lora.lora_path(listed))
        found = profile if profile.known else None
    else:
        found = profile_from_name(name) or profile_from_name(name, "checkpoint", base_model)
        found = found or profile_from_name(name, "checkpoint")  # of another base model, which is refused by name
    if found is None:
        raise PCMError(
            f'"{name[:80]}" is no few-step file that is known.',
            "the name of one, as its authors published it.",
            "Choose a method, or set steps and cfg in the sampler yourself.",
        )
    return found


def _of_other_loaders(profile: PCMProfile) -> list[str]:
    """What another node's strength has to be, and what the method's users have to know."""
    notes: list[str] = []
    if profile.strength != 1:
        notes.append(f"{profile.method} is made for strength {profile.strength:g}: set that where the LoRA is applied.")
    if profile.strength_no_alpha is not None:
        notes.append(f"Files of it without alpha keys want strength {profile.strength_no_alpha:g} in other loaders.")
    return [*notes, profile.note] if profile.note else notes


def _differ(one: PCMProfile, other: PCMProfile) -> bool:
    return (one.method, one.steps) != (other.method, other.steps)


def _short(profile: PCMProfile) -> str:
    return f"{profile.method}, {profile.steps} step{'' if profile.steps == 1 else 's'}"
