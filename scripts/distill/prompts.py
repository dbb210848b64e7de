"""``--prompts`` of ``pcm distill``: encode captions, and let the model draw latents for them, once."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..workers import Pack
from .files import reason, refuse, save_state
from .images import cache_path, dated, encode_captions, stale


def draw_latents(options: argparse.Namespace, pack: Pack, make_job: Callable[[dict[str, Any]], Any]) -> None:
    """Fill the cache, unless it already has latents of these captions, this model and these settings.

    After an interruption it continues: finished latents are kept beside the cache until all are done.

    Args:
        make_job: turns the contents of a cache into a checked job, with the model loaded.
    """
    captions, cache = _captions(options.prompts), cache_path(options)
    if not options.clip:
        sys.exit("--prompts needs --clip, which encodes the captions.")
    states = pack("nodes.training.states")
    each = states.latents_per_text(options.steps * options.batch * options.accumulate, len(captions))
    source = _source(options, captions, each)
    why = stale(cache, source)
    does = f"{why}: drawing for {len(captions)} captions." if why else f"is up to date with {len(captions)} captions."
    print(f"{cache} {does}", file=sys.stderr, flush=True)
    if not why:
        return
    encoded = encode_captions(options, pack("nodes.host.loaders"), captions)
    job = make_job({"latents": None, **encoded})
    folder = cache.with_name(f"{cache.stem}.states")
    job = states.with_drawn_latents(job, folder)
    made = {"latents": job.latents, **encoded, "source": source}
    save_state(made, cache, "cache")
    shutil.rmtree(folder, ignore_errors=True)


def _captions(path: Path) -> list[str]:
    try:
        captions = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"{path} cannot be read ({reason(error)}).", "captions in UTF-8, one per line.", "Save it as UTF-8.")
    if not captions:
        refuse(f"{path} holds no captions.", "one per line.", "Write some.")
    return captions


def _source(options: argparse.Namespace, captions: list[str], each: int) -> dict[str, Any]:
    """What the latents are made from."""
    return {
        "captions": captions,
        "model": dated(options.model),
        "size": [options.size, options.length],
        "number of latents": each,
        "seed": options.seed,
        "encoders": [dated(path) for path in options.clip],
        "clip type": options.clip_type,
    }
