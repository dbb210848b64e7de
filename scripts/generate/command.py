"""Make a folder of images or clips from a file of prompts, for ``pcm metrics``, in one process or many.

    pcm generate prompts.txt out --comfyui ComfyUI --checkpoint sd_xl_base_1.0.safetensors \\
        --lora pcm_sdxl_smallcfg_4step_converted.safetensors
    accelerate launch -m scripts.generate prompts.txt out ...                   the same images, on every GPU
    torchrun --nproc_per_node=2 -m scripts.generate prompts.txt out ...         or in two CPU processes
    pcm generate prompts.txt out --comfyui ComfyUI --demo picture \\
        --lora demo/weights/demo_pcm_4phase.safetensors                          the demo world

The file has one prompt per line. Image n has the seed ``--seed`` + n and the name ``n_seed``, so two folders of one
prompt file are paired by name. ``manifest.jsonl`` has the prompt, seed and settings of every image, made or not. After
an interruption start the command again: it makes the missing images, with any number of processes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..progress import bar
from ..workers import Pack, Workers, load_pack
from .maker import DEMOS, ImageMaker, Loaded, SayOnce

MANIFEST = "manifest.jsonl"
PART = ".part"  # suffix of a file that is being written


@dataclass(frozen=True)
class Task:
    """One image or clip to make."""

    file: str
    prompt: str
    seed: int


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pcm generate", description="Make a folder of images or clips from a file of prompts."
    )
    parser.add_argument("prompts", type=Path, help="a text file, one prompt per line")
    parser.add_argument("out", type=Path, help="the folder; an interrupted one is completed")
    parser.add_argument("--comfyui", metavar="PATH", help="a ComfyUI checkout; default: COMFYUI_PATH")
    files = parser.add_argument_group("model")
    files.add_argument("--checkpoint", type=Path, help="model, text encoder and VAE in one file")
    files.add_argument("--model", type=Path, help="diffusion model, as UNETLoader takes it")
    files.add_argument("--vae", type=Path, action="append", help="twice for TAESD: encoder, decoder")
    files.add_argument("--clip", type=Path, action="append", help="text encoder; repeat for several")
    files.add_argument("--clip-type", default="stable_diffusion", help="as CLIPLoader's type, e.g. sd3, wan")
    files.add_argument("--lora", type=Path, help="read as Load PCM LoRA does; it decides steps, cfg and spacing")
    files.add_argument("--strength", type=float, default=1.0, help="of the LoRA")
    files.add_argument("--motion", type=Path, help="motion module of AnimateDiff, by ComfyUI-AnimateDiff-Evolved")
    files.add_argument("--demo", choices=DEMOS, help="the demo world's model, VAE and text encoder")
    how = parser.add_argument_group("sampling")
    how.add_argument("--sampling", default="auto", metavar="HOW", help="a column of PCM Compare: auto, 8, "
                     '"auto cfg 2", or "euler/simple@25 cfg 3" for a stock sampler')  # fmt: skip
    how.add_argument("--method", metavar="NAME", help="sample as this few-step method does, or the file of this name; "
                     "default: what the name of the LoRA or model says")  # fmt: skip
    how.add_argument("--gamma", type=float, help="noise of TCD, 0 to 1, instead of the method's")
    how.add_argument("--determinism", type=float, help="r, 1 to 0 (LCM), instead of the method's")
    how.add_argument("--negative", default="", help="negative prompt; unused at cfg 1")
    how.add_argument("--shift", type=float, default=0.0, help="of a flow model; 0: the default of the LoRA or model")
    how.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: 1024 1024")
    how.add_argument("--length", type=int, help="frames of a clip; without it images are made")
    how.add_argument("--fps", type=float, default=16.0, help="of clips, which are lossless animated WebP")
    how.add_argument("--seed", type=int, default=0, help="of the first image; each image has the next seed")
    how.add_argument("--per-prompt", type=int, default=1, help="images per prompt")
    parser.add_argument("--single", action="store_true", help="one process, without Accelerate")
    return parser


def check(options: argparse.Namespace) -> None:
    """Fill in the options of ``--demo``, and refuse invalid options."""
    for name, value in (DEMOS[options.demo] if options.demo else {}).items():
        if not getattr(options, name):
            setattr(options, name, value)
    options.size = tuple(options.size or (1024, 1024))
    if not (options.checkpoint or options.model):
        sys.exit("There is no model. Give --checkpoint, or --model with --vae and --clip, or --demo.")
    if options.per_prompt < 1 or not 0 <= options.seed < 2**63:
        sys.exit("--per-prompt is at least 1, and --seed at least 0.")
    for name in ("gamma", "determinism"):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            sys.exit(f"--{name} is {value:g}. It goes from 0 to 1.")
    if options.gamma is not None and options.determinism is not None:
        sys.exit("--gamma and --determinism say the same in two ways. Give one of them.")
    if not 0 <= options.shift < math.inf:
        sys.exit("--shift is above 0, or 0 for the default of the LoRA or model.")
    if options.vae and len(options.vae) > 2:
        sys.exit("--vae is one file, or TAESD's encoder and decoder.")
    given = [options.prompts, options.checkpoint, options.model, options.lora, options.motion]
    for path in (*given, *(options.vae or []), *(options.clip or [])):
        if path is not None and not path.is_file():
            sys.exit(f"{path} does not exist or is not a file.")


def tasks_for(options: argparse.Namespace) -> list[Task]:
    """Every image of the prompt file, in order; blank lines are skipped."""
    lines = [line.strip() for line in options.prompts.read_text("utf-8").splitlines()]
    prompts = [line for line in lines if line for _ in range(options.per_prompt)]
    if not prompts:
        sys.exit(f"{options.prompts} holds no prompts.")
    suffix = ".webp" if options.length else ".png"
    seeds = range(options.seed, options.seed + len(prompts))
    return [
        Task(f"{index:06}_{seed}{suffix}", prompt, seed)
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]


def prepare(out: Path, tasks: Sequence[Task], settings: dict[str, Any]) -> None:
    """Write the manifest, after checking that the files in the folder belong to it.

    It is written completely before the first image, so that no image is ever without its line.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"file": task.file, "prompt": task.prompt, "seed": task.seed, **settings} for task in tasks]
    manifest = out / MANIFEST
    if manifest.exists():
        planned = {row["file"]: row for row in rows}
        for line in manifest.read_text("utf-8").splitlines():
            before = json.loads(line)
            if before != planned.get(before["file"]):
                sys.exit(_conflict(manifest, before, planned.get(before["file"])))
    elif strangers := sorted(path.name for path in out.iterdir() if not path.name.endswith(PART)):
        sys.exit(f"{out} holds {strangers[0]} and no {MANIFEST}. Give a new folder.")
    for left_over in out.glob(f"*{PART}"):
        left_over.unlink(missing_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if manifest.exists() and manifest.read_text("utf-8") == text:
        return  # and so is not replaced under somebody who reads it
    partial = out / f"{MANIFEST}{PART}"
    partial.write_text(text, "utf-8", newline="\n")
    try:
        partial.replace(manifest)
    except PermissionError as error:
        partial.unlink(missing_ok=True)
        sys.exit(f"{manifest} cannot be replaced ({error}). Close the program that has it open, and start again.")


def _conflict(manifest: Path, before: dict[str, Any], now: dict[str, Any] | None) -> str:
    """The first difference from the settings that the folder was started with."""
    if now is None:
        return f"{manifest} has {before['file']}, and the prompt file does not. Give a new folder, or that prompt file."
    name = next(name for name in {**now, **before} if before.get(name) != now.get(name))
    was, wanted = json.dumps(before.get(name)), json.dumps(now.get(name))
    return f"{manifest} says of {before['file']}: {name} {was}, not {wanted}. Give a new folder, or the old settings."


def missing(out: Path, tasks: Sequence[Task]) -> list[Task]:
    there = {path.name for path in out.iterdir()}
    return [task for task in tasks if task.file not in there]


def save(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    """Write an image or clip atomically."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PART}")  # a leftover process may write the same file
    if path.suffix == ".webp":
        options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": round(1000 / fps)}
        frames[0].save(partial, "WEBP", lossless=True, loop=0, **options)
    else:
        frames[0].save(partial, "PNG", compress_level=4)
    os.replace(partial, path)


def generate(options: argparse.Namespace, pack: Pack, workers: Workers, loaded: Loaded | None = None) -> int:
    """Make this process's part of the missing images; returns how many it made."""
    with workers.together():
        tasks = tasks_for(options)
        maker = ImageMaker(options, pack, [task.prompt for task in tasks], loaded)
        if workers.first:
            prepare(options.out, tasks, maker.settings)
    mine = missing(options.out, tasks)
    workers.wait()  # all processes must list the folder before any writes: the parts are cut from one list
    mine = workers.share(mine)
    with bar(len(mine), options.out.name, unit="images", show=workers.first) as shown:
        for task in mine:
            save(maker.make(task.prompt, task.seed), options.out / task.file, options.fps)
            shown.update()
    left = len(missing(options.out, tasks))
    state = f"{left} are missing" if left else f"all {len(tasks)} are there"
    sys.stderr.write(f"Process {workers.rank} made {len(mine)}; {state}: {options.out}\n")  # whole, among several
    return len(mine)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    check(options)
    workers = Workers.start(options.single, on_cpu=not torch.cuda.is_available())
    pack = load_pack(options.comfyui)
    try:
        with SayOnce():
            generate(options, pack, workers)
    except pack("pcm_core.errors").PCMError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command continues from there.")
