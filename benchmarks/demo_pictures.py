"""Pictures of the demo world with one cfg per step, made by ``pcm_core``. Shared by two benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from demo.distill import TABLE, Denoiser, load_lora
from demo.score import BATCH, World
from demo.world import Prompt, embed
from pcm_core.guidance import phase_at
from pcm_core.phases import eval_timesteps
from pcm_core.sampling import sample_pcm


class PhaseGuided:
    """A denoiser whose cfg depends on the phase."""

    def __init__(self, model: Denoiser, values: Sequence[float], tops: Sequence[float]) -> None:
        self.model, self.values, self.tops = model, values, tops

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.model.cfg = self.values[phase_at(float(sigma[0]), self.tops)]
        return self.model(x, sigma)


def painter(world: World, lora: Path | None, cfg: Sequence[float], prompts: list[Prompt]) -> Callable[[int], Tensor]:
    """A function from a seed to pictures [B, 3, 64, 64], with one step per value of ``cfg``; loads the models first."""
    sigmas = torch.stack([*(TABLE[t] for t in eval_timesteps(len(cfg))), torch.tensor(0.0)])
    weights = load_lora(lora.name, world.teacher, lora.parent) if lora else None
    parts = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    texts = [(embed(list(part)), embed([None] * len(part))) for part in parts]
    models = [PhaseGuided(Denoiser(world.teacher, text, weights, 1.0, null), cfg, sigmas[:-1].tolist())
              for text, null in texts]  # fmt: skip

    @torch.inference_mode()
    def paint(seed: int) -> Tensor:
        noise = torch.randn(len(prompts), 16, 8, 8, generator=torch.Generator().manual_seed(seed))
        latents = (sample_pcm(m, x, sigmas, flow=True) for m, x in zip(models, noise.split(BATCH), strict=True))
        return torch.cat([world.vae.decode(latent).clamp(0, 1) for latent in latents])

    return paint


def evaluations(cfg: Sequence[float]) -> int:
    """Model evaluations per picture: two for a guided step, one at cfg 1."""
    return sum(1 if value == 1 else 2 for value in cfg)
