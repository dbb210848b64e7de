"""Measure every sampler of the demo world against the teacher's own 50-step pictures.

    python -m demo.score            1,000 pictures, three seeds: the table of the README
    python -m demo.score --quick    one seed, 272 pictures, the main rows

For each sampler and step count: the Frechet distance of judge features to the teacher's 50-step pictures (not to the
data: guidance moves the teacher away from the data, and the student has to follow the teacher), the fraction of
pictures with the shape, colour and background of the prompt, and the edge sharpness. The reference and every sampler
start from independent noise, so the *floor* is the score of one run of the teacher against another.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcm_core.phases import eval_timesteps
from pcm_core.sampling import sample_pcm, seeded_noise

from .distill import CFG, TABLE, Denoiser, load_lora
from .judge import Judge, correct, load_judge
from .mmdit import MMDiT
from .taesd import Autoencoder
from .teacher import load_teacher
from .train_vae import load_vae
from .world import Prompt, Scene, all_prompts, embed, render, sample_scene

STEPS = (1, 2, 4, 8, 16)
BATCH = 125
REFERENCE_STEPS = 50
REFERENCE_SEED = 9_000


@dataclass(frozen=True)
class Method:
    """A row of the table: LoRA, guidance and determinism; ``timesteps`` replaces the trailing timesteps."""

    name: str
    lora: str | None = None
    cfg: float = 1.0
    determinism: float = 1.0
    steps: Sequence[int] = STEPS
    timesteps: tuple[int, ...] = ()


METHODS = (
    Method("teacher, Euler, CFG 3", cfg=CFG, steps=(1, 2, 3, 4, 6, 8, 12, 16, 25)),
    Method("LCM (M = 1), renoised", "demo_lcm.safetensors", determinism=0.0),
    Method("M = 1, deterministic", "demo_lcm.safetensors"),
    Method("PCM, M = 2", "demo_pcm_2phase.safetensors"),
    Method("PCM, M = 4", "demo_pcm_4phase.safetensors"),
    Method("PCM, M = 8", "demo_pcm_8phase.safetensors"),
    # A matching stage trains the whole path of M jumps, and nothing else.
    Method("LCM (M = 1), renoised, matched", "demo_lcm_matched.safetensors", determinism=0.0, steps=(2, 4, 8)),
    Method("PCM, M = 1, matched", "demo_pcm_1phase_matched.safetensors", steps=(1,)),
    Method("PCM, M = 2, matched", "demo_pcm_2phase_matched.safetensors", steps=(2,)),
    Method("PCM, M = 4, matched", "demo_pcm_4phase_matched.safetensors", steps=(4,)),
)


@dataclass
class World:
    """Everything that is loaded once."""

    vae: Autoencoder
    teacher: MMDiT
    judge: Judge

    @classmethod
    def load(cls) -> World:
        return cls(load_vae(), load_teacher(), load_judge())


def prompts_for(count: int) -> list[Prompt]:
    """The world's prompts in turn; their counts differ by at most one."""
    world = all_prompts()
    return [world[i % len(world)] for i in range(count)]


@torch.inference_mode()
def generate(
    world: World, method: Method, steps: int, prompts: list[Prompt], seed: int, noise: Tensor | None = None
) -> Tensor:
    """Pictures [B, 3, 64, 64] for the prompts, from ``noise`` [B, 16, 8, 8] or that of ``seed``."""
    timesteps = method.timesteps or eval_timesteps(steps)
    sigmas = torch.stack([*(TABLE[t] for t in timesteps), torch.tensor(0.0)])
    weights = load_lora(method.lora, world.teacher) if method.lora else None
    if noise is None:
        noise = torch.randn(len(prompts), 16, 8, 8, generator=torch.Generator().manual_seed(seed))
    pictures = []
    for start in range(0, len(prompts), BATCH):
        rows = slice(start, start + BATCH)
        text, null = embed(list(prompts[rows])), embed([None] * len(prompts[rows]))
        model = Denoiser(world.teacher, text, weights, method.cfg, null)
        fresh = seeded_noise(noise[rows], 1000 * seed + start)
        latent = sample_pcm(model, noise[rows], sigmas, determinism=method.determinism, flow=True, noise_sampler=fresh)
        pictures.append(world.vae.decode(latent).clamp(0, 1))
    return torch.cat(pictures)


@torch.inference_mode()
def features_of(judge: Judge, pictures: Tensor) -> Tensor:
    return torch.cat([judge(batch) for batch in pictures.split(250)])


def moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = features.double().numpy()
    return values.mean(0), np.cov(values, rowvar=False)


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Frechet distance of two Gaussians given as mean and covariance.

    The trace of ``sqrt(A B)`` is that of ``sqrt(sqrt(A) B sqrt(A))``, which stays real when a feature never fires.
    """
    values, vectors = np.linalg.eigh(a[1])
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b[1] @ root).clip(min=0)).sum()
    return float(np.square(a[0] - b[0]).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * cross)


def crispness(pictures: Tensor) -> Tensor:
    """Edge sharpness [B]: the steepest colour change across an edge as a fraction of the picture's full contrast.

    An antialiased edge of a real drawing spans two pixels and scores close to 1; a blurred edge scores less.
    """
    dx = (pictures[..., 2:] - pictures[..., :-2]).square().sum(1).sqrt().flatten(1)
    dy = (pictures[..., 2:, :] - pictures[..., :-2, :]).square().sum(1).sqrt().flatten(1)
    steep = torch.cat([dx, dy], dim=1).topk(40, dim=1).values.mean(1)
    flat = pictures.flatten(2)
    contrast = (flat.amax(2) - flat.amin(2)).square().sum(1).sqrt()
    return steep / contrast.clamp(min=0.05)


@dataclass(frozen=True)
class Spreads:
    """Standard deviations of the pictures of one prompt, averaged over prompts: of the shape's size and position as the
    judge reads them, in pixels, and the RMS difference of two pictures' values.
    """

    size: float
    position: float
    picture: float


@dataclass(frozen=True)
class Score:
    """One cell: mean and standard deviation over seeds; spreads over all pictures of all seeds."""

    distance: float
    distance_std: float
    accuracy: float
    accuracy_std: float
    crisp: float
    spreads: Spreads


def grade(judge: Judge, pictures: Tensor, prompts: list[Prompt],
          reference: tuple[np.ndarray, np.ndarray]) -> tuple[float, float, float]:  # fmt: skip
    """Frechet distance to the reference, prompt accuracy, and edge sharpness of pictures [B, 3, 64, 64]."""
    features = features_of(judge, pictures)
    hits = correct(judge, features, labels_of(prompts)).all(1).float().mean().item()
    return frechet(moments(features), reference), hits, crispness(pictures).mean().item()


def score(world: World, method: Method, steps: int, count: int, seeds: Sequence[int],
          reference: tuple[np.ndarray, np.ndarray]) -> Score:  # fmt: skip
    prompts = prompts_for(count)
    made = [generate(world, method, steps, prompts, seed) for seed in seeds]
    rows = [grade(world.judge, pictures, prompts, reference) for pictures in made]
    mean, std = np.mean(rows, axis=0), np.std(rows, axis=0)
    spreads = spreads_of(world.judge, torch.cat(made), prompts * len(seeds))
    return Score(mean[0], std[0], mean[1], std[1], mean[2], spreads)


@torch.inference_mode()
def spreads_of(judge: Judge, pictures: Tensor, prompts: Sequence[Prompt]) -> Spreads:
    """How much the pictures of one prompt differ. Prompts with fewer than three pictures are left out."""
    geometry = judge.read(features_of(judge, pictures))[3]
    rows: dict[Prompt, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    groups = [torch.tensor(group) for group in rows.values() if len(group) > 2]
    if not groups:
        return Spreads(*[float("nan")] * 3)
    size, *place = torch.stack([geometry[group].var(0) for group in groups]).mean(0).sqrt().tolist()
    values = torch.stack([pictures[group].var(0).mean() for group in groups]).mean()
    return Spreads(size, sum(place) / 2, float((2 * values).sqrt()))


def teacher_reference(world: World, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Feature moments of the teacher's own pictures: the reference of every distance."""
    method = Method("reference", cfg=CFG)
    pictures = generate(world, method, REFERENCE_STEPS, prompts_for(count), seed=REFERENCE_SEED)
    return moments(features_of(world.judge, pictures))


def labels_of(prompts: list[Prompt]) -> Scene:
    rows = torch.tensor([(p.shape, p.colour, p.background) for p in prompts])
    return Scene(rows[:, 0], rows[:, 1], rows[:, 2], torch.zeros(len(prompts), 3))


def judge_ceiling(world: World, count: int, seed: int = 77) -> float:
    """Fraction of real drawings that the judge classifies fully right: the ceiling of any measured accuracy."""
    scene = sample_scene(count, torch.Generator().manual_seed(seed), prompts_for(count))
    return correct(world.judge, features_of(world.judge, render(scene)), scene).all(1).float().mean().item()


@dataclass(frozen=True)
class Results:
    """A whole run: the cells by (method, steps), and the reference values to compare them with."""

    count: int
    seeds: Sequence[int]
    cells: dict[tuple[str, int], Score]
    floor: Score  # the teacher against itself, from other noise
    ceiling: float  # fraction of real drawings that the judge classifies fully right
    real_crisp: float  # edge sharpness of real drawings

    def markdown(self) -> str:
        """One table per measure: methods down, step counts across."""
        lines = [
            f"{self.count} pictures, {len(self.seeds)} seed(s), starting noise independent of the reference. "
            f"Teacher at {REFERENCE_STEPS} steps from other noise (the floor): FDt {self.floor.distance:.2f}, "
            f"accuracy {self.floor.accuracy:.3f}, edges {self.floor.crisp:.2f}. "
            f"The judge reads {self.ceiling:.3f} of real drawings right; their edges score {self.real_crisp:.2f}. "
            "The teacher spends two evaluations a step, the others one.",
        ]
        measures = (
            ("FDt: Frechet distance to the teacher's 50-step pictures, lower is better",
             lambda c: f"{c.distance:.2f}" + (f" +- {c.distance_std:.2f}" if len(self.seeds) > 1 else "")),
            ("Prompt accuracy: shape, colour and background all right", lambda c: f"{c.accuracy:.3f}"),
            ("Edge sharpness", lambda c: f"{c.crisp:.2f}"),
            ("Spread of the pictures of one prompt: size and position of the shape in pixels, RMS of values",
             lambda c: f"{c.spreads.size:.2f} / {c.spreads.position:.2f} / {c.spreads.picture:.3f}"),
        )  # fmt: skip
        columns = sorted({steps for _, steps in self.cells})
        for title, text in measures:
            lines += ["", f"**{title}**", "", "| sampler | " + " | ".join(f"{n}" for n in columns) + " |"]
            lines.append("|---|" + "---|" * len(columns))
            for method in dict.fromkeys(name for name, _ in self.cells):
                row = [text(self.cells[method, n]) if (method, n) in self.cells else "" for n in columns]
                lines.append(f"| {method} | " + " | ".join(row) + " |")
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """The same numbers as JSON: one row per cell."""
        rows = [{"method": name, "steps": steps, **asdict(cell)} for (name, steps), cell in self.cells.items()]
        head = {"pictures": self.count, "seeds": list(self.seeds), "floor": asdict(self.floor)}
        return json.dumps(head | {"rows": rows}, indent=1) + "\n"


def measure(world: World, methods: Sequence[Method], count: int, seeds: Sequence[int]) -> Results:
    """Run every method at each of its step counts and print every cell as soon as it is measured."""
    reference = teacher_reference(world, count)
    floor = score(world, Method("teacher", cfg=CFG), REFERENCE_STEPS, count, seeds, reference)
    cells: dict[tuple[str, int], Score] = {}
    for method in methods:
        for steps in method.steps:
            cell = cells[method.name, steps] = score(world, method, steps, count, seeds, reference)
            print(f"  {method.name}, {steps} steps: FDt {cell.distance:.3f} +- {cell.distance_std:.3f}, "
                  f"accuracy {cell.accuracy:.3f}, edges {cell.crisp:.2f}", flush=True)  # fmt: skip
    real_crisp = crispness(render(real_scene(count))).mean().item()
    return Results(count, seeds, cells, floor, judge_ceiling(world, count), real_crisp)


def real_scene(count: int) -> Scene:
    return sample_scene(count, torch.Generator().manual_seed(78), prompts_for(count))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score the samplers of the demo world.")
    parser.add_argument("--quick", action="store_true", help="one seed, 272 pictures, the main rows")
    parser.add_argument("--output", type=Path, default=Path("output/demo/table.md"))
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.quick:
        methods = [replace(m, steps=[n for n in STEPS if n <= 8 and n in m.steps]) for m in METHODS]
        results = measure(World.load(), methods, 272, [1])
    else:
        results = measure(World.load(), METHODS, 1000, [1, 2, 3])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(results.markdown(), encoding="utf-8", newline="\n")
    options.output.with_suffix(".json").write_text(results.json(), encoding="utf-8", newline="\n")
    print(results.markdown())
    print(f"{time.monotonic() - started:.0f} s with {torch.get_num_threads()} threads. Table: {options.output}")


if __name__ == "__main__":
    main()
