"""What a few-step LoRA wants: phases, steps, guidance, spacing, shift, strength, and where each value comes from.

Nobody but our own distiller writes these settings into a file, so a profile is assembled from the best source there
is: the file's metadata, then its SHA-256, then its name. ``unknown`` is an answer too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from .errors import PCMError
from .phases import PhaseSchedule, Spacing, Terminal, build_schedule

Source = Literal["metadata", "sha256", "file name", "default", "user"]
# P: trained as jumps between fixed edges. D: fixed list, deterministic. R: renoised every step (LCM).
# A: partly renoised. 1: a single call. X: cannot be served by a sigma list.
SamplingClass = Literal["P", "D", "R", "A", "1", "X"]


@dataclass(frozen=True, kw_only=True)
class PCMProfile:
    """Settings of one few-step file.

    Attributes:
        family: name for people, ``PCM``, ``LCM-LoRA``, ... or ``unknown``.
        base: base model, ``sd15``, ``sdxl``, ``sd3``, ...; empty if not known.
        sampling_class: how it must be sampled, see ``SamplingClass``.
        phases: trained phases M; ``None`` where the family has none (any step count runs).
        steps: default number of evaluations.
        cfg: default guidance, ComfyUI's convention (1 skips the negative prompt); ``cfg_range`` what is sensible.
        determinism: r of Eq. 44; ``gamma`` (TCD) overrides it where set.
        sigmas: explicit schedule including the final 0, instead of spacing and grid.
        shift: linear timestep shift of flow models; ``None`` leaves the model's own.
        strength: LoRA strength.
        embedded_guidance: the guidance scalar of guidance-distilled models (FluxGuidance), not CFG.
        expert: which of two experts the file is for.
        verified: False where the table says UNVERIFIED.
        sources: value name to ``Source``.
    """

    family: str = "unknown"
    base: str = ""
    sampling_class: SamplingClass = "P"
    phases: int | None = None
    steps: int = 4
    cfg: float = 1.0
    cfg_range: tuple[float, float] = (1.0, 1.0)
    determinism: float = 1.0
    gamma: float | None = None
    spacing: Spacing = "trailing"
    grid: int = 50
    terminal: Terminal = "zero"
    sigmas: tuple[float, ...] | None = None
    shift: float | None = None
    strength: float = 1.0
    embedded_guidance: float | None = None
    expert: Literal["high", "low"] | None = None
    prediction: str = ""
    note: str = ""
    verified: bool = True
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return self.family != "unknown"

    def schedule(
        self,
        steps: int | None = None,
        *,
        phases: int | None = None,
        spacing: Spacing | None = None,
        terminal: Terminal | None = None,
        denoise: float = 1.0,
        spend_extra_steps: bool = False,
    ) -> PhaseSchedule:
        """``build_schedule`` with this profile's values where the caller gives none."""
        phases = phases or self.phases or steps or self.steps
        return build_schedule(
            phases,
            steps or (self.steps if self.phases is None else phases),
            spacing=spacing or self.spacing,
            grid=self.grid,
            terminal=terminal or self.terminal,
            denoise=denoise,
            spend_extra_steps=spend_extra_steps,
        )


_PCM_NAME = re.compile(r"pcm_(?P<base>sd15|sdxl)_(?P<cfg>smallcfg|normalcfg)_(?P<n>\d+)step")
_METADATA_TYPES: dict[str, Any] = {
    "phases": int, "steps": int, "cfg": float, "determinism": float, "gamma": float, "spacing": str, "grid": int,
    "terminal": str, "shift": float, "strength": float, "embedded_guidance": float, "prediction": str,
}  # fmt: skip


def profile_from_name(name: str) -> PCMProfile | None:
    """Read the settings a file name carries; ``None`` if the name says nothing."""
    match = _PCM_NAME.search(name.lower())
    if match is None:
        return None
    steps = int(match["n"])
    normal = match["cfg"] == "normalcfg"
    values: dict[str, Any] = {
        "family": "PCM", "base": match["base"], "phases": steps, "steps": steps,
        "cfg": {4: 3.0, 8: 4.0}.get(steps, 5.0) if normal else 1.0,
        "cfg_range": ({4: (2.5, 3.5), 8: (3.0, 6.0)}.get(steps, (2.0, 7.5)) if normal else (1.0, 2.0)),
    }  # fmt: skip
    return PCMProfile(**values, sources=dict.fromkeys(values, "file name"))


def profile_from_metadata(metadata: Mapping[str, str]) -> PCMProfile | None:
    """Read the ``pcm_*`` entries our distiller writes into a safetensors header; ``None`` if there are none.

    Raises:
        PCMError: if an entry is not a number where one is needed, or the phases are missing.
    """
    entries = {key.removeprefix("pcm_"): value for key, value in metadata.items() if key.startswith("pcm_")}
    if not entries:
        return None
    values: dict[str, Any] = {"family": "PCM", "base": entries.get("base_model", "")}
    for name, kind in _METADATA_TYPES.items():
        if name in entries:
            values[name] = _convert(name, entries[name], kind)
    if "phases" not in values:
        raise PCMError("The metadata has pcm_ entries but no pcm_phases.", "the number of phases.", "Save it again.")
    values.setdefault("steps", values["phases"])
    profile = PCMProfile(**values, sources=dict.fromkeys(values, "metadata"))
    if profile.determinism < 1:
        profile = replace(profile, phases=None, sampling_class="R", family="LCM-like")
    return profile


def profile_for(path: str | Path) -> PCMProfile:
    """The profile of a LoRA file: metadata first, then the name, else ``unknown``.

    Raises:
        PCMError: if the file is not a readable safetensors file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise PCMError(f"{path.name} cannot be read ({error}).", "a safetensors file.", "Download it again.") from error
    return profile_from_metadata(metadata) or profile_from_name(path.stem) or PCMProfile()


def profile_to_metadata(profile: PCMProfile) -> dict[str, str]:
    """The ``pcm_*`` metadata from which ``profile_from_metadata`` restores the profile."""
    names = [f.name for f in fields(profile) if f.name in _METADATA_TYPES]
    entries = {f"pcm_{name}": str(getattr(profile, name)) for name in names if getattr(profile, name) is not None}
    return entries | {"pcm_base_model": profile.base}


def _convert(name: str, text: str, kind: Any) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise PCMError(f'The metadata says pcm_{name} = "{text}".', "a number.", "Save the file again.") from error
