"""A profile as ``pcm_*`` entries of a safetensors header, written by the trainer and read by the loader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, cast, get_args

from ..errors import PCMError
from ..phases import MAX_COUNT
from .profile import PCMProfile, SamplingClass
from .table import table


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


# Values stored as pcm_<name>, and how to read them.
_METADATA: dict[str, Any] = {
    "method": str, "sampling_class": str, "phases": int, "steps": int, "cfg": float, "cfg_range": _numbers,
    "determinism": float, "gamma": float, "ancestral": _flag, "spacing": str, "grid": int, "terminal": str,
    "sigmas": _numbers, "timesteps": _integers, "scheduler": str, "shift": float, "audio_shift": float,
    "dynamic_shift": str, "levels": _numbers, "strength": float, "strength_no_alpha": float,
    "embedded_guidance": float, "network": str, "expert": str, "note": str,
}  # fmt: skip
_WORDS = {
    "sampling_class": get_args(SamplingClass), "spacing": ("trailing", "aligned", "tcd"),
    "terminal": ("zero", "alpha0"), "expert": ("high", "low"), "scheduler": ("", "normal"),
    "dynamic_shift": ("", *table()["shift_rules"]),
    "network": ("", "rectified_flow", "timestep_250", "timestep_500"),
}  # fmt: skip
# pcm_sampling_class in files written by 0.1.0.
_LETTERS = {
    "P": "phased", "D": "fixed", "R": "renoised", "A": "ancestral", "1": "single", "X": "unsupported"
}  # fmt: skip
_LONGEST_TEXT = 1000
_LIMITS = {
    "phases": (1, MAX_COUNT), "steps": (1, MAX_COUNT), "grid": (1, 1000), "cfg": (0, 100), "determinism": (0, 1),
    "gamma": (0, 1), "shift": (1e-3, 1000), "audio_shift": (1e-3, 1000), "strength": (-100, 100),
    "strength_no_alpha": (-100, 100), "timesteps": (0, 999), "levels": (0, 1), "embedded_guidance": (0, 100),
}  # fmt: skip


def profile_from_metadata(metadata: Mapping[str, str]) -> PCMProfile | None:
    """Read the ``pcm_*`` entries of a safetensors header; ``None`` if there are none.

    Raises:
        PCMError: if an entry is invalid, or the number of steps is missing.
    """
    entries = _today({key.removeprefix("pcm_"): value for key, value in metadata.items() if key.startswith("pcm_")})
    if not entries:
        return None
    values: dict[str, Any] = {"method": "PCM", "base_model": entries.get("base_model", "")}
    values |= {name: _read(name, entries[name]) for name in _METADATA if name in entries}
    if not {"phases", "steps", "sigmas", "timesteps", "levels"} & set(values):
        raise PCMError("The metadata has pcm_ entries but no pcm_phases.", "the number of phases.", "Save it again.")
    listed = len(values.get("timesteps", ()))
    for name in {"sigmas", "levels"} & set(values):
        values["steps"] = listed = len(values[name]) - 1
    told = _read("phases", entries["phases"]) if "phases" in entries else listed
    if listed and listed != told:
        raise PCMError(
            f"The metadata says {told} phases and lists {listed} steps.",
            "as many phases as listed steps.",
            "Save it again.",
        )
    values.setdefault("steps", values.get("phases") or len(values.get("timesteps", ())))
    profile = PCMProfile(**values, sources=dict.fromkeys(values, "metadata"))
    if "sampling_class" not in values and profile.determinism < 1:
        return replace(profile, phases=None, sampling_class="renoised", method="LCM-like")
    return profile


def _today(entries: dict[str, str]) -> dict[str, str]:
    """Convert entries of 0.1.0 to today's names and values."""
    if "family" in entries:
        entries.setdefault("method", entries.pop("family"))
    letter = entries.get("sampling_class")
    return entries | ({"sampling_class": _LETTERS[letter]} if letter in _LETTERS else {})


def profile_to_metadata(profile: PCMProfile) -> dict[str, str]:
    """The ``pcm_*`` metadata from which ``profile_from_metadata`` restores the profile."""
    values = {f.name: getattr(profile, f.name) for f in fields(profile) if f.name in _METADATA}
    entries = {f"pcm_{name}": _write(value) for name, value in values.items() if value not in (None, "")}
    return entries | {"pcm_base_model": profile.base_model}


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
    if name in ("sigmas", "levels"):
        return 1 < len(numbers) <= MAX_COUNT + 1 and all(high > low >= 0 for high, low in pairwise(numbers))
    if name == "timesteps":
        return len(numbers) <= MAX_COUNT and all(high > low for high, low in pairwise(numbers))
    return name != "cfg_range" or len(numbers) == 2
