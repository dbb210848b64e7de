"""The usable cfg range of a few-step LoRA: distilled at CFG 3 against distilled without guidance.

    python -m benchmarks.experiments_cfg [--steps 300] [--pictures 136] [--seeds 1] [--log runs.jsonl] [--table]

Both LoRAs: the demo world's image model, M = 4, rank 16, batch 16, the same iterations and the same draws. "CFG-free"
is ``cfg (1, 1)`` with 10 % of the captions dropped. Each is sampled in 4 steps at inference cfg 1 to 5, the teacher
in 8. For each cfg:

- FDt: Frechet distance of judge features to the teacher's pictures in 8 steps from other noise, at cfg 3 and at the
  same cfg, which is what a user who changes cfg expects. With few pictures every distance is biased upwards; the
  teacher's own row shows by how much. Prompts are used in turn: fewer than 136 pictures do not cover every shape.
- accuracy: shape, colour and background match the prompt.
- overexposed: fraction of decoded values outside 0..1 by more than 0.05 before clipping.
- negative: the positive prompt is empty and the negative describes a picture; how often that shape and colour appear
  anyway. At cfg 1 the negative is not used; a lower fraction than there means that it works.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lora_2d import Log
from demo.distill import CFG, GRID, TABLE, Denoiser, PoolData
from demo.judge import correct
from demo.mmdit import MMDiT
from demo.score import BATCH, World, features_of, frechet, labels_of, moments, prompts_for
from demo.taesd import Autoencoder
from demo.teacher import LatentPool
from demo.world import embed
from pcm_core import distill
from pcm_core.phases import eval_timesteps
from pcm_core.sampling import sample_pcm

PHASES, RANK = 4, 16
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
TEACHER_STEPS = 8
METHODS: dict[str, dict[str, Any]] = {
    "CFG-augmented, distilled at 3": {"cfg": (CFG, CFG)},
    "CFG-free, captions dropped": {"cfg": (1.0, 1.0), "caption_dropout": 0.1},
}


@cache
def world() -> World:
    return World.load()


@cache
def pool(vae: Autoencoder) -> LatentPool:
    return LatentPool(vae, 500, 5)


def train(teacher: MMDiT, seed: int, steps: int, **options: Any) -> distill.Adapters:
    """A trained LoRA on every matrix of the teacher, not attached."""
    texts = pool(world().vae)
    matrices = {name: module for name, module in distill.adaptable(teacher).items() if isinstance(module, nn.Linear)}
    adapters = distill.Adapters(matrices, RANK, generator=torch.Generator().manual_seed(seed))
    config = distill.DistillConfig(
        phases=PHASES, grid=GRID, steps=steps, batch=16, lr=1e-3, ema=0.99, seed=seed, **options
    )  # fmt: skip

    def backbone(x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return Denoiser(teacher, texts.text(captions))(x, sigma)

    with adapters.attached():
        distill.Trainer(backbone, adapters, PoolData(texts), TABLE, config, flow=True).run()
    return adapters


@torch.inference_mode()
def pictures(steps: int, cfg: float, count: int, seed: int, *, as_negative: bool = False) -> Tensor:
    """Decoded values [B, 3, 64, 64], not clipped, sampled with the network in its present state."""
    given, found = world(), []
    prompts = prompts_for(count)
    sigmas = torch.stack([*(TABLE[t] for t in eval_timesteps(steps)), torch.tensor(0.0)])
    noise = torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(seed))
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        text, empty = embed(list(prompts[rows])), embed([None] * len(prompts[rows]))
        positive, negative = (empty, text) if as_negative else (text, empty)
        model = Denoiser(given.teacher, positive, None, cfg, negative)
        found.append(given.vae.decode(sample_pcm(model, noise[rows], sigmas, flow=True)))
    return torch.cat(found)


@cache
def reference(steps: int, cfg: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    return moments(features_of(world().judge, pictures(steps, cfg, count, seed=9_000).clamp(0, 1)))


def measure(steps: int, cfg: float, count: int, seed: int, targets: dict[str, Any]) -> dict[str, float]:
    made = pictures(steps, cfg, count, seed)
    features, scene = features_of(world().judge, made.clamp(0, 1)), labels_of(prompts_for(count))
    against = features_of(world().judge, pictures(steps, cfg, count, seed, as_negative=True).clamp(0, 1))
    return {name: frechet(moments(features), target) for name, target in targets.items()} | {
        "accuracy": correct(world().judge, features, scene).all(1).float().mean().item(),
        "overexposed": ((made < -0.05) | (made > 1.05)).float().mean().item(),
        "negative": correct(world().judge, against, scene)[:, :2].all(1).float().mean().item(),
    }


def sweep(name: str, seed: int, steps: int, count: int) -> list[dict[str, Any]]:
    """One method at every cfg of ``SCALES``; the teacher if the name is not in ``METHODS``."""
    teacher = world().teacher
    targets = {cfg: {"fd_3": reference(TEACHER_STEPS, CFG, count), "fd_same": reference(TEACHER_STEPS, cfg, count)}
               for cfg in SCALES}  # fmt: skip
    if name not in METHODS:
        return [{"cfg": cfg} | measure(TEACHER_STEPS, cfg, count, seed, targets[cfg]) for cfg in SCALES]
    adapters = train(teacher, seed, steps, **METHODS[name])
    with adapters.attached(), adapters.use("ema"):
        return [{"cfg": cfg} | measure(PHASES, cfg, count, seed, targets[cfg]) for cfg in SCALES]


def tables(log: Log) -> str:
    measures = {
        "fd_3": ("FDt to the teacher's pictures at cfg 3", 2),
        "fd_same": ("FDt to the teacher's pictures at the same cfg", 2),
        "accuracy": ("prompt accuracy", 3),
        "overexposed": ("share of overexposed values", 4),
        "negative": ("share of pictures that show what the negative names", 3),
    }
    return "\n\n".join(
        f"**{title}**\n\n" + log.table(key, "row", "cfg", digits, experiment="cfg")
        for key, (title, digits) in measures.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="CFG range of distilled LoRAs in the demo world.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=136)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = Log.open(options.log)
    for seed in range(0 if options.table else options.seeds):
        for name in (*METHODS, "teacher, 8 steps"):
            key = {"experiment": "cfg", "row": name, "seed": seed}
            log.once(key, partial(sweep, name, seed, options.steps, options.pictures))
    print(tables(log))


if __name__ == "__main__":
    main()
