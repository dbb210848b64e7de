"""What a file's name or checksum finds in the table of few-step methods, ``methods.json``.

The table is data, so that people can add a row without reading code: see its ``about``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from ..errors import PCMError
from ..safetensors_file import read_header
from .metadata import profile_from_metadata
from .profile import PCMProfile
from .table import table

Kind = Literal["lora", "checkpoint"]

_ENDING = re.compile(r"\.(safetensors|sft|gguf|ckpt|pth?|bin)$", re.IGNORECASE)
# Names that say nothing, so that the folder is read with them.
_PLAIN_NAMES = re.compile(
    r"(pytorch-lora-weights|diffusion-pytorch-model(-\d+-of-\d+)?|adapter-model|(high|low)-noise-model|model|phased)"
)
# Folders that say nothing about the files in them.
_PLAIN_FOLDERS = {"", ".", "loras", "lora", "models", "checkpoints", "diffusion_models", "unet", "downloads"}
# What quantizers put around a released name: GGUF's types, fp8 of any kind, int8, nf4; SVDQuant's prefix (Nunchaku).
_QUANTIZED = re.compile(
    r"^svdq-(?:int4|fp4|nvfp4)-r\d+-|(?:[-.](?:(?:ud-)?i?q\d-(?:k(?:-(?:xxs|xs|s|m|l|xl))?|[01]|xxs|xs|s|m|l|nl|xl)"
    r"|(?:tensorcore)?fp[48](?:mixed)?(?:-?e\dm\d(?:fn)?)?(?:-(?:fast|scaled|mixed))*|e\dm\d(?:fn)?|scaled|[mn]v?x?fp[48]"
    r"|int[48](?:-(?:convrot|rowwise|tensorwise))?|bnb|nf4|kj|gguf))+$"
)
# LoRAs whose name says that they change what is painted, not how: a style for a distilled model is no method.
_STYLES = re.compile(r"\b(styles?|characters?|concepts?|sliders?|ic-lora|camera-control|control-?net)\b")
# What repacks append to a released name.
_TAIL = (
    r"(?:[-.]+(?:lora|comfy(?:ui)?|bf16|fp16|fp8|fp32|int8|convrot|scaled|e4m3fn|avg|rank|r?\d+|v\d[\d.]*|\(\d+\)"
    r"|converted|pruned|ema|original|copy))*$"
)
_BASE_MODELS = {
    "15": "sd15", "xl": "sdxl", "sdxl": "sdxl", "sd3": "sd3", "sd21": "sd21", "sd": "sd15", "pixart": "pixart"
}  # fmt: skip
# Row entries that become profile values as they are.
_PLAIN = (
    "determinism", "gamma", "spacing", "grid", "terminal", "scheduler", "audio_shift", "dynamic_shift", "strength",
    "strength_no_alpha", "embedded_guidance", "network", "note", "ancestral",
)  # fmt: skip
# Row entries that list one value per step, and how many of them are no step.
_LISTS = {"sigmas": 1, "levels": 1, "timesteps": 0}


def search_text(path: str | Path) -> str:
    """What the patterns see: the file's name in lower case, words joined by ``-``, without extension and without what a
    quantizer says.

    The folder comes before it only where the name itself says nothing, as ``pytorch_lora_weights``; workflows of
    Windows separate it with a backslash.
    """
    place = PurePosixPath(str(path).replace("\\", "/"))
    name, folder = _QUANTIZED.sub("", _words(_ENDING.sub("", place.name))), place.parent.name
    plain = folder.lower() in _PLAIN_FOLDERS or not _PLAIN_NAMES.fullmatch(name)
    return name if plain else f"{_words(folder)}/{name}"


def _words(name: str) -> str:
    return re.sub(r"[\s_]+(?:-\s+)?", "-", name.strip().lower())


@lru_cache(maxsize=1024)
def _pattern(match: str) -> re.Pattern[str]:
    """A row's pattern between word boundaries; a name is words between ``-``, ``.`` and the like."""
    return re.compile(rf"\b(?:{match.replace('<tail>', _TAIL)})" + ("" if match.endswith("<tail>") else r"\b"))


def values_by_name(text: str, kind: Kind | None = None, base_model: str = "") -> dict[str, Any] | None:
    """Profile values of the first row that matches ``search_text``; ``None`` if no row does.

    Args:
        kind: of the file; ``None`` for any.
        base_model: what the file is known to be for; rows for other models are skipped.
    """
    for row, match in _rows(text, kind):
        values = _values(row, match)
        if not base_model or not values["base_model"] or values["base_model"] == base_model:
            return values
    return None


def source_by_name(name: str | Path, kind: Kind | None = "lora") -> str:
    """Where the settings that a file name carries were read, for people; empty if it carries none."""
    return next((str(row["source"]) for row, _ in _rows(search_text(name), kind)), "")


def _rows(text: str, kind: Kind | None) -> Iterator[tuple[dict[str, Any], re.Match[str]]]:
    """The rows that match, the first of which counts."""
    if kind == "lora" and _STYLES.search(text):
        return
    for row in table()["methods"]:
        match = _pattern(row["match"]).search(text) if kind is None or row["kind"] in (kind, "either") else None
        if match is not None:
            yield row, match


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
    for name, extra in _LISTS.items():
        if name in row:
            values[name] = tuple(row[name])
            steps = len(row[name]) - extra
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
    return values | ({"expert": expert} if expert else {})


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


def profile_from_name(name: str | Path, kind: Kind | None = "lora", base_model: str = "") -> PCMProfile | None:
    """Read the settings a file name carries; ``None`` if it carries none.

    Args:
        name: of the file, with its folder.
        kind: ``lora`` or ``checkpoint``; ``None`` for any file.
        base_model: what the file is known to be for, as ``PCMProfile.base_model``; empty if not known.
    """
    values = values_by_name(search_text(name), kind, base_model)
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
    by_name = profile_from_metadata(metadata) or profile_from_name(path)
    return by_name or profile_from_checksum(path) or PCMProfile()


def method_choices() -> dict[str, str]:
    """Every method that can be chosen by name, and the released file that stands for it."""
    choices: dict[str, str] = {}
    for row in table()["methods"]:
        if row["class"] == "unsupported":
            continue
        files = row.get("files", ())
        choices |= row.get("choices", {row["method"]: files[0]} if files else {})
    return choices


def base_models() -> frozenset[str]:
    """The base models that the table has methods for."""
    named: set[str] = set(_BASE_MODELS.values())
    for row in table()["methods"]:
        base = row["base_model"]
        named |= set(cast(dict[str, str], base).values()) if isinstance(base, dict) else {base} if base else set()
    return frozenset(named)


def profile_of_method(choice: str) -> PCMProfile:
    """The settings of a method chosen by name.

    Raises:
        PCMError: if there is no such method.
    """
    file = method_choices().get(choice)
    profile = None if file is None else profile_from_name(file, None)
    if profile is None:
        raise PCMError(f'There is no method "{choice[:80]}".', "a method of the table.", "Choose one from the list.")
    return replace(profile, sources=dict.fromkeys(profile.sources, "user"))
