"""What training takes: a plan for models of real size, and the plan against an allocator where a model can be run.

    python -m benchmarks.memory_plan [--models sd15 sdxl ...]         the table of docs/distilling.md
    python -m benchmarks.memory_plan --truth                          plan against run, on models that fit this machine

Both go through the host's own networks with random weights (COMFYUI_PATH). A GB is 2^30 bytes.
"""

from __future__ import annotations

import argparse
import json
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
CARDS = (6, 8, 10, 12, 16, 24)
BEGIN, END = "<!-- memory_plan: begin -->", "<!-- memory_plan: end -->"
# Kept for the driver, for what ComfyUI holds besides, and for what the allocator cannot use of what it has.
RESERVE = 0.6


def ways(load: Any) -> Iterator[tuple[str, Any]]:
    """What a user can switch, from nothing to all of it."""
    yield "as it is", load
    yield "checkpointing", replace(load, checkpointing=True)
    yield "streaming", replace(load, checkpointing=True, streaming=True)
    yield "streaming, rank 16", replace(load, checkpointing=True, streaming=True, rank=16)


def table(names: list[str], pack: Any) -> str:
    """Needs by switch, and the first switch with which a card holds it."""
    memory, planner = pack("pcm_core.distill.memory"), pack("nodes.host.memory")
    rows: list[list[str]] = []
    for name in names:
        model = MODELS[name]
        started, patcher = time.monotonic(), model.build(torch.bfloat16)
        load = memory.Workload(shape=model.latent, rank=32, batch=1)
        needs: dict[str, float] = {}
        for words, way in ways(load):
            plan = planner.plan(patcher, model.conditioning(), way)
            if plan.estimated:
                print(f"{name}, {words}: estimated, {plan.estimated}", file=sys.stderr)
            needs[words] = plan.total / 2**30
            print(f"{name}, {words}: {plan}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        shown = [f"{value:.1f}" for value in needs.values()]
        rows.append([model.title, *shown, *(_fits(needs, card) for card in CARDS)])
    return markdown(["bf16, rank 32, batch 1, guided", *(words for words, _ in ways(load)),
                     *(f"{card} GB" for card in CARDS)], rows)  # fmt: skip


def _fits(needs: dict[str, float], card: int) -> str:
    """The first switch with which the card holds it; else what is missing with the last."""
    for words, value in needs.items():
        if value <= card - RESERVE:
            return words
    return f"{min(needs.values()) - card + RESERVE:.1f} GB missing"


TRUTHS = [
    {"size": 256, "rank": 32},
    {"size": 256, "rank": 32, "checkpointing": True},
    {"size": 256, "rank": 8, "batch": 2, "checkpointing": True},
    {"size": 512, "rank": 16, "checkpointing": True},
]


def truth(options: argparse.Namespace) -> str:
    """Each in a process of its own: torch's allocator, the growth of the process, and the plan."""
    rows: list[list[str]] = []
    for settings in TRUTHS:
        command = [sys.executable, "-m", "benchmarks.memory_plan", "--one", json.dumps(settings)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(found, file=sys.stderr, flush=True)
        words = ", ".join(f"{name} {value}" if value is not True else name for name, value in settings.items())
        gib = [found[key] / 2**30 for key in ("plan", "allocator", "process")]
        rows.append([f"SD1.5, fp32, {words}", *(f"{value:.2f}" for value in gib),
                     f"{gib[0] / gib[1]:.3f}", f"{gib[0] / gib[2]:.3f}"])  # fmt: skip
    return markdown(["GB", "plan", "allocator", "process", "plan / allocator", "plan / process"], rows)


def one(settings: dict[str, Any]) -> None:
    """Two updates of the real session on SD1.5 with random weights; prints bytes as JSON."""
    from benchmarks.lora_load import peak
    from benchmarks.memory_truth import Allocated, resident
    from benchmarks.model_shapes import fill

    pack = start_host()
    torch.set_num_threads(1)
    before = resident()
    session, job, model = pack("nodes.training.session"), pack("nodes.training.job"), MODELS["sd15"]
    distill = pack("pcm_core.distill")
    side = settings["size"] // 8
    patcher = model.build(torch.float32, "cpu")
    fill(patcher.model.diffusion_model)
    text = model.conditioning()
    asked = job.Job(
        model=patcher, latents=[torch.randn(4, 4, side, side)], texts=[text], negative=text, rank=settings["rank"],
        config=distill.DistillConfig(steps=2, batch=settings.get("batch", 1), cfg=(4.0, 6.0)),
        checkpointing=settings.get("checkpointing", False),
    )  # fmt: skip
    weights = sum(weight.nbytes for weight in patcher.model.diffusion_model.parameters())
    found: dict[str, int] = {}
    step = distill.Trainer.step

    def watched(self: Any) -> Any:
        if self.step_number == 0:
            return step(self)
        self._zero_grad()
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        lying = sum(tensor.nbytes for tensor in [*self.adapters.parameters(), *self._good, *moments])
        with Allocated() as during:
            report = step(self)
        found["allocator"] = weights + lying + during.peak
        return report

    distill.Trainer.step = watched
    session.run(asked, session_metadata, rescue=False)
    found["process"] = int(peak() * 2**20) - before
    load = session.workload(asked, None)
    found["plan"] = pack("nodes.host.memory").plan(patcher, text, load).total
    print(json.dumps(found))


def session_metadata(steps: int) -> dict[str, str]:
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--truth", action="store_true", help="run SD1.5 and compare")
    parser.add_argument("--write", action="store_true", help="put the table into docs/distilling.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(json.loads(options.one))
        return
    text = truth(options) if options.truth else table(options.models, start_host())
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        mark = "truth" if options.truth else "plan"
        begin, end = BEGIN.replace("plan:", f"{mark}:"), END.replace("plan:", f"{mark}:")
        PAGE.write_text(re.sub(f"{begin}.*?{end}", f"{begin}\n{text}\n{end}", page, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
