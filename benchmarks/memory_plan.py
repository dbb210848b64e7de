"""What training takes: a plan for models of real size, and the plan against an allocator where a model can be run.

    python -m benchmarks.memory_plan [--models sd15 sdxl ...]         the table of docs/distilling.md
    python -m benchmarks.memory_plan --truth                          plan against run, SD1.5 on the CPU
    python -m benchmarks.memory_plan --truth --device cuda            SD1.5, SDXL and Wan on a GPU, streamed or not

Both go through the host's own networks with random weights (COMFYUI_PATH). A GB is 2^30 bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import markdown
from benchmarks.model_shapes import MODELS, start_host

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "distilling.md"
STORED = ROOT / "benchmarks" / "results" / "memory_plan.json"
CARDS = (6, 8, 10, 12, 16, 24)
BEGIN, END = "<!-- memory_plan: begin -->", "<!-- memory_plan: end -->"
# Kept for the driver, for what ComfyUI holds besides, and for what the allocator cannot use of what it has.
RESERVE = 0.6


WAYS = ("as it is", "checkpointing", "streaming", "streaming, bf16 adapters", "streaming, rank 16")


def ways(load: Any) -> Iterator[tuple[str, Any]]:
    """What a user can switch, from nothing to all of it."""
    checkpointed, streamed = replace(load, checkpointing=True), replace(load, checkpointing=True, streaming=True)
    rounded = replace(streamed, adapter_dtype=torch.bfloat16)
    yield from zip(WAYS, (load, checkpointed, streamed, rounded, replace(streamed, rank=16)), strict=True)


def measure(names: list[str], chosen: list[str], pack: Any) -> None:
    """Plan these ways of these models, and keep each in ``STORED`` as it comes."""
    memory, planner = pack("pcm_core.distill.memory"), pack("nodes.host.memory")
    for name in names:
        model = MODELS[name]
        started, patcher = time.monotonic(), model.build(torch.bfloat16)
        load = memory.Workload(shape=model.latent, rank=32, batch=1)
        for words, way in ways(load):
            if words not in chosen:
                continue
            plan = planner.plan(patcher, model.conditioning(), way)
            if plan.estimated:
                sys.exit(f"{name}, {words}: cannot be traced, {plan.estimated}")
            print(f"{name}, {words}: {plan}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
            stored.setdefault(name, {})[words] = round(plan.total / 2**30, 1)
            STORED.write_text(json.dumps(stored, indent=1) + "\n", "utf-8", newline="\n")


def table() -> str:
    """What is stored: needs by switch, and the first switch with which a card holds it."""
    stored = json.loads(STORED.read_text("utf-8"))
    rows = [[MODELS[name].title, *(f"{needs[words]:.1f}" if words in needs else "" for words in WAYS),
             *(_fits(needs, card) for card in CARDS)]
            for name in MODELS if (needs := stored.get(name))]  # fmt: skip
    return markdown(["GB; bf16, rank 32, batch 1, guided", *WAYS, *(f"{card} GB" for card in CARDS)], rows)


def _fits(needs: dict[str, float], card: int) -> str:
    """The first switch with which the card holds it; else what is missing with the last."""
    for words in WAYS:
        if needs.get(words, math.inf) <= card - RESERVE:
            return words
    complete = all(words in needs for words in WAYS)
    return f"{min(needs.values()) - card + RESERVE:.1f} GB missing" if complete else "not planned"


CPU_RUNS = [
    {"model": "sd15", "side": 32, "rank": 32},
    {"model": "sd15", "side": 32, "rank": 32, "checkpointing": True},
    {"model": "sd15", "side": 32, "rank": 8, "batch": 2, "checkpointing": True},
    {"model": "sd15", "side": 64, "rank": 16, "checkpointing": True},
]
GPU_RUNS = [
    {"model": "sd15"}, {"model": "sd15", "batch": 4, "checkpointing": True}, {"model": "sdxl", "checkpointing": True},
    {"model": "sdxl", "fit_memory": "stream"}, {"model": "sdxl", "fit_memory": "stream", "bf16_adapters": True},
    {"model": "wan_1b", "checkpointing": True},
    {"model": "wan_1b", "fit_memory": "stream"}, {"model": "wan_14b", "fit_memory": "stream"},
]  # fmt: skip
TINY_RUNS = [{"model": "sd15", "side": 8, "rank": 4, "narrow": True, **way}
             for way in ({}, {"checkpointing": True}, {"fit_memory": "stream", "bf16_adapters": True})]  # fmt: skip


def truth(options: argparse.Namespace) -> str:
    """Each in a process of its own: torch's allocator, the growth of the process, the plan, and seconds an update."""
    runs = TINY_RUNS if options.tiny else GPU_RUNS if options.device == "cuda" else CPU_RUNS
    rows: list[list[str]] = []
    for settings in runs:
        command = [sys.executable, "-m", "benchmarks.memory_plan", "--device", options.device]
        done = subprocess.run(
            [*command, "--one", json.dumps(settings)], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
        words = ", ".join(f"{name} {value}" if value is not True else name for name, value in settings.items())
        if done.returncode:  # the other runs still say something
            rows.append([words, "failed", "", "", "", ""])
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(words, found, file=sys.stderr, flush=True)
        gib = [found[key] / 2**30 for key in ("plan", "allocator", "process")]
        rows.append([words, *(f"{value:.2f}" for value in gib), f"{gib[0] / gib[1]:.3f}", f"{found['seconds']:.2f}"])
    return markdown(["", "plan, GB", "allocator, GB", "process, GB", "plan / allocator", "s an update"], rows)


def one(settings: dict[str, Any], device: str) -> None:
    """Updates of the real session on a model with random weights; prints bytes and seconds as JSON."""
    from benchmarks.lora_load import peak
    from benchmarks.memory_truth import Allocated, resident
    from benchmarks.model_shapes import fill

    pack = start_host(device)
    before, cuda = resident(), device == "cuda"
    session, jobs, model = pack("nodes.training.session"), pack("nodes.training.job"), MODELS[settings["model"]]
    distill = pack("pcm_core.distill")
    if settings.get("narrow"):
        model = replace(model, unet={**model.unet, "model_channels": 32, "num_heads": 4})
    patcher = model.build(torch.bfloat16 if cuda else torch.float32, "cpu")
    fill(patcher.model.diffusion_model)
    patcher.load_device = torch.device(device)
    text, side = model.conditioning(), settings.get("side")
    shape = (model.latent[0], side, side) if side else model.latent
    asked = jobs.Job(
        model=patcher, latents=[torch.randn(4, *shape)], texts=[text], negative=text, captions=[0],
        rank=settings.get("rank", 32),
        config=distill.DistillConfig(steps=4 if cuda else 2, batch=settings.get("batch", 1), cfg=(4.0, 6.0)),
        checkpointing=settings.get("checkpointing", False), fit_memory=settings.get("fit_memory", "off"),
        adapter_dtype=torch.bfloat16 if settings.get("bf16_adapters") else torch.float32,
    )  # fmt: skip
    load = session.workload(asked, None)
    if asked.fit_memory == "stream":
        load = replace(load, checkpointing=True, streaming=True)
    weights = 0 if cuda else sum(weight.nbytes for weight in patcher.model.diffusion_model.parameters())
    found: dict[str, float] = {}
    step = distill.Trainer.step

    def watched(self: Any) -> Any:
        """From the second update on optimizer moments are there."""
        if self.step_number == 0:
            return step(self)
        started = time.perf_counter()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            report = step(self)
            torch.cuda.synchronize()
            found["allocator"] = torch.cuda.max_memory_allocated()
        else:
            self._zero_grad()
            moments = [value for state in self.optimizer.state.values() for value in state.values()]
            held = [*self.adapters.parameters(), *self.adapters.trained, *self._good, *moments]
            lying = sum(tensor.nbytes for tensor in {id(t): t for t in held}.values())
            with Allocated() as during:
                report = step(self)
            found["allocator"] = (0 if load.streaming else weights) + lying + during.peak
        found["seconds"] = time.perf_counter() - started
        return report

    distill.Trainer.step = watched
    session.run(asked, session_metadata, rescue=False)
    found["process"] = peak() * 2**20 - before
    found["plan"] = pack("nodes.host.memory").plan(patcher, text, load).total
    print(json.dumps(found))


def session_metadata(steps: int) -> dict[str, str]:
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="plan only these anew")
    parser.add_argument("--truth", action="store_true", help="run models and compare")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="with --truth: a narrow model, to try the script")
    parser.add_argument("--stored", action="store_true", help="the table of what was planned before")
    parser.add_argument("--write", action="store_true", help="put the table into docs/distilling.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(json.loads(options.one), options.device)
        return
    if not (options.truth or options.stored):
        measure(options.models, options.ways, start_host())
    text = truth(options) if options.truth else table()
    print(text, flush=True)
    if options.truth and "| failed |" in text:
        sys.exit("Not every run could be made; what they say is above.")
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        mark = "truth" if options.truth else "plan"
        begin, end = BEGIN.replace("plan:", f"{mark}:"), END.replace("plan:", f"{mark}:")
        PAGE.write_text(
            re.sub(f"{begin}.*?{end}", f"{begin}\n{text}\n{end}", page, flags=re.S), encoding="utf-8", newline="\n"
        )


if __name__ == "__main__":
    main()
