"""Are captions enough? The demo world's LoRA trained on latents that the teacher drew itself, and on drawings.

    python -m benchmarks.experiments_captions [--sets drawings "captions, 8 each"] [--seeds 3] [--steps 600]
        [--pictures 1000] [--log runs.jsonl] [--table]

"drawings" are 16,000 encoded drawings, like those that the teacher was trained on; fewer of them tell the number of
latents from their kind. "captions, n each" are n latents for each of the world's 136 captions, drawn as Distill PCM
LoRA draws them: 20 Euler steps without guidance, each from a seed of its own; "guided" with the guidance that is
distilled. All else is equal: M = 4 phases, rank 16, batch 32, the same iterations, learning rate and seeds. Measured at
4 steps as in ``demo.score``: FDt is the Frechet distance to the teacher's 50-step pictures, "minutes" is training,
"drawing" the minutes of making the latents.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments_demo import measure, world
from benchmarks.lora_2d import Log
from demo.distill import CFG, TABLE, Denoiser, distil, save_lora
from demo.teacher import LatentPool
from demo.world import all_prompts, embed
from pcm_core.phases import eval_timesteps
from pcm_core.sampling import sample_pcm

PHASES, RANK, RATE, BATCH = 4, 16, 1e-3, 32
TEACHER_STEPS = 20  # of nodes/training/states.py, which the host would have to run


@dataclass
class Drawn:
    """Latents that the teacher drew from every caption of the world; ``prompt_ids`` are indices of its captions."""

    latents: Tensor
    prompt_ids: Tensor
    context: Tensor
    pooled: Tensor

    def text(self, prompt_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.context[prompt_ids], self.pooled[prompt_ids]


@cache
def drawings(count: int) -> LatentPool:
    pool = LatentPool(world().vae, max(count, 250), seed=1)
    pool.latents, pool.prompt_ids = pool.latents[:count], pool.prompt_ids[:count]
    return pool


@torch.no_grad()
def _sampled(number: int, cfg: float) -> Tensor:
    """The ``number``-th latent of every caption."""
    captions = all_prompts()
    seeds = range(number * len(captions), (number + 1) * len(captions))
    noise = torch.stack([torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    sigmas = torch.stack([*(TABLE[t] for t in eval_timesteps(TEACHER_STEPS)), torch.tensor(0.0)])
    text, null = embed(list(captions)), embed([None] * len(captions))
    return sample_pcm(Denoiser(world().teacher, text, None, cfg, null), noise, sigmas, flow=True)


@cache
def captions_alone(each: int, cfg: float = 1.0) -> Drawn:
    context, pooled = embed([*all_prompts(), None])
    latents = torch.cat([_sampled(number, cfg) for number in range(each)]).clone()
    return Drawn(latents, torch.arange(len(latents)) % len(all_prompts()), context, pooled)


SETS = {
    "drawings": lambda: drawings(16_000),
    "captions, 1 each": lambda: captions_alone(1),
    "captions, 8 each": lambda: captions_alone(8),
    "captions, 32 each": lambda: captions_alone(32),
    "captions, 1 each, guided": lambda: captions_alone(1, CFG),
    "captions, 8 each, guided": lambda: captions_alone(8, CFG),
    "136 drawings": lambda: drawings(136),
    "1,000 drawings": lambda: drawings(1000),
}


def trained(name: str, seed: int, steps: int, pictures: int) -> list[dict[str, Any]]:
    began = time.monotonic()
    pool = SETS[name]()
    drawing, began = (time.monotonic() - began) / 60, time.monotonic()
    lora = distil(world().teacher, pool, PHASES, steps, rank=RANK, lr=RATE, seed=seed, batch=BATCH)
    minutes = (time.monotonic() - began) / 60
    with tempfile.TemporaryDirectory() as folder:
        save_lora(lora, "lora.safetensors", PHASES, steps, RATE, Path(folder))
        figures = measure(Path(folder) / "lora.safetensors", PHASES, pictures)
    return [{"M": PHASES, "minutes": minutes, "drawing": drawing, "latents": len(pool.latents), **figures}]


def tables(log: Log) -> str:
    titles = {"FDt": "FDt at 4 steps, lower is better", "accuracy": "prompt accuracy", "minutes": "minutes of training"}
    return "\n\n".join(f"**{title}**\n\n" + log.table(key, "row", "M") for key, title in titles.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = Log.open(options.log)
    for name in () if options.table else options.sets:
        for seed in range(options.seeds):
            key = {"row": name, "seed": seed, "steps": options.steps}
            log.once(key, partial(trained, name, seed, options.steps, options.pictures))
    print(tables(log))


if __name__ == "__main__":
    main()
