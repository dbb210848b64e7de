"""The table of few-step methods, ``methods.json``, and what a file name or a checksum finds in it.

The table is data, so that people can add a row without reading code: see its ``about``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..safetensors_file import read_header
from .metadata import profile_from_metadata
from .profile import PCMProfile

_TABLE = Path(__file__).with_name("methods.json")
# Folders that say nothing about the files in them.
_PLAIN_FOLDERS = {"", ".", "loras", "lora", "models", "checkpoints", "diffusion_models", "unet", "downloads"}
_BASE_MODELS = {
    "15": "sd15", "xl": "sdxl", "sdxl": "sdxl", "sd3": "sd3", "sd21": "sd21", "sd": "sd15", "pixart": "pixart"
}  # fmt: skip
# Row entries that become profile values as they are.
_PLAIN = (
    "determinism", "gamma", "spacing", "grid", "terminal", "strength", "strength_no_alpha", "embedded_guidance",
    "note", "ancestral",
)  # fmt: skip


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """``methods.json``."""
    return json.loads(_TABLE.read_text(encoding="utf-8"))


def search_text(path: str | Path) -> str:
    """What the patterns see: parent folder and file name without extension, in lower case."""
    path = Path(path)
    stem = re.sub(r"\.(safetensors|sft)$", "", path.name, flags=re.IGNORECASE)
    folder = path.parent.name
    return (stem if folder.lower() in _PLAIN_FOLDERS else f"{folder}/{stem}").lower()


def values_by_name(text: str) -> dict[str, Any] | None:
    """Profile values of the first row that matches ``search_text``; ``None`` if no row does."""
    for row in table()["methods"]:
        match = re.search(row["match"], text, re.IGNORECASE)
        if match is not None:
            return _values(row, match)
    return None


def name_by_checksum(path: str | Path) -> str | None:
    """The released name of a file, by SHA-256; files that are not as large as a released one are not read."""
    path = Path(path)
    stat = path.stat()
    if not any(low <= stat.st_size <= high for low, high in table()["sizes"].values()):
        return None
    return _checksum_name(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _checksum_name(path: str, mtime: int, size: int) -> str | None:
    del mtime, size  # part of the cache key only
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return released_name(digest.hexdigest())


def released_name(sha256: str) -> str | None:
    """The released file with this SHA-256; the table knows the first eight digits."""
    return next((row["name"] for row in table()["files"] if sha256.startswith(row["sha256"])), None)


def _values(row: Mapping[str, Any], match: re.Match[str]) -> dict[str, Any]:
    values: dict[str, Any] = {name: row[name] for name in _PLAIN if name in row}
    values |= {"method": row["method"], "sampling_class": row["class"], "base_model": _base_model(row, match)}
    values["verified"] = row["verified"]
    steps = row.get("steps")
    if steps == "name":
        steps = int(_group(match, "n") or row.get("default_steps", 4))
    for name in ("sigmas", "timesteps"):
        if name in row:
            values[name] = tuple(row[name])
            steps = len(row[name]) - (name == "sigmas")
    if steps is not None:
        values["steps"] = steps
    if row["class"] == "phased" and "sigmas" not in row:
        values["phases"] = steps
    if "shift" in row:
        values["shift"] = float(_group(match, "shift")) if row["shift"] == "name" else float(row["shift"])
    if "cfg" in row:
        cfg = cast("float | dict[str, float]", row["cfg"])
        values["cfg"] = float(cfg.get(str(steps), 1.0) if isinstance(cfg, dict) else cfg)
        low, high = row.get("cfg_range", (values["cfg"], values["cfg"]))
        values["cfg_range"] = (float(low), float(high))
    expert = _group(match, "expert")
    return values | ({"expert": expert.lower()} if expert else {})


def _base_model(row: Mapping[str, Any], match: re.Match[str]) -> str:
    base = row["base_model"]
    if isinstance(base, dict):
        return next(value for part, value in cast(dict[str, str], base).items() if part in match.string)
    if base is not None:
        return base
    found = re.sub(r"[-_ .]", "", _group(match, "base").lower())
    return "sd15" if found.startswith(("sdv1", "sd1")) else _BASE_MODELS.get(found, "")


def _group(match: re.Match[str], name: str) -> str:
    """A named group of the match, or its twin in another alternative (``n2``); empty if neither took part."""
    groups = match.groupdict()
    return groups.get(name) or groups.get(f"{name}2") or ""


def profile_from_name(name: str | Path) -> PCMProfile | None:
    """Read the settings a file name carries, with its folder where that says something; ``None`` if nothing does."""
    values = values_by_name(search_text(name))
    return None if values is None else PCMProfile(**values, sources=dict.fromkeys(values, "file name"))


def profile_from_checksum(path: str | Path) -> PCMProfile | None:
    """The settings of a released PCM file under any name; ``None`` for every other file.

    Raises:
        OSError: if the file cannot be read.
    """
    name = name_by_checksum(path)
    profile = None if name is None else profile_from_name(name)
    return profile and replace(profile, sources=dict.fromkeys(profile.sources, "sha256"))


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
