"""Is the adversarial loss worth its cost on images? LoRAs of the demo world trained further, with and without it.

    python -m benchmarks.experiments_demo [--seeds 1] [--steps 1500] [--pictures 1000] [--log runs.jsonl] [--table]

Every run starts from the LoRA that the demo ships for M phases, trains for the same iterations at the same learning
rate on the same draws ("none" is the adversarial code at weight 1e-9), and is sampled in N = M steps. "shipped" is the
starting point. Measured as in ``demo.score``, on noise that no README figure uses: the Frechet distance to the
teacher's 50-step pictures, prompt accuracy and edge sharpness.

With "last block" the discriminator sees only the output of the second of the network's two blocks; "low" and "high"
renoise to the lower and the upper quarter of the phase only.
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

from benchmarks.demo_pictures import painter
from benchmarks.lora_2d import Log
from demo.distill import Critic, distil, save_lora
from demo.score import World, grade, prompts_for, teacher_reference
from demo.teacher import LatentPool
from demo.train_vae import WEIGHTS

SHIPPED = {1: "demo_lcm", 2: "demo_pcm_2phase", 4: "demo_pcm_4phase", 8: "demo_pcm_8phase"}
NOISE = (11, 12)  # seeds of the pictures
RATE = 1.5e-4
ALL = (0.0, 1.0)
ROWS = {
    "none": Critic(1e-9, span=ALL),
    "as the paper: weight 0.1, heads 1e-5": Critic(rate=1e-5, span=ALL),
    "weight 0.1, heads 1e-3": Critic(span=ALL),
    "weight 1, heads 1e-3": Critic(1.0, span=ALL),
    "weight 0.1, last block": Critic(span=ALL, depth=1),
    "weight 0.1, low": Critic(),
    "weight 0.3, low": Critic(0.3),
    "weight 1, low": Critic(1.0),
    "weight 0.1, high": Critic(span=(0.75, 1.0)),
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
    """Mean scores over the noise seeds."""
    prompts = prompts_for(pictures)
    paint = painter(world(), lora, [1.0] * phases, prompts)
    rows = [grade(world().judge, paint(seed), prompts, reference(pictures)) for seed in NOISE]
    return dict(zip(("FDt", "accuracy", "crisp"), np.mean(rows, axis=0).tolist(), strict=True))


def shipped(phases: int, pictures: int) -> list[dict[str, Any]]:
    return [measure(WEIGHTS / f"{SHIPPED[phases]}.safetensors", phases, pictures)]


def trained(seed: int, phases: int, steps: int, pictures: int, critic: Critic) -> list[dict[str, Any]]:
    """Train further from the shipped LoRA of M = ``phases`` and sample at N = M."""
    start = {name: value.float() for name, value in load_file(WEIGHTS / f"{SHIPPED[phases]}.safetensors").items()}
    rank = next(len(value) for name, value in start.items() if name.endswith("lora_down.weight"))
    chance: list[float] = []
    began = time.monotonic()
    lora = distil(
        world().teacher, pool(), phases, steps, rank=rank, lr=RATE, start=start, seed=seed, critic=critic,
        on_step=lambda report: chance.append(report.discriminator_loss),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save_lora(lora, "lora.safetensors", phases, steps, RATE, Path(folder))
        figures = measure(Path(folder) / "lora.safetensors", phases, pictures)
    last = max(len(chance) // 5, 1)
    figures["discriminator"] = sum(chance[-last:]) / last  # its hinge loss; 2 is chance
    figures["minutes"] = (time.monotonic() - began) / 60
    return [figures]


def fill(log: Log, phases: Sequence[int], seeds: Sequence[int], steps: int, pictures: int) -> None:
    """Run the missing rows, starting with the main rows of every M."""
    for m in phases:
        log.once({"row": "shipped", "phases": m}, partial(shipped, m, pictures))
    for names in (list(ROWS)[:4], list(ROWS)[4:]):
        for seed in seeds:
            for m in phases:
                for name in names:
                    key = {"row": name, "phases": m, "seed": seed}
                    log.once(key, partial(trained, seed, m, steps, pictures, ROWS[name]))


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
