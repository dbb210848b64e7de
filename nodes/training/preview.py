"""What the student makes of fixed noise, side by side, while it trains."""

from __future__ import annotations

import torch
from PIL import Image

from ...pcm_core.phases import build_schedule
from ...pcm_core.sampling import sample_pcm
from ..host import training as host_training
from .job import Job
from .matching import Loaded

_PREVIEWS = 4


class Preview:
    """One image per text, in as many steps as phases; ``None`` for models that the host cannot preview."""

    def __init__(self, job: Job, loaded: Loaded) -> None:
        self.job, self.loaded = job, loaded
        self.decode = host_training.previewer(job.model)

    @torch.no_grad()
    def draw(self) -> Image.Image | None:
        if self.decode is None:
            return None
        config, loaded = self.job.config, self.loaded
        captions = torch.arange(_PREVIEWS) % len(self.job.texts)
        shape = (len(captions), *self.job.latents[0].shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed)).to(loaded.device)
        schedule = build_schedule(config.phases, spacing=config.spacing, grid=config.grid, terminal=config.terminal)
        sigmas = schedule.sigmas(loaded.table)
        x = noise * (float(sigmas[0]) if loaded.flow else (1 + float(sigmas[0]) ** 2) ** 0.5)
        with loaded.adapters.use("ema"):
            latents = sample_pcm(lambda x, sigma: loaded.backbone(x, sigma, captions), x, sigmas)
        tiles = [self.decode(latent) for latent in latents.split(1)]
        sheet = Image.new("RGB", (sum(tile.width for tile in tiles), tiles[0].height))
        for i, tile in enumerate(tiles):
            sheet.paste(tile, (i * tile.width, 0))
        return sheet
