"""Does the adversarial loss earn its place on pictures? LoRAs of the demo world trained on, with and without it.

    python -m benchmarks.experiments_demo [--seeds 1] [--steps 1500] [--pictures 1000] [--log runs.jsonl] [--table]

Every run goes on from the LoRA that the demo ships for M phases, for the same iterations at the same rate, on the same
draws ("none" is the adversarial code at weight 1e-9), and is sampled in N = M steps. "shipped" is where they start.
Measured as ``demo.score`` does, on noise that no README figure uses: the Frechet distance to the teacher's 50-step
pictures, the share of prompts met, and how crisp the edges are.

"last block" sees the output of the second of the network's two blocks; "low" and "high" renoise to the lower and the
upper quarter of the phase only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.demo_pictures import painter
from benchmarks.lora_2d import Log
from demo.distill import CFG, GRID, TABLE, Denoiser, PoolData, save_lora
from demo.score import World, grade, prompts_for, teacher_reference
from demo.teacher import LatentPool
from demo.train_vae import WEIGHTS
from pcm_core import distill

SHIPPED = {1: "demo_lcm", 2: "demo_pcm_2phase", 4: "demo_pcm_4phase", 8: "demo_pcm_8phase"}
NOISE = (11, 12)  # seeds of the pictures
RATE = 1.5e-4
ROWS: dict[str, dict[str, Any]] = {
    "none": {"weight": 1e-9},
    "as the paper: weight 0.1, heads 1e-5": {"rate": 1e-5},
    "weight 0.1, heads 1e-3": {},
    "weight 1, heads 1e-3": {"weight": 1.0},
    "weight 0.1, last block": {"depth": 1},
    "weight 0.1, low": {"span": (0.0, 0.25)},
    "weight 0.1, high": {"span": (0.75, 1.0)},
}


@cache
def world() -> World:
    return World.load()


@cache
def pool() -> LatentPool:
    return LatentPool(world().vae, 16_000, seed=1)


@cache
def reference(pictures: int) -> tuple[np.ndarray, np.ndarray]:
    return teacher_reference(world(), pictures)


def measure(lora: Path, phases: int, pictures: int) -> dict[str, float]:
    """The mean over the noise seeds."""
    prompts = prompts_for(pictures)
    paint = painter(world(), lora, [1.0] * phases, prompts)
    rows = [grade(world().judge, paint(seed), prompts, reference(pictures)) for seed in NOISE]
    return dict(zip(("FDt", "accuracy", "crisp"), np.mean(rows, axis=0).tolist(), strict=True))


def shipped(phases: int, pictures: int) -> list[dict[str, Any]]:
    return [measure(WEIGHTS / f"{SHIPPED[phases]}.safetensors", phases, pictures)]


def trained(
    seed: int, phases: int, steps: int, pictures: int, *, weight: float = 0.1, rate: float = 1e-3, depth: int = 2,
    span: tuple[float, float] = (0.0, 1.0),
) -> list[dict[str, Any]]:  # fmt: skip
    """Go on from the shipped LoRA of M = ``phases`` and sample at N = M."""
    teacher = world().teacher
    start = {name: value.float() for name, value in load_file(WEIGHTS / f"{SHIPPED[phases]}.safetensors").items()}
    rank = next(len(value) for name, value in start.items() if name.endswith("lora_down.weight"))
    matrices = {name: module for name, module in distill.adaptable(teacher).items() if isinstance(module, nn.Linear)}
    adapters = distill.Adapters(matrices, rank)
    adapters.load_lora(start)
    config = distill.DistillConfig(
        phases=phases, grid=GRID, terminal="zero", steps=steps, batch=64, lr=RATE, cfg=(CFG, CFG), ema=0.995,
        seed=seed, adversarial=weight, adversarial_lr=rate, adversarial_span=span,
    )  # fmt: skip

    def backbone(x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return Denoiser(teacher, pool().text(captions))(x, sigma)

    features = distill.BlockFeatures(backbone, list(distill.blocks(teacher))[-depth:])
    with torch.no_grad():
        seen = features(torch.zeros(1, 16, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    heads = distill.Heads([part.shape[-1] for part in seen], 64, torch.Generator().manual_seed(seed))
    with adapters.attached():
        adversary = distill.Adversary(features, heads)
        trainer = distill.Trainer(backbone, adapters, PoolData(pool()), TABLE, config, flow=True, adversary=adversary)
        chance: list[float] = []
        began = time.monotonic()
        trainer.run(lambda report: chance.append(report.discriminator_loss))
    with tempfile.TemporaryDirectory() as folder:
        save_lora(adapters.lora(average=True), "lora.safetensors", phases, steps, RATE, Path(folder))
        figures = measure(Path(folder) / "lora.safetensors", phases, pictures)
    last = max(len(chance) // 5, 1)
    figures["discriminator"] = sum(chance[-last:]) / last  # its hinge loss, 2 is chance
    figures["minutes"] = (time.monotonic() - began) / 60
    return [figures]


def fill(log: Log, phases: Sequence[int], seeds: Sequence[int], steps: int, pictures: int) -> None:
    """Run what is missing, the main rows of every M first."""
    for m in phases:
        log.once({"row": "shipped", "phases": m}, partial(shipped, m, pictures))
    for names in (list(ROWS)[:4], list(ROWS)[4:]):
        for seed in seeds:
            for m in phases:
                for name in names:
                    key = {"row": name, "phases": m, "seed": seed}
                    log.once(key, partial(trained, seed, m, steps, pictures, **ROWS[name]))


def tables(log: Log) -> str:
    titles = {
        "FDt": "FDt at N = M, lower is better", "accuracy": "prompt accuracy", "crisp": "edge sharpness",
        "discriminator": "loss of the discriminator at the end, 2 is chance",
    }  # fmt: skip
    parts: list[str] = []
    for metric, title in titles.items():
        rows = Log(None, [line for line in log.lines if metric in line])
        parts.append(f"**{title}**\n\n" + rows.table(metric, "row", "phases"))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="The adversarial loss in the demo world.")
    parser.add_argument("--phases", type=int, nargs="+", default=[2, 1, 4])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = Log.open(options.log)
    if not options.table:
        fill(log, options.phases, range(options.seeds), options.steps, options.pictures)
    print(tables(log))


if __name__ == "__main__":
    main()
