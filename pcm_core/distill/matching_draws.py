"""What is random in an update of the matching stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sigma_table import SigmaTable
from .bank import Bank
from .matching import stratified_levels
from .matching_config import MatchingConfig


@dataclass(frozen=True)
class MatchingBatch:
    """A process's part of a drawn batch.

    Attributes:
        phase: that is matched.
        rows, captions: of the bank, [B].
        level, noise: to renoise the landings with, [B] and [B, ...].
        guidance_level, guidance_noise: the same for the guidance part.
        held_rows: of the bank, whose upper jumps are held.
        renoising: noise between renoised steps, [B, steps - 1, ...]; empty for jumps along the phase edges.
    """

    phase: int
    rows: Tensor
    captions: Tensor
    level: Tensor
    noise: Tensor
    guidance_level: Tensor
    guidance_noise: Tensor
    held_rows: Tensor
    renoising: Tensor


@dataclass(frozen=True)
class Draws:
    """Draws global batches and keeps one process's ``part``; ``generator`` is the trainer's, on the CPU."""

    config: MatchingConfig
    bank: Bank
    edges: tuple[float, ...]
    table: SigmaTable | Tensor
    generator: torch.Generator
    part: slice
    flow: bool

    def batch(self) -> MatchingBatch:
        config, generator = self.config, self.generator
        last = config.phases - 1
        phase = int(torch.randint(config.phases, (), generator=generator)) if config.phase == "random" else last
        rows, held = (
            torch.randint(len(self.bank), (config.batch,), generator=generator)[self.part] for _ in range(2)
        )  # fmt: skip
        level, noise = self.levels(phase), self.noise()
        guidance_level, guidance_noise = level, noise
        if config.matched_cfg not in (None, config.cfg):
            guidance_level, guidance_noise = self.levels(phase, config.guidance_span), self.noise()
        between = max(0, config.renoised - 1)
        renoising = torch.stack([self.noise() for _ in range(between)], 1) if between else noise[:, None][:, :0]
        captions = self.bank.captions[rows]
        return MatchingBatch(phase, rows, captions, level, noise, guidance_level, guidance_noise, held, renoising)

    def levels(self, phase: int, span: tuple[float, float] | None = None) -> Tensor:
        """Levels [B] of the phase, or from its lower edge to the top of the path."""
        high = self.edges[phase if self.config.reach == "phase" else 0]
        return stratified_levels(
            self.table, self.edges[phase + 1], high, self.config.batch, self.generator, span or self.config.span,
            flow=self.flow,
        )[self.part]  # fmt: skip

    def noise(self) -> Tensor:
        """Unit noise [B, ...] like latents of the bank."""
        return torch.randn(self.config.batch, *self.bank.ends.shape[1:], generator=self.generator)[self.part]
