"""What a few-step LoRA wants: phases, steps, guidance, spacing, shift, strength, and where each value comes from.

Nobody but our own distiller writes these settings into a file, so a profile comes from the best source there is: the
file's metadata, its name (``families.json``), and for a released file under another name its SHA-256. ``unknown`` is an
answer too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from . import families
from .errors import PCMError
from .phases import MAX_COUNT, PhaseSchedule, Spacing, Terminal, build_schedule, sigma_at
from .safetensors_header import read_header

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
        ancestral: determinism is that of an ancestral step with eta 1, see ``sampling.ancestral_to_determinism``.
        sigmas: explicit schedule including the final 0, instead of spacing and grid.
        timesteps: the same as timesteps of the model's table; ``resolved`` turns them into ``sigmas``.
        shift: linear timestep shift of flow models; ``None`` leaves the model's own.
        strength: LoRA strength that a user's 1.0 means; ``strength_no_alpha`` the same for files without alpha keys.
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
    ancestral: bool = False
    spacing: Spacing = "trailing"
    grid: int = 50
    terminal: Terminal = "zero"
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    shift: float | None = None
    strength: float = 1.0
    strength_no_alpha: float | None = None
    embedded_guidance: float | None = None
    expert: Literal["high", "low"] | None = None
    prediction: str = ""
    note: str = ""
    verified: bool = True
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def known(self) -> bool:
        """Whether anything said which family this is."""
        return self.family != "unknown"

    def resolved(self, table: Sequence[float], steps: int = 0) -> PCMProfile:
        """With the ``sigmas`` that a model's ascending sigma table gives; unchanged where a schedule says them exactly.

        That is: with ``timesteps`` looked up, or, for a family of class D without a list, with equal parts that whole
        timesteps can only round (1000 / 12) looked up between them.

        Args:
            table: sigmas of the model, that of pure noise last.
            steps: asked for, which a family of equal parts follows; 0 for the profile's own.
        """
        if self.timesteps is not None:
            scale = len(table) // 1000
            return replace(self, sigmas=(*(float(table[(t + 1) * scale - 1]) for t in self.timesteps), 0.0))
        count = steps or self.steps
        if self.sampling_class != "D" or self.sigmas is not None or not 1 <= count <= MAX_COUNT or 1000 % count == 0:
            return self
        return replace(self, sigmas=(*(sigma_at(table, k / count) for k in range(count, 0, -1)), 0.0), steps=count)

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


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


# Values stored as pcm_<name>, and how to read them.
_METADATA: dict[str, Any] = {
    "family": str, "sampling_class": str, "phases": int, "steps": int, "cfg": float, "cfg_range": _numbers,
    "determinism": float, "gamma": float, "ancestral": _flag, "spacing": str, "grid": int, "terminal": str,
    "sigmas": _numbers, "timesteps": _integers, "shift": float, "strength": float, "strength_no_alpha": float,
    "embedded_guidance": float, "expert": str, "prediction": str, "note": str,
}  # fmt: skip
_WORDS = {
    "sampling_class": ("P", "D", "R", "A", "1", "X"), "spacing": ("trailing", "aligned", "tcd"),
    "terminal": ("zero", "alpha0"), "expert": ("high", "low"),
}  # fmt: skip
_LONGEST_TEXT = 1000
_LIMITS = {
    "phases": (1, MAX_COUNT), "steps": (1, MAX_COUNT), "grid": (1, 1000), "cfg": (0, 100), "determinism": (0, 1),
    "gamma": (0, 1), "shift": (1e-3, 1000), "strength": (-100, 100), "strength_no_alpha": (-100, 100),
    "timesteps": (0, 999), "embedded_guidance": (0, 100),
}  # fmt: skip


def profile_from_name(name: str | Path) -> PCMProfile | None:
    """Read the settings a file name carries, with its folder where that says something; ``None`` if nothing does."""
    values = families.values_by_name(families.search_text(name))
    return None if values is None else PCMProfile(**values, sources=dict.fromkeys(values, "file name"))


def profile_from_checksum(path: str | Path) -> PCMProfile | None:
    """The settings of a released PCM file under any name; ``None`` for every other file.

    Raises:
        OSError: if the file cannot be read.
    """
    name = families.name_by_checksum(path)
    profile = None if name is None else profile_from_name(name)
    return profile and replace(profile, sources=dict.fromkeys(profile.sources, "sha256"))


def profile_from_metadata(metadata: Mapping[str, str]) -> PCMProfile | None:
    """Read the ``pcm_*`` entries our distiller writes into a safetensors header; ``None`` if there are none.

    Raises:
        PCMError: if an entry is not what it should be, or nothing says how many steps to take.
    """
    entries = {key.removeprefix("pcm_"): value for key, value in metadata.items() if key.startswith("pcm_")}
    if not entries:
        return None
    values: dict[str, Any] = {"family": "PCM", "base": entries.get("base_model", "")}
    values |= {name: _read(name, entries[name]) for name in _METADATA if name in entries}
    if not {"phases", "steps", "sigmas", "timesteps"} & set(values):
        raise PCMError("The metadata has pcm_ entries but no pcm_phases.", "the number of phases.", "Save it again.")
    if "sigmas" in values:
        values["steps"] = len(values["sigmas"]) - 1
    listed = values["steps"] if "sigmas" in values else len(values.get("timesteps", ()))
    told = _read("phases", entries["phases"]) if "phases" in entries else listed
    if listed and listed != told:
        raise PCMError(f"The metadata says {told} phases and lists {listed} steps.", "as many.", "Save it again.")
    values.setdefault("steps", values.get("phases") or len(values.get("timesteps", ())))
    profile = PCMProfile(**values, sources=dict.fromkeys(values, "metadata"))
    if "sampling_class" not in values and profile.determinism < 1:
        return replace(profile, phases=None, sampling_class="R", family="LCM-like")
    return profile


def profile_for(path: str | Path, metadata: Mapping[str, str] | None = None) -> PCMProfile:
    """The profile of a LoRA file: metadata first, then the name, then the checksum, else ``unknown``.

    Args:
        path: the file.
        metadata: of the file, if it was read already.

    Raises:
        PCMError: if the file is not a sound safetensors file, or its pcm_ metadata contradicts itself.
    """
    if metadata is None:
        metadata = read_header(path).metadata
    return profile_from_metadata(metadata) or profile_from_name(path) or profile_from_checksum(path) or PCMProfile()


def profile_to_metadata(profile: PCMProfile) -> dict[str, str]:
    """The ``pcm_*`` metadata from which ``profile_from_metadata`` restores the profile."""
    values = {f.name: getattr(profile, f.name) for f in fields(profile) if f.name in _METADATA}
    entries = {f"pcm_{name}": _write(value) for name, value in values.items() if value not in (None, "")}
    return entries | {"pcm_base_model": profile.base}


def _write(value: Any) -> str:
    return ",".join(str(item) for item in cast(tuple[object, ...], value)) if isinstance(value, tuple) else str(value)


def _read(name: str, text: str) -> Any:
    try:
        value: Any = _METADATA[name](text)
        sound = _is_sound(name, value)
    except (ValueError, KeyError, OverflowError):
        sound, value = False, None
    if not sound:
        expected = "numbers in range, or one line of text."
        expected = f"one of {', '.join(_WORDS[name])}." if name in _WORDS else expected
        raise PCMError(f'The metadata says pcm_{name} = "{text[:80]}".', expected, "Save the file again.")
    return value


def _is_sound(name: str, value: Any) -> bool:
    if name in _WORDS:
        return value in _WORDS[name]
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT and value.isprintable()
    numbers = cast(tuple[float, ...], value if isinstance(value, tuple) else (value,))
    low, high = _LIMITS.get(name, (-math.inf, math.inf))
    if not all(math.isfinite(number) and low <= number <= high for number in numbers):
        return False
    if name == "sigmas":
        return 1 < len(numbers) <= MAX_COUNT + 1 and all(high > low >= 0 for high, low in pairwise(numbers))
    if name == "timesteps":
        return len(numbers) <= MAX_COUNT and all(high > low for high, low in pairwise(numbers))
    return name != "cfg_range" or len(numbers) == 2
