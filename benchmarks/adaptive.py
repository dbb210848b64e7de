"""Do edges fitted to a model beat uniform ones? Plain DDIM of an undistilled teacher, and PCM distilled on either.

Edges come from ``pcm_core.adaptive`` on 64 trajectories; every figure is from other noise. "squared" adds the squares
of the jump errors. The host's karras schedule is there as the usual alternative to uniform.

    python -m benchmarks.adaptive              the 2-D world, no training
    python -m benchmarks.adaptive --demo       and the demo world's picture teacher
    python -m benchmarks.adaptive --distil     and PCM distilled on both kinds of edges in the 2-D world
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
from pcm_core.adaptive import cheapest_chain, jump_errors
from pcm_core.distill import SolverGrid
from pcm_core.phases import phase_edges
from pcm_core.sampling import sample_pcm

GRID = 50
PHASES = (2, 4, 8)
POINTS = [1000 - 1 - i * (1000 // GRID) for i in range(GRID)]
Edges = dict[str, list[int]]


def levels(table: Tensor, timesteps: Sequence[int]) -> Tensor:
    """Sigmas of the timesteps, and 0."""
    return torch.cat([table[list(timesteps)], torch.zeros(1)])


def candidates(errors: Tensor, phases: int) -> Edges:
    """Evaluation timesteps by name, descending."""
    uniform = [POINTS[0], *reversed(phase_edges(phases, GRID)[1:])]
    chains = {"adaptive": errors, "adaptive, squared": errors.square()}
    return {"uniform": uniform} | {
        name: [POINTS[i] for i in cheapest_chain(cost, phases)] for name, cost in chains.items()
    }


def karras(table: Tensor, steps: int) -> list[int]:
    """Timesteps nearest to the host's karras sigmas (rho 7)."""
    ramp = torch.linspace(table[-1].item() ** (1 / 7), table[0].item() ** (1 / 7), steps) ** 7
    return [int((table - sigma).abs().argmin()) for sigma in ramp]


def fitted_grid(table: Tensor, timesteps: Sequence[int]) -> SolverGrid:
    """The solver grid whose phases begin at ``timesteps`` instead of evenly."""
    even = SolverGrid.from_table(table, 1, GRID, terminal="zero")
    edges = sorted([0.0, *table[list(timesteps[1:])].tolist()])
    edge = torch.tensor([max(e for e in edges if e <= low) for low in even.below.tolist()])
    return SolverGrid(even.sigma, even.below, edge)


def undistilled(seeds: int) -> str:
    world, table = World(), sigma_table()
    figures: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        data = world.draw(8192, torch.Generator().manual_seed(1000 + seed))
        x = start_noise(8192, 2000 + seed, table)
        exact = exact_endpoint(world.denoise, x, table)
        errors = jump_errors(world.denoise, start_noise(64, 3000 + seed, table), levels(table, POINTS), flow=False)
        for phases in (*PHASES, 16):
            for name, timesteps in (candidates(errors, phases) | {"karras": karras(table, phases)}).items():
                end = sample_pcm(world.denoise, x, levels(table, timesteps))
                distance = (end - exact).norm(dim=1).mean().item()
                row = (sliced_wasserstein(end, data), distance, world.off_mode(end))
                figures.setdefault((phases, name), []).append(row)
    return _report(figures, ["steps", "points", "SW to data", "distance to the exact end", "off mode"])


def distilled(seeds: int, imitation: int, iterations: int) -> str:
    world, table = World(), sigma_table()
    figures: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        data = world.draw(8192, torch.Generator().manual_seed(1000 + seed))
        x = start_noise(8192, 2000 + seed, table)
        exact = exact_endpoint(world.denoise, x, table)
        network = imitate(world, table, steps=imitation, seed=seed)
        fit = start_noise(64, 3000 + seed, table)
        errors = jump_errors(network.denoiser, fit, levels(table, POINTS), flow=False)
        for phases in PHASES:
            for name, timesteps in candidates(errors, phases).items():
                grid = fitted_grid(table, timesteps)
                student = distil(network, world, grid, steps=iterations, seed=seed).denoiser
                end = sample_pcm(student, x, levels(table, timesteps))
                distance = (end - exact).norm(dim=1).mean().item()
                row = (sliced_wasserstein(end, data), distance, world.off_mode(end))
                figures.setdefault((phases, name), []).append(row)
    return _report(figures, ["phases", "edges", "SW to data", "distance to the exact end", "off mode"])


def demo_world(fit: int, count: int) -> str:
    """The picture teacher at CFG 3: distance of the latent to its own 50-step end, other prompts than fitted."""
    from demo.distill import CFG, TABLE, Denoiser
    from demo.teacher import load_teacher
    from demo.world import all_prompts, embed

    teacher, prompts = load_teacher(), all_prompts()
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()

    def model(chosen: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        text = embed([prompts[i] for i in chosen])
        return Denoiser(teacher, text, None, CFG, embed([None] * len(chosen)))

    def noise(size: int, seed: int) -> Tensor:
        return torch.randn(size, 16, 8, 8, generator=torch.Generator().manual_seed(seed))

    fine = levels(TABLE, POINTS)
    figures: dict[tuple[int, str], list[tuple[float]]] = {}
    with torch.inference_mode():
        errors = jump_errors(model(order[:fit]), noise(fit, 1), fine, flow=True)
        held_out = model(order[fit : fit + count])
        x = noise(count, 2)
        end = sample_pcm(held_out, x, fine)
        for phases in PHASES:
            for name, timesteps in candidates(errors, phases).items():
                reached = sample_pcm(held_out, x, levels(TABLE, timesteps))
                figures[phases, f"{name} {timesteps}"] = [((reached - end).square().mean().sqrt().item(),)]
    return _report(figures, ["steps", "points", "RMS to the 50-step latent"])


def _report(figures: dict[tuple[int, str], list[tuple[float, ...]]], head: list[str]) -> str:
    def cell(values: tuple[float, ...]) -> str:
        spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}"

    body = [
        [str(phases), name, *map(cell, zip(*seeds, strict=True))] for (phases, name), seeds in figures.items()
    ]  # fmt: skip
    return markdown(head, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--demo-pictures", type=int, default=48)
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--imitate", type=int, default=2500)
    parser.add_argument("--iterations", type=int, default=1500)
    options, _ = parser.parse_known_args()
    print(f"**undistilled, 2-D, {options.seeds} seeds**\n\n{undistilled(options.seeds)}", flush=True)
    if options.demo:
        print(f"\n**undistilled, demo world**\n\n{demo_world(16, options.demo_pictures)}", flush=True)
    if options.distil:
        table = distilled(options.seeds, options.imitate, options.iterations)
        print(f"\n**distilled, 2-D, {options.seeds} seeds**\n\n{table}")


if __name__ == "__main__":
    main()
