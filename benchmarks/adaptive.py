"""Do phase edges fitted to a model beat uniform ones? Plain few-step sampling, and PCM distilled on either.

Uniform edges spend as many evaluations where the path is straight as where it bends. The fit: one 50-step run on a few
starting points gives the error of every possible jump. From each point, the model's x0 says where a jump to any later
point would land, and the run says where it should land. Dynamic programming then finds the M jumps with the least total
error. Uniform edges lie on the same 50 points. All figures use other noise than the fit.

    python -m benchmarks.adaptive --world 2d                 the exact teacher of the 2-D world
    python -m benchmarks.adaptive --world 2d --distil        PCM distilled on both kinds of edges there
    python -m benchmarks.adaptive --world demo               the picture teacher, judged as in demo/score.py
    python -m benchmarks.adaptive --world demo --distil      LoRAs of it on both kinds of edges
    python -m benchmarks.adaptive --world demo --by-hand     LoRAs of it whose last phase is shorter and shorter
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.world_2d import (
    World,
    distil,
    exact_endpoint,
    imitate,
    markdown,
    sigma_table,
    sliced_wasserstein,
    start_noise,
)
from demo import score
from demo.distill import CFG, TABLE, PoolData, save_lora
from demo.distill import Denoiser as Guided
from demo.teacher import LatentPool
from demo.world import all_prompts, embed
from pcm_core.distill import Adapters, Denoiser, DistillConfig, SolverGrid, Trainer, adaptable
from pcm_core.errors import PCMError
from pcm_core.phases import eval_timesteps, phase_edges
from pcm_core.sampling import check_sigmas, jump, sample_pcm

GRID = 50
POINTS = [1000 - 1 - i * (1000 // GRID) for i in range(GRID)]
Cells = Iterator[tuple[str, tuple[float, ...]]]
BY_HAND = (
    (999, 739, 499, 239), (999, 699, 399, 199), (999, 659, 339, 139), (999, 599, 299, 99),
    (999, 499), (999, 399), (999, 299),
)  # fmt: skip
HEAD_2D = ("SW to data", "distance to the exact end", "off mode")
HEAD_DEMO = ("FDt", "accuracy", "RMS to the 50-step latent")


@torch.no_grad()
def jump_errors(model: Denoiser, x: Tensor, sigmas: Tensor, *, flow: bool) -> Tensor:
    """The error of every jump along ``sigmas``, at one model evaluation per point.

    Args:
        model: ``(x, sigma [B]) -> x0``.
        x: starting points [B, ...] at ``sigmas[0]``; a few dozen are enough.
        sigmas: [n + 1] strictly descending, the fine grid; the run along it is the reference.
        flow: a flow model; other models are compared at unit variance, since their latents grow with sigma.

    Returns:
        float64 [n + 1, n + 1]; entry (i, j) with i < j is the root mean square distance between the jump from point i
        to point j and the run at point j. All other entries are infinite.

    Raises:
        PCMError: as ``check_sigmas``.
    """
    levels = check_sigmas(sigmas)
    states: list[Tensor] = [x]
    predictions: list[Tensor] = []
    for sigma, below in pairwise(levels):
        predictions.append(model(states[-1], sigma * x.new_ones(len(x))))
        states.append(jump(states[-1], predictions[-1], sigma, below))
    errors = torch.full((len(levels), len(levels)), torch.inf, dtype=torch.float64)
    for i, predicted in enumerate(predictions):
        for j in range(i + 1, len(levels)):
            miss = jump(states[i], predicted, levels[i], levels[j]) - states[j]
            scale = 1.0 if flow else (1 + levels[j] ** 2) ** -0.5
            errors[i, j] = miss.double().square().mean().sqrt() * scale
    return errors


def cheapest_chain(errors: Tensor, jumps: int) -> tuple[int, ...]:
    """The points to jump from, descending in noise, with the least total cost to the last point.

    Args:
        errors: [n + 1, n + 1], cost of the jump from point i to point j.
        jumps: number of jumps, 1 to n.

    Raises:
        PCMError: if there are more jumps than points.
    """
    points = len(errors) - 1
    if not 1 <= jumps <= points:
        raise PCMError(f"{jumps} jumps on {points} points.", f"1 to {points}.", "Use fewer phases or a finer grid.")
    best = torch.full((points + 1,), torch.inf, dtype=torch.float64)
    best[0] = 0
    origins: list[Tensor] = []
    for _ in range(jumps):
        best, origin = (best[:, None] + errors).min(0)
        origins.append(origin)
    chain = [points]
    for origin in reversed(origins):
        chain.append(int(origin[chain[-1]]))
    return tuple(reversed(chain[1:]))


def levels(table: Tensor, timesteps: Sequence[int]) -> Tensor:
    """Sigmas of the timesteps, followed by 0."""
    return torch.cat([table[list(timesteps)], torch.zeros(1)])


def candidates(errors: Tensor, phases: int, *, distilled: bool) -> dict[str, list[int]]:
    """Evaluation timesteps by name, descending; the pack uses ``trailing`` for models that are not distilled."""
    rows = {"uniform": [POINTS[0], *reversed(phase_edges(phases, GRID)[1:])]}
    if not distilled:
        rows["trailing"] = list(eval_timesteps(phases))
    return rows | {"adaptive": [POINTS[i] for i in cheapest_chain(errors, phases)]}


def fitted_grid(table: Tensor, timesteps: Sequence[int]) -> SolverGrid:
    """A solver grid whose phases begin at ``timesteps`` instead of being even."""
    even = SolverGrid.from_table(table, 1, GRID, terminal="zero")
    edges = sorted([0.0, *table[list(timesteps[1:])].tolist()])
    edge = torch.tensor([max(e for e in edges if e <= low) for low in even.below.tolist()])
    return SolverGrid(even.sigma, even.below, edge)


def two_dimensions(seed: int, counts: Sequence[int], distilled: bool, iterations: int) -> Cells:
    """(row name, figures) of one seed; the teacher of the distilled rows is a network fitted to the exact one."""
    world, table = World(), sigma_table()
    data = world.draw(8192, torch.Generator().manual_seed(1000 + seed))
    x = start_noise(8192, 2000 + seed, table)
    exact = exact_endpoint(world.denoise, x, table)
    network = imitate(world, table, steps=2500, seed=seed) if distilled else None
    teacher = network.denoiser if network else world.denoise
    errors = jump_errors(teacher, start_noise(64, 3000 + seed, table), levels(table, POINTS), flow=False)
    for phases in counts:
        for name, timesteps in candidates(errors, phases, distilled=distilled).items():
            model = teacher
            if network:
                grid = fitted_grid(table, timesteps)
                model = distil(network, world, grid, steps=iterations, seed=seed).denoiser
            end = sample_pcm(model, x, levels(table, timesteps))
            distance = (end - exact).norm(dim=1).mean().item()
            yield f"{phases} | {name}", (sliced_wasserstein(end, data), distance, world.off_mode(end))


class Pictures:
    """The demo world, loaded once: the teacher at CFG 3 and the reference moments of the judge."""

    def __init__(self, count: int) -> None:
        self.count, self.world, self.pool = count, score.World.load(), None
        best = score.Method("reference", cfg=CFG)
        pictures = score.generate(self.world, best, GRID, score.prompts_for(count), seed=9_000)
        self.reference = score.moments(score.features_of(self.world.judge, pictures))

    def teacher(self, count: int) -> Guided:
        """The teacher for ``count`` prompts, in a fixed order of its own."""
        prompts = all_prompts()
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
        text = embed([prompts[order[i]] for i in range(count)])
        return Guided(self.world.teacher, text, None, CFG, embed([None] * count))

    @torch.inference_mode()
    def errors(self, count: int, seed: int) -> Tensor:
        """Errors of all jumps, from ``count`` trajectories."""
        x = torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(3000 + seed))
        return jump_errors(self.teacher(count), x, levels(TABLE, POINTS), flow=True)

    @torch.inference_mode()
    def end(self, timesteps: Sequence[int], seed: int) -> Tensor:
        """The teacher's latents for 64 prompts."""
        x = torch.randn(64, 16, 8, 8, generator=torch.Generator().manual_seed(2000 + seed))
        return sample_pcm(self.teacher(64), x, levels(TABLE, timesteps))

    def judged(self, timesteps: Sequence[int], seed: int, lora: str | None = None) -> tuple[float, float]:
        """FDt and accuracy as in demo/score.py."""
        method = score.Method("", lora, 1.0 if lora else CFG, timesteps=tuple(timesteps))
        result = score.score(self.world, method, len(timesteps), self.count, [1 + seed], self.reference)
        return result.distance, result.accuracy

    def distil(self, timesteps: Sequence[int], seed: int, iterations: int, path: Path) -> None:
        """The recipe of ``demo.distill``, from scratch, on given edges."""
        teacher, phases = self.world.teacher, len(timesteps)
        self.pool = pool = self.pool or LatentPool(self.world.vae, 8_000, seed=1)
        config = DistillConfig(
            phases=phases, grid=GRID, steps=iterations, lr=1e-3, batch=32, cfg=(CFG, CFG), ema=0.99, seed=seed
        )
        linear = {name: module for name, module in adaptable(teacher).items() if isinstance(module, nn.Linear)}
        adapters = Adapters(linear, 24, generator=torch.Generator().manual_seed(seed))

        def backbone(x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
            return Guided(teacher, pool.text(captions))(x, sigma)

        with adapters.attached():
            trainer = Trainer(backbone, adapters, PoolData(pool), TABLE, config, flow=True)
            trainer.grid = fitted_grid(TABLE, timesteps)
            trainer.run()
        save_lora(adapters.lora(ema=True), path.name, phases, iterations, 1e-3, path.parent)


def demo_world(pictures: Pictures, seed: int, counts: Sequence[int], distilled: bool, iterations: int) -> Cells:
    errors = pictures.errors(16, seed)
    exact = None if distilled else pictures.end(POINTS, seed)
    for phases in counts:
        for name, timesteps in candidates(errors, phases, distilled=distilled).items():
            label = f"{phases} | {name}"
            if exact is not None:
                distance = (pictures.end(timesteps, seed) - exact).square().mean().sqrt().item()
                yield label, (*pictures.judged(timesteps, seed), distance)
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "lora.safetensors"
                pictures.distil(timesteps, seed, iterations, path)
                yield label, pictures.judged(timesteps, seed, str(path))


def by_hand(pictures: Pictures, iterations: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """One LoRA for each entry of ``BY_HAND``, scored on two noise seeds."""
    for timesteps in BY_HAND:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lora.safetensors"
            pictures.distil(timesteps, 0, iterations, path)
            for seed in (0, 1):
                yield f"{len(timesteps)} | {' '.join(map(str, timesteps))}", pictures.judged(timesteps, seed, str(path))


def report(figures: dict[str, list[tuple[float, ...]]], head: Sequence[str]) -> str:
    """Mean and standard deviation over the seeds."""

    def cell(values: tuple[float, ...]) -> str:
        spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}"

    rows = [[name, *map(cell, zip(*seeds, strict=True))] for name, seeds in figures.items()]
    return markdown(["phases | edges", *head[: len(rows[0]) - 1]], rows).replace("--- |", "--- | --- |", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("2d", "demo"), default="2d")
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--by-hand", action="store_true")
    parser.add_argument("--phases", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--pictures", type=int, default=1000)
    options, _ = parser.parse_known_args()
    figures: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    pictures = Pictures(options.pictures) if options.world == "demo" else None
    if options.by_hand and pictures:
        for name, values in by_hand(pictures, options.iterations):
            figures[name].append(values)
            print(f"{name} | {' | '.join(f'{value:.3f}' for value in values)}", flush=True)
    for seed in range(0 if options.by_hand else options.seeds):
        run = (options.phases, options.distil, options.iterations)
        cells = demo_world(pictures, seed, *run) if pictures else two_dimensions(seed, *run)
        for name, values in cells:
            figures[name].append(values)
            print(f"seed {seed}: {name} | {' | '.join(f'{value:.3f}' for value in values)}", flush=True)
    print(f"\n{report(figures, HEAD_DEMO if pictures else HEAD_2D)}")


if __name__ == "__main__":
    main()
