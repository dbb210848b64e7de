"""LoRAs of the 2-D world, trained with the library's own trainer: the code that its experiments share.

For each seed one network is fitted to the exact teacher. It then is the teacher, as a real model would be: the network
with its LoRA ``off``. Every finished run is one line of a log, so an interrupted experiment continues where it stopped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import markdown
from benchmarks.world_2d import (
    Network,
    World,
    exact_endpoint,
    imitate,
    sigma_table,
    sliced_wasserstein,
    start_noise,
)
from pcm_core import distill
from pcm_core.phases import build_schedule
from pcm_core.sampling import sample_pcm

TABLE = sigma_table()
SAMPLES = 8192
RANK = 16
GRID = 40  # its phase edges are the trailing timesteps for 1, 2, 4 and 8 phases


@dataclass(frozen=True)
class Points:
    """Training data: points of the world, with a single caption."""

    clean: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.clean), (count,), generator=generator)

    def latents(self, rows: Tensor) -> Tensor:
        return self.clean[rows]

    def captions(self, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), dtype=torch.int64)


@dataclass(frozen=True)
class Bench:
    """Everything of one seed: the teacher, the training data, and the reference for samples."""

    network: Network
    train: Points
    data: Tensor
    start: Tensor
    exact: Tensor

    def backbone(self, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return self.network.denoiser(x, sigma)

    def adapters(self, seed: int) -> distill.Adapters:
        matrices = distill.adaptable(self.network)
        return distill.Adapters(matrices, RANK, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def measure(self, phases: int, steps: int) -> dict[str, float]:
        """Sample the network in its present state; distances as in table_2d."""
        grid, spacing = distill.matching_grid(phases)
        sigmas = build_schedule(phases, steps, spacing=spacing, grid=grid, spend_extra_steps=True).sigmas(TABLE)
        end = sample_pcm(self.network.denoiser, self.start, sigmas)
        return {
            "data": sliced_wasserstein(end, self.data),
            "flow": (end - self.exact).norm(dim=1).mean().item(),
            "off": World().off_mode(end),
        }


@cache
def bench(seed: int) -> Bench:
    """The world of a seed, with a teacher trained for 2,000 regression steps."""
    world = World()
    start = start_noise(SAMPLES, 2000 + seed, TABLE)
    return Bench(
        network=imitate(world, TABLE, steps=2000, batch=192, seed=seed).requires_grad_(False),
        train=Points(world.draw(65_536, torch.Generator().manual_seed(3000 + seed))),
        data=world.draw(SAMPLES, torch.Generator().manual_seed(1000 + seed)),
        start=start,
        exact=exact_endpoint(world.denoise, start, TABLE),
    )


def settings(phases: int, steps: int, seed: int, **more: Any) -> distill.DistillConfig:
    return distill.DistillConfig(
        phases=phases, grid=GRID, steps=steps, batch=128, lr=1e-3, warmup=50, ema=0.995, seed=seed, **more
    )  # fmt: skip


def train(
    where: Bench, adapters: distill.Adapters, config: distill.DistillConfig,
    discriminator: distill.Discriminator | None = None,
    kind: type[distill.Trainer] = distill.Trainer, before_step: Callable[[distill.Trainer], None] | None = None,
) -> None:  # fmt: skip
    """Train attached ``adapters``; ``before_step`` may change the trainer's grid."""
    trainer = kind(where.backbone, adapters, where.train, TABLE, config, flow=False, discriminator=discriminator)
    for _ in range(config.steps):
        if before_step is not None:
            before_step(trainer)
        trainer.step()


@dataclass(frozen=True)
class Log:
    """Finished runs, one JSON line each; kept in memory if there is no path."""

    path: Path | None
    lines: list[dict[str, Any]]

    @classmethod
    def open(cls, path: Path | None) -> Log:
        known = path.read_text("utf-8").splitlines() if path is not None and path.exists() else []
        return cls(path, [json.loads(line) for line in known])

    def once(self, key: dict[str, Any], run: Callable[[], Sequence[dict[str, Any]]]) -> None:
        """Run unless the log has ``key`` already; every line that ``run`` returns is stored with it."""
        if any(all(line.get(name) == value for name, value in key.items()) for line in self.lines):
            return
        new = [key | line for line in run()]
        self.lines.extend(new)
        for line in new:
            print(json.dumps(line), flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)

    def table(self, metric: str, row: str, column: str, digits: int = 3, **only: Any) -> str:
        """Mean and standard deviation of a metric over the seeds; rows and columns in the order of the log."""
        cells: dict[tuple[str, str], list[float]] = {}
        for line in self.lines:
            if all(line.get(name) == value for name, value in only.items()):
                cells.setdefault((str(line[row]), str(line[column])), []).append(line[metric])
        rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
        body = [[name, *(_cell(cells.get((name, title), []), digits) for title in columns)] for name in rows]
        return markdown([row, *(f"{column} {title}" for title in columns)], body)


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (one seed)"
    return f"{statistics.mean(values):.{digits}f} +- {statistics.stdev(values):.{digits}f}"
