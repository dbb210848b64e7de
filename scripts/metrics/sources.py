"""Images and clips, read from a folder or from a running ComfyUI.

A folder contains images, animated WebP, GIF or video files, and folders of frames; each is one item, named by its stem.
``http://HOST:PORT/history/PROMPT_ID`` stands for the images that a prompt made on a running ComfyUI. They are named
00001, 00002, ... in order, because the host's own file names continue from prompt to prompt.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
ANIMATED = (".webp", ".gif")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov")
_HISTORY = re.compile(r"(?P<host>https?://[^/]+)/(?:api/)?history/(?P<prompt>[\w-]+)/?")


class SourceError(ValueError):
    """A source cannot be read; the message says why and what to give instead."""


@dataclass(frozen=True)
class Item:
    """An image or clip, read when its frames are needed: a folder may not fit in memory.

    Attributes:
        load: returns uint8 [T, 3, H, W], T = 1 for an image.
        moves: whether it is a clip.
        prompt: its prompt, if known.
        state: size in bytes and modification time, which the cache compares; ``None`` for items from a server.
    """

    name: str
    load: Callable[[], Tensor]
    moves: bool = False
    prompt: str | None = None
    state: tuple[int, int] | None = None

    @property
    def frames(self) -> Tensor:
        return self.load()


def read(source: str) -> list[Item]:
    """Every item of a folder, or of a prompt on a running host, sorted by name.

    Raises:
        SourceError: if there is none, or two have the same name.
    """
    found = _HISTORY.fullmatch(source)
    items = sorted(_from_host(found) if found else _from_folder(Path(source)), key=lambda item: item.name)
    if not items:
        raise SourceError(f"{source} holds no images. Give a folder of {', '.join(IMAGES + VIDEOS)} files, "
                          "or of folders of frames.")  # fmt: skip
    for one, other in itertools.pairwise(items):
        if one.name == other.name:
            raise SourceError(f'{source} has two items with the name "{one.name}". Rename one.')
    return items


def _from_folder(folder: Path) -> Iterator[Item]:
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder. Give a folder, or http://HOST:PORT/history/PROMPT_ID.")
    prompts = read_prompts(folder)
    for path in folder.iterdir():
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if path.is_dir():
            frames = sorted(frame for frame in path.iterdir() if frame.suffix.lower() in IMAGES)
            if frames:
                states = [_state(frame) for frame in frames]
                state = sum(size for size, _ in states), max(time for _, time in states)
                load = partial(_stack_stills, frames, path)
                yield Item(path.name, load, len(frames) > 1, prompts.get(path.name), state)
        elif suffix in VIDEOS:
            yield Item(path.stem, partial(_stack_video, path, path), True, prompts.get(path.stem), _state(path))
        elif suffix in IMAGES:
            moves = suffix in ANIMATED and _count(path) > 1
            yield Item(path.stem, partial(_stack_frames, path, path), moves, prompts.get(path.stem), _state(path))


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def read_prompts(folder: Path) -> dict[str, str]:
    """Prompts by item, from the manifest of ``pcm generate`` and the .txt files beside the images."""
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()] if manifest.exists() else []
    prompts = {Path(row["file"]).stem: row["prompt"] for row in rows}
    return prompts | {path.stem: path.read_text("utf-8").strip() for path in sorted(folder.glob("*.txt"))}


def _from_host(found: re.Match[str]) -> Iterator[Item]:
    host, prompt = found["host"], found["prompt"]
    try:
        history: dict[str, Any] = json.loads(_get(f"{host}/history/{prompt}"))
        if prompt not in history:
            raise SourceError(f"{host} has no finished prompt {prompt}. Use the prompt_id that /prompt returned.")
        outputs = history[prompt]["outputs"].values()
        files = [file for output in outputs for file in output.get("images", []) + output.get("video", [])]
        for number, file in enumerate(files, 1):
            where = {key: file[key] for key in ("filename", "subfolder", "type")}
            data, path = _get(f"{host}/view?{urllib.parse.urlencode(where)}"), Path(file["filename"])
            video = path.suffix.lower() in VIDEOS
            load = partial(_from_bytes, _stack_video if video else _stack_frames, data, path)
            yield Item(f"{number:05}", load, video or _count(io.BytesIO(data)) > 1)
    except OSError as error:
        raise SourceError(f"{host} does not respond like a ComfyUI ({error}). Is it running?") from error


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)


def _from_bytes(read_file: Callable[[io.BytesIO, Path], Tensor], data: bytes, path: Path) -> Tensor:
    return read_file(io.BytesIO(data), path)


def _stack_stills(frames: Sequence[Path], path: Path) -> Tensor:
    return _stack([_frames(frame)[0] for frame in frames], path)


def _stack_frames(file: Path | io.BytesIO, path: Path) -> Tensor:
    return _stack(_frames(file), path)


def _stack_video(file: Path | io.BytesIO, path: Path) -> Tensor:
    return _stack(_video(file), path)


def _count(file: Path | io.BytesIO) -> int:
    """Number of frames of an image file, from its header; 1 for a broken file, which fails when it is read."""
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1)
    except OSError:
        return 1


def _frames(file: Path | io.BytesIO) -> list[Tensor]:
    try:
        with Image.open(file) as image:
            return [_tensor(frame) for frame in ImageSequence.Iterator(image)]
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:  # of Pillow's readers
        raise SourceError(f"{file} cannot be read as an image ({error}). Remove it, or make it again.") from error


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
