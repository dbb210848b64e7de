"""The report on a LoRA file: what was found, and what was done with every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import cast

from ..errors import one_line
from ..profiles import PCMProfile
from .base_models import base_model_name

_SHOWN = 12
_PROFILE_LINES = (
    "phases", "steps", "cfg", "determinism", "gamma", "spacing", "grid", "terminal", "sigmas", "timesteps", "shift",
    "strength", "embedded_guidance", "expert",
)  # fmt: skip
# Tensors of a file that are not updates, see ``keys.Contents``.
_BESIDE = {
    "embedding": "tensors of a bundled embedding; a prompt needs it as a file in models/embeddings",
    "counter": "counters of the training, which change nothing",
    "fp8 scale": "scales of fp8 weights of the model it was trained on, which change nothing here",
}


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """The report on one LoRA; ``text()`` is for the user, ``line()`` for the log.

    Attributes:
        name: file name.
        format: key format, e.g. ``kohya (lora_unet_*.lora_up.weight)``.
        base_model: base model of the LoRA, ``sd15``, ``sdxl``, ...; empty if not recognised.
        ranks: rank to number of modules.
        scales: alpha / rank to number of modules.
        alpha_missing: the file has no alpha anywhere, and none was added.
        offered: number of LoRA tensors in the file, without text encoder keys.
        matched: number of tensors that are applied.
        mismatched: keys whose shape does not fit the model.
        unknown: keys without a weight in the model.
        harmless: image-input keys left out on a model without image input.
        text_encoder: number of tensors for text encoders.
        text_encoder_use: what was done with these; empty if they were left out.
        beside: tensors that belong to no update, by kind, see ``keys.Contents``.
        norms: block group to the size of its update at strength 1, see ``tensors.module_norms``.
        notes: repairs and oddities, one sentence each.
        profile: sampling settings, each with its source.
    """

    name: str = "LoRA"
    format: str = ""
    base_model: str = ""
    ranks: Mapping[int, int] = field(default_factory=dict[int, int])
    scales: Mapping[float, int] = field(default_factory=dict[float, int])
    alpha_missing: bool = False
    offered: int = 0
    matched: int = 0
    mismatched: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    text_encoder: int = 0
    text_encoder_use: str = ""
    beside: Mapping[str, int] = field(default_factory=dict[str, int])
    norms: Mapping[str, float] = field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()
    profile: PCMProfile = field(default_factory=PCMProfile)

    @property
    def missing(self) -> tuple[str, ...]:
        """Keys that should be applied but are not."""
        return self.mismatched + self.unknown

    @property
    def complete(self) -> bool:
        return not self.missing

    def with_settings(self, profile: PCMProfile, notes: Sequence[str], applied: int | None = None) -> LoraReport:
        """This report with the attached settings, further notes, and the number of tensors that were applied."""
        matched = self.matched if applied is None else applied
        return replace(self, profile=profile, notes=(*self.notes, *notes), matched=matched)

    def noted(self, notes: Sequence[str]) -> LoraReport:
        """This report with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def line(self) -> str:
        """One line for the log."""
        return one_line(
            f"{self.name}: {self.profile.method}, {base_model_name(self.base_model)}, {self.format}, "
            f"rank {_counted(self.ranks)}, alpha/rank {_counted(self.scales)}, "
            f"{self.matched} of {self.offered} tensors applied"
        )

    def text(self) -> str:
        """The whole report, one fact per line: first the settings, then the format of the file."""
        lines = [f"file: {self.name}", *(f"note: {note}" for note in self.notes), *profile_lines(self.profile)]
        lines += [
            f"keys: {self.format}",
            f"base: {base_model_name(self.base_model)}",
            f"rank: {_counted(self.ranks)}",
            f"alpha/rank: {_counted(self.scales)}" + (" (the file has no alpha)" if self.alpha_missing else ""),
            f"tensors: {self.matched} of {self.offered} applied, {len(self.mismatched)} of the wrong shape, "
            f"{len(self.unknown)} unknown",
        ]
        if self.text_encoder:
            use = self.text_encoder_use or "left out; connect a CLIP to apply them"
            lines.append(f"text encoder: {self.text_encoder} tensors {use}")
        lines += [f"left out: {count} {_BESIDE[kind]}" for kind, count in self.beside.items()]
        if self.harmless:
            lines.append(f"left out: {len(self.harmless)} tensors for an image input that this model does not have")
        lines += [f"missing blocks: {', '.join(blocks(self.missing))}"] if self.missing else []
        lines += ["update norm: " + ", ".join(f"{group} {norm:.3g}" for group, norm in self.norms.items())]
        return "\n".join(map(one_line, lines))


def profile_lines(profile: PCMProfile) -> list[str]:
    """The profile, one value per line with its source."""
    if not profile.known:
        return ["profile: unknown. Nothing says which few-step method this is: set phases, steps and cfg yourself."]
    known = f"profile: {profile.method}, class {profile.sampling_class}"
    lines = [known + ("" if profile.verified else " (UNVERIFIED: settings not confirmed by its authors)")]
    for name in _PROFILE_LINES:
        value = getattr(profile, name)
        if value is not None:
            lines.append(f"  {name}: {_short(value)} ({profile.sources.get(name, 'default')})")
    return lines + ([f"  {profile.note}"] if profile.note else [])


def blocks(keys: Iterable[str]) -> list[str]:
    """The blocks of some keys (names up to the first number), the first dozen of them."""
    found = list(dict.fromkeys(re.split(r"(?<=\d)(?=[._])", key, maxsplit=1)[0][:60] for key in keys))
    return found[:_SHOWN] + ([f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])


def _counted(values: Mapping[int, int] | Mapping[float, int]) -> str:
    if len(values) <= 1:
        return "".join(f"{value:g}" for value in values) or "none"
    shown = sorted(values.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{value:g} ({count} modules)" for value, count in shown)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(_short(item) for item in cast(tuple[object, ...], value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


assert set(_PROFILE_LINES) <= {f.name for f in fields(PCMProfile)}
