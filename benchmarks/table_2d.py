"""Teacher, LCM and PCM at 1 to 16 steps in the 2-D world, laid out like Tables 1 and 2 of the PCM paper.

For each seed one network is fitted to the teacher's eps and then distilled with the library's objective for every
number of phases. LCM is the one-phase model, renoised at every step. Rows with more steps than phases really run them
all, which the nodes do not do by default. All rows of a seed start from the same noise.

    python -m benchmarks.table_2d [--seeds 3] [--phases 1 2 4 8 16] [--imitate 2500] [--distil 3000] [--plot out.png]

The defaults take about 40 s per number of phases and seed on one idle core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import markdown
from benchmarks.world_2d import (
    World,
    distil,
    exact_endpoint,
    imitate,
    sigma_table,
    sliced_wasserstein,
    start_noise,
)
from pcm_core.distill import Denoiser, SolverGrid, matching_grid
from pcm_core.phases import build_schedule
from pcm_core.sampling import sample_pcm, seeded_noise

STEPS = (1, 2, 4, 8, 16)
METRICS = {
    "data": "sliced Wasserstein distance to the data",
    "flow": "mean distance to the exact end of the teacher's flow, same noise",
    "self": "consistency: mean distance to the row's own 16 steps, same noise",
    "off": "fraction of samples off every mode",
}
Results = dict[tuple[str, int, str], list[float]]


@dataclass(frozen=True)
class Row:
    """A sampler: a model, its phases and its determinism."""

    name: str
    model: Denoiser
    phases: int = 1
    determinism: float = 1.0

    def sample(self, x: Tensor, table: Tensor, steps: int) -> Tensor:
        grid, spacing = matching_grid(self.phases)
        schedule = build_schedule(self.phases, steps, spacing=spacing, grid=grid, spend_extra_steps=True)
        sigmas = schedule.sigmas(table)
        noise = seeded_noise(x, steps)
        return sample_pcm(self.model, x, sigmas, determinism=self.determinism, noise_sampler=noise)


def rows(world: World, table: Tensor, phases: Sequence[int], options: argparse.Namespace, seed: int) -> Iterator[Row]:
    """Train the models of the table and yield one sampler at a time."""
    yield Row("teacher, DDIM", world.denoise)
    network = imitate(world, table, steps=options.imitate, seed=seed)
    for count in phases:
        grid, _ = matching_grid(count)
        solver = SolverGrid.from_table(table, count, grid, terminal="zero")
        student = distil(network, world, solver, steps=options.distil, seed=seed).denoiser
        if count == 1:
            yield Row("LCM: M = 1, renoised", student, 1, 0.0)
        yield Row("M = 1, deterministic" if count == 1 else f"PCM, M = {count}", student, count)


def measure(row: Row, world: World, table: Tensor, x: Tensor, data: Tensor, exact: Tensor) -> dict[int, list[float]]:
    """The metrics by step count, in the order of ``METRICS``."""
    ends = {steps: row.sample(x, table, steps) for steps in STEPS}
    return {
        steps: [
            sliced_wasserstein(end, data),
            (end - exact).norm(dim=1).mean().item(),
            (end - ends[STEPS[-1]]).norm(dim=1).mean().item(),
            world.off_mode(end),
        ]
        for steps, end in ends.items()
    }


def run(phases: Sequence[int], options: argparse.Namespace) -> tuple[Results, dict[str, Tensor]]:
    """Every metric of every row over the seeds, and the samples of the first seed with as many steps as phases."""
    world, table = World(), sigma_table()
    results: Results = defaultdict(list)
    pictures: dict[str, Tensor] = {}
    for seed in range(options.seeds):
        data = world.draw(options.samples, torch.Generator().manual_seed(1000 + seed))
        x = start_noise(options.samples, 2000 + seed, table)
        exact = exact_endpoint(world.denoise, x, table)
        for row in rows(world, table, phases, options, seed):
            for steps, values in measure(row, world, table, x, data, exact).items():
                for metric, value in zip(METRICS, values, strict=True):
                    results[row.name, steps, metric].append(value)
            if seed == 0:
                shown = 4 if row.phases == 1 else row.phases
                pictures[f"{row.name}, {shown} steps"] = row.sample(x, table, shown)
    return results, pictures


def tables(results: Results) -> str:
    """One table per metric: mean, and standard deviation if there are several seeds."""
    names = list(dict.fromkeys(name for name, _, _ in results))
    text: list[str] = []
    for metric, title in METRICS.items():
        body = [[name, *(_cell(results[name, steps, metric]) for steps in STEPS)] for name in names]
        text.append(f"**{title}**\n\n{markdown(['steps', *map(str, STEPS)], body)}")
    return "\n\n".join(text)


def _cell(values: list[float]) -> str:
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def scatter(pictures: dict[str, Tensor], path: Path) -> None:
    """Samples of every method side by side; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(pictures), 3.3), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.scatter(*points[:4000].T.tolist(), s=1, linewidths=0)
        axes.set(title=name, xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--phases", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--imitate", type=int, default=2500, help="iterations of the regression on the teacher")
    parser.add_argument("--distil", type=int, default=3000, help="iterations of each distillation")
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    began = time.process_time()
    results, pictures = run(options.phases, options)
    print(tables(results))
    print(f"\n{options.seeds} seed(s), {options.samples} samples, {time.process_time() - began:.0f} s of CPU time.")
    if options.plot:
        scatter(pictures, options.plot)


if __name__ == "__main__":
    main()
