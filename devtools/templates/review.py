"""All few-step files of ComfyUI's templates: which are known, how each use compares, and what stands in no list."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pcm_core.profiles import PCMProfile, profile_from_name

from .uses import Use, all_uses
from .verdict import NEWER, Comparison, compare

# A name, or a way to sample, that speaks of few steps.
_NAME = re.compile(r"lightning|turbo|distill|\blcm\b|hyper|schnell|klein|\d+-?steps?\b|dmd2?|causvid|fast|flash", re.I)
_FEW = 10


@dataclass(frozen=True)
class File:
    """A few-step file of the templates.

    Attributes:
        compared: its uses on an architecture of this host.
        unmeasured: its uses on a later one, or with sigmas from another pack.
    """

    name: str
    lora: bool
    profile: PCMProfile
    uses: tuple[Use, ...]
    compared: tuple[Comparison, ...]
    unmeasured: tuple[Use, ...]


@cache
def reviewed() -> dict[str, Any]:
    """``exceptions.json``."""
    return json.loads(Path(__file__).with_name("exceptions.json").read_text(encoding="utf-8"))


def reason(use: Use) -> str:
    """Why a use is meant to differ; empty if the reviewed list does not have it."""
    rows = (row for row in reviewed()["exceptions"] if (row["file"], row["settings"]) == (use.file, use.text()))
    return next((row["reason"] for row in rows), "")


@cache
def few_step_files() -> tuple[File, ...]:
    """Every file of the templates that the table knows, with its uses compared."""
    files: list[File] = []
    for name, uses in sorted(all_uses().items()):
        lora, profile = any(use.lora for use in uses), _profile(name, uses)
        if profile is None:
            continue
        served = profile.sampling_class != "unsupported"
        made = [(use, compare(use, profile) if served else None) for use in uses]
        files.append(
            File(
                name, lora, profile, tuple(uses), tuple(found for _, found in made if found is not None),
                tuple(use for use, found in made if found is None and served),
            )
        )  # fmt: skip
    return tuple(files)


def _profile(name: str, uses: list[Use]) -> PCMProfile | None:
    if any(use.lora for use in uses):
        return profile_from_name(name)
    profile = profile_from_name(name, "checkpoint") or profile_from_name(name)
    return None if profile is None or profile.method.endswith(" merge") else profile


def unknown_files() -> dict[str, str]:
    """Files that look like few-step files and that neither the table nor the reviewed list knows, with the sign."""
    known = {file.name for file in few_step_files()} | set(reviewed()["no_few_step"])
    found: dict[str, str] = {}
    for name, uses in all_uses().items():
        if name in known:
            continue
        if _NAME.search(re.sub(r"[\s_]+", "-", name)):
            found[name] = "its name"
        for use in uses:
            alone = not known & set(use.together)
            if alone and use.cfg == 1 and use.steps is not None and use.steps <= _FEW:
                found[name] = use.text()
    return found


def unexplained() -> list[str]:
    """Uses that differ from ours without a reason in the reviewed list."""
    return [
        f"{file.name}: {use.text()}"
        for file in few_step_files()
        for use in (
            *(found.use for found in file.compared if found.verdict == "other"),
            *(use for use in file.unmeasured if file.profile.base_model not in NEWER),
        )
        if not reason(use)
    ]


def stale() -> list[str]:
    """Reasons for uses that are no longer there, or no longer differ."""
    differing = {(file.name, use.text()) for file in few_step_files() for use in file.uses}
    same = {(file.name, f.use.text()) for file in few_step_files() for f in file.compared if f.verdict != "other"}
    rows = ((row["file"], row["settings"]) for row in reviewed()["exceptions"])
    return [f"{file}: {settings}" for file, settings in rows if (file, settings) not in differing - same]
