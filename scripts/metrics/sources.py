"""Pictures and clips, read from a folder or from what a running ComfyUI made.

A folder holds pictures, animated WebP, GIF or video files, and folders of frames; each is one item, named by its stem.
``http://HOST:PORT/history/PROMPT_ID`` stands for the pictures that a prompt made on a running ComfyUI, named 00001,
00002, ... in their order: the host's own names count on from prompt to prompt.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov")
_HISTORY = re.compile(r"(?P<host>https?://[^/]+)/(?:api/)?history/(?P<prompt>[\w-]+)/?")


class SourceError(ValueError):
    """A source that cannot be read: what it is, and what to give instead."""


@dataclass(frozen=True)
class Item:
    """A picture or clip: uint8 [T, 3, H, W], T = 1 for a picture, and its prompt where that is known."""

    name: str
    frames: Tensor
    prompt: str | None = None


def read(source: str) -> list[Item]:
    """Every item of a folder or of a prompt of a running host, by name.

    Raises:
        SourceError: if there is none, or two have one name.
    """
    found = _HISTORY.fullmatch(source)
    items = sorted(_from_host(found) if found else _from_folder(Path(source)), key=lambda item: item.name)
    if not items:
        raise SourceError(f"{source} holds no pictures. Give a folder of {', '.join(PICTURES + VIDEOS)} files, "
                          "or of folders of frames.")  # fmt: skip
    for one, other in itertools.pairwise(items):
        if one.name == other.name:
            raise SourceError(f'{source} holds two items of the name "{one.name}". Rename one.')
    return items


def _from_folder(folder: Path) -> Iterator[Item]:
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder. Give a folder, or http://HOST:PORT/history/PROMPT_ID.")
    prompts = read_prompts(folder)
    for path in folder.iterdir():
        suffix = path.suffix.lower()
        if path.is_dir():
            frames = [_still(frame) for frame in sorted(path.iterdir()) if frame.suffix.lower() in PICTURES]
            if frames:
                yield Item(path.name, _stack(frames, path), prompts.get(path.name))
        elif suffix in PICTURES + VIDEOS and not path.name.startswith("."):
            frames = _video(path) if suffix in VIDEOS else _frames(path)
            yield Item(path.stem, _stack(frames, path), prompts.get(path.stem))


def read_prompts(folder: Path) -> dict[str, str]:
    """Prompts by item, from the manifest of ``pcm generate`` and the .txt files beside the pictures."""
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()] if manifest.exists() else []
    prompts = {Path(row["file"]).stem: row["prompt"] for row in rows}
    return prompts | {path.stem: path.read_text("utf-8").strip() for path in sorted(folder.glob("*.txt"))}


def _from_host(found: re.Match[str]) -> Iterator[Item]:
    host, prompt = found["host"], found["prompt"]
    try:
        history: dict[str, Any] = json.loads(_get(f"{host}/history/{prompt}"))
        if prompt not in history:
            raise SourceError(f"{host} knows no finished prompt {prompt}. Take the prompt_id that /prompt answered.")
        outputs = history[prompt]["outputs"].values()
        files = [file for output in outputs for file in output.get("images", []) + output.get("video", [])]
        for number, file in enumerate(files, 1):
            where = {key: file[key] for key in ("filename", "subfolder", "type")}
            data = io.BytesIO(_get(f"{host}/view?{urllib.parse.urlencode(where)}"))
            path = Path(file["filename"])
            frames = _video(data) if path.suffix.lower() in VIDEOS else _frames(data)
            yield Item(f"{number:05}", _stack(frames, path))
    except OSError as error:
        raise SourceError(f"{host} does not answer as a ComfyUI does ({error}). Is it running?") from error


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)


def _still(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return _tensor(picture)


def _frames(file: Path | io.BytesIO) -> list[Tensor]:
    try:
        with Image.open(file) as picture:
            return [_tensor(frame) for frame in ImageSequence.Iterator(picture)]
    except OSError as error:
        raise SourceError(f"{file} cannot be read as a picture ({error}). Remove it, or make it again.") from error


def _video(file: Path | io.BytesIO) -> list[Tensor]:
    try:
        import av  # a requirement of ComfyUI
    except ImportError as error:
        raise SourceError(f"{file} is a video, and PyAV is not installed: pip install av.") from error
    try:
        with av.open(file if isinstance(file, io.BytesIO) else str(file)) as container:
            frames = container.decode(video=0)
            return [torch.from_numpy(frame.to_ndarray(format="rgb24")).movedim(-1, 0) for frame in frames]
    except OSError as error:
        raise SourceError(f"{file} cannot be read as a video ({error}). Remove it, or make it again.") from error


def _stack(frames: list[Tensor], path: Path) -> Tensor:
    if not frames or len({frame.shape for frame in frames}) > 1:
        raise SourceError(f"{path} holds frames of several sizes, or none. Give frames of one size.")
    return torch.stack(frames)
