"""``--images`` of ``pcm distill``: encode images and captions once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image

from .files import reason, refuse, save_state


def cache_path(options: argparse.Namespace) -> Path:
    """The file of latents and texts: given by the user, or the cache."""
    return options.latents or options.cache or options.out.with_suffix(".latents.pt")


def encode_images(options: argparse.Namespace, files: ModuleType) -> None:
    """Encode every image and caption, and the empty caption, unless the cache already has the same ones."""
    if options.vae is None or not options.clip:
        sys.exit("--images needs --vae and --clip, which encode the images and captions.")
    # Hidden files are not images: macOS writes ._a.jpg beside a.jpg.
    names = (path for path in options.images.iterdir() if not path.name.startswith("."))
    pictures = sorted(path for path in names if path.suffix.lower() in files.PICTURES)
    if not pictures:
        sys.exit(f"{options.images} has no images ({', '.join(files.PICTURES)}).")
    captions = [path.with_suffix(".txt") for path in pictures]
    if absent := [path.name for path in captions if not path.exists()]:
        sys.exit(f"{len(absent)} captions are missing, the first is {absent[0]}.")
    cache, source = cache_path(options), _source(options, pictures, captions)
    why = stale(cache, source)
    does = f"{why}: encoding {len(pictures)} images." if why else f"is up to date with {len(pictures)} images."
    print(f"{cache} {does}", file=sys.stderr, flush=True)
    if why:
        save_state({**_encoded(options, files, pictures, captions), "source": source}, cache, "cache")


def _source(options: argparse.Namespace, pictures: Sequence[Path], captions: Sequence[Path]) -> dict[str, Any]:
    """What a cache is made from: names without folders, because a data set may be moved."""
    return {
        "pictures or captions": [dated(path) for pair in zip(pictures, captions, strict=True) for path in pair],
        "size": options.size,
        "way of reading pictures": "as people see them",  # upright, 16 bits, transparency over white
        "encoders": [dated(path) for path in (options.vae, *options.clip)],
        "clip type": options.clip_type,
    }


def dated(path: Path) -> list[str | int]:
    """Name, size and time of a file, by which a cache recognizes it."""
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns]


def stale(cache: Path, source: dict[str, Any]) -> str:
    """Why a cache cannot be used; empty if it can."""
    if not cache.exists():
        return "does not exist yet"
    try:
        before = torch.load(cache, weights_only=True, map_location="cpu", mmap=True)["source"]
    except Exception:  # cut off, made by an older version, or not a cache
        return "does not say what it was made from"
    other = [what for what, value in source.items() if before.get(what) != value]
    return f"is out of date (changed: {', '.join(other)})" if other else ""


def _encoded(
    options: argparse.Namespace, files: ModuleType, pictures: Sequence[Path], captions: Sequence[Path]
) -> dict[str, Any]:
    texts = [_caption(path) for path in captions]
    try:
        latents = files.encode_pictures(options.vae, pictures, options.size)
    except files.PCMError:
        raise
    except Exception as error:  # of the host, for a wrong file or a size that its VAE cannot make
        what = f"{_broken(pictures) or options.images} cannot be encoded ({cause(error)})."
        refuse(what, f"images, and a VAE that ComfyUI loads; --vae is {options.vae}.", "Replace the one at fault.")
    return {"latents": latents, **encode_captions(options, files, texts)}


def encode_captions(options: argparse.Namespace, files: ModuleType, captions: Sequence[str]) -> dict[str, Any]:
    """The ``texts`` of a cache, and its ``negative``: the empty caption."""
    try:
        negative, *texts = files.encode_texts(options.clip, options.clip_type, ["", *captions])
    except files.PCMError:
        raise
    except Exception as error:  # of the host, for files that are not text encoders of that type
        what = f"{', '.join(map(str, options.clip))} cannot encode the captions ({cause(error)})."
        refuse(what, f'text encoders of type "{options.clip_type}".', "Correct --clip or --clip-type.")
    return {"texts": texts, "negative": negative}


def _caption(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"{path} cannot be read ({reason(error)}).", "a caption in UTF-8.", "Save it as UTF-8.")


def cause(error: Exception) -> str:
    """``reason``, except for a failed lookup in an encoder, which says nothing about a file."""
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else reason(error)


def _broken(pictures: Sequence[Path]) -> Path | None:
    """The first image that cannot be opened."""
    for path in pictures:
        try:
            with Image.open(path) as picture:
                picture.load()
        except Exception:
            return path
    return None
