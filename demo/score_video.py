"""Measure the video samplers of the demo world from the pixels alone; no judge is needed.

    python -m demo.score_video            180 clips, three seeds: the table of demo/README.md
    python -m demo.score_video --quick    45 clips, one seed

In every frame the shape is found by its colour. Each of the world's shapes is drawn with the same area and centroid,
and the best match is the detected shape. Motion is the path of the centroid.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcm_core.phases import eval_timesteps
from pcm_core.sampling import sample_pcm, seeded_noise

from .distill import CFG, TABLE, Denoiser, load_lora
from .train_video import load_video_teacher, load_video_vae
from .video_world import (
    COLOURS,
    FRAMES,
    MOTIONS,
    SHAPES,
    SIZE,
    VideoPrompt,
    all_video_prompts,
    coverage,
    embed_video,
    empty_picture,
    render_clips,
    sample_clips,
)
from .wan import Wan
from .wan_vae import WanVAE

BATCH = 45
STILL = 4.0  # a shape that moves fewer pixels than this from first to last frame stands still


@dataclass(frozen=True)
class Method:
    """A row of the table: steps, LoRA, guidance and determinism."""

    name: str
    steps: int
    lora: str | None = None
    cfg: float = 1.0
    determinism: float = 1.0


METHODS = (
    Method("Teacher, 25 steps", 25, cfg=CFG),
    Method("Teacher, 8 steps", 8, cfg=CFG),
    Method("Teacher, 4 steps", 4, cfg=CFG),
    Method("LCM, 4 steps", 4, "demo_wan_lcm.safetensors", determinism=0.0),
    Method("LCM, 4 steps, matched", 4, "demo_wan_lcm_matched.safetensors", determinism=0.0),
    Method("PCM, 1 phase", 1, "demo_wan_lcm.safetensors"),
    Method("PCM, 2 phases", 2, "demo_wan_pcm_2phase.safetensors"),
    Method("PCM, 4 phases", 4, "demo_wan_pcm_4phase.safetensors"),
    Method("PCM, 2 phases, matched", 2, "demo_wan_pcm_2phase_matched.safetensors"),
    Method("PCM, 4 phases, matched", 4, "demo_wan_pcm_4phase_matched.safetensors"),
)


@dataclass(frozen=True)
class Score:
    """Means over clips. Fractions are from 0 to 1.

    Attributes:
        accuracy: fraction of frames with the shape and colour of the prompt.
        direction: fraction of clips that move, or stand still, as the prompt says.
        both: fraction of clips with the right direction and at least 90 % of their frames right.
        consistency: overlap (IoU) of the shape in neighbouring frames after aligning their centroids.
        jitter: RMS of the centroid's second difference, in pixels; 0 for constant speed.
        travel: pixels from the first frame to the last, over clips whose prompt asks for motion.
        fit: RMS distance to the nearest drawing of the requested shape and colour.
    """

    accuracy: float
    direction: float
    both: float
    consistency: float
    jitter: float
    travel: float
    fit: float


def measure(clips: Tensor, prompts: Sequence[VideoPrompt]) -> Score:
    """Score clips [B, T, 3, 48, 48] in 0..1 against their prompts."""
    palette, back = torch.tensor(list(COLOURS.values())), empty_picture()
    labels = torch.tensor([(p.shape, p.colour, p.motion) for p in prompts])
    difference = (clips - back).square().sum(2).sqrt()  # [B, T, H, W]
    mass = (difference - 0.15).clamp(min=0)
    seen = mass / mass.flatten(2).amax(2).clamp(min=1e-6)[..., None, None]
    core = (seen > 0.7).float()[:, :, None]
    mean = (clips * core).sum((3, 4)) / core.sum((3, 4)).clamp(min=1)  # [B, T, 3]
    colour = (mean[:, :, None] - palette).square().sum(3).argmin(2)
    contrast = (mean - back[:, SIZE // 2, SIZE // 2]).square().sum(2, keepdim=True).sqrt()[..., None]
    cover = (difference / contrast.clamp(min=0.1)).clamp(0, 1) * (difference > 0.15)
    area, place = area_and_centroid(cover)
    drawn = torch.stack([draw_like(kind, area, place) for kind in range(len(SHAPES))], dim=2)
    shape = (drawn - cover[:, :, None]).square().sum((3, 4)).argmin(2)
    there = area > 40  # false for an empty frame
    right = (shape == labels[:, None, 0]) & (colour == labels[:, None, 1]) & there
    way = place[:, -1] - place[:, 0]
    directions = torch.tensor(list(MOTIONS.values()), dtype=torch.float32)[:-1]
    length = way.norm(dim=1)
    heading = (way @ directions.T).argmax(1)
    straight = (way @ directions.T).amax(1) > 0.85 * length
    motion = torch.where(length < STILL, len(MOTIONS) - 1, torch.where(straight, heading, -1))
    good_way = motion == labels[:, 2]
    asked = labels[:, 2] < len(MOTIONS) - 1
    front = palette[labels[:, 1]][:, None, :, None, None]
    wanted = drawn[torch.arange(len(clips)), :, labels[:, 0]][:, :, None]
    fit = (clips - (back + wanted * (front - back))).square().mean((1, 2, 3, 4)).sqrt()
    second = place[:, 2:] - 2 * place[:, 1:-1] + place[:, :-2]
    return Score(
        accuracy=right.float().mean().item(),
        direction=good_way.float().mean().item(),
        both=(good_way & (right.float().mean(1) > 0.9)).float().mean().item(),
        consistency=shared(cover, place).mean().item(),
        jitter=second.square().sum(2).mean().sqrt().item(),
        travel=length[asked].mean().item(),
        fit=fit.mean().item(),
    )


def area_and_centroid(cover: Tensor) -> tuple[Tensor, Tensor]:
    """Area [B, T] in pixels and centroid [B, T, 2] of coverage maps [B, T, H, W]."""
    axis = torch.arange(SIZE) + 0.5
    area = cover.sum((2, 3))
    total = area.clamp(min=1)
    return area, torch.stack([(cover.sum(2) * axis).sum(2) / total, (cover.sum(3) * axis).sum(2) / total], dim=2)


def draw_like(kind: int, area: Tensor, place: Tensor) -> Tensor:
    """A shape of the world with the given area and centroid: coverage [B, T, 48, 48]."""
    unit = torch.full((1, 1), 16.0)
    middle = torch.full((1, 1, 2), SIZE / 2)
    full, centre = area_and_centroid(coverage(torch.tensor([kind]), unit, middle))
    radius = 16.0 * (area / full).sqrt()
    offset = (centre - middle) / 16.0
    return coverage(torch.full((len(area),), kind), radius, place - radius[..., None] * offset)


def shared(cover: Tensor, place: Tensor) -> Tensor:
    """Soft intersection over union [B, T - 1] of neighbouring frames, the second shifted onto the first."""
    shift = (place[:, 1:] - place[:, :-1]).flatten(0, 1)
    axis = 2 * (torch.arange(SIZE) + 0.5) / SIZE - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x, y], dim=-1) + 2 * shift[:, None, None] / SIZE
    after = cover[:, 1:].flatten(0, 1)[:, None]
    moved = torch.nn.functional.grid_sample(after, grid, align_corners=False)[:, 0]
    before = cover[:, :-1].flatten(0, 1)
    union = torch.maximum(before, moved).sum((1, 2)).clamp(min=1)
    return (torch.minimum(before, moved).sum((1, 2)) / union).unflatten(0, (len(cover), -1))


@dataclass
class VideoWorld:
    """Everything that is loaded once."""

    vae: WanVAE
    teacher: Wan

    @classmethod
    def load(cls) -> VideoWorld:
        return cls(load_video_vae(), load_video_teacher())


@torch.inference_mode()
def generate(world: VideoWorld, method: Method, prompts: Sequence[VideoPrompt], seed: int) -> Tensor:
    """Clips [B, 13, 3, 48, 48] for the prompts, from the noise of ``seed``."""
    sigmas = torch.stack([*(TABLE[t] for t in eval_timesteps(method.steps)), torch.tensor(0.0)])
    weights = load_lora(method.lora, world.teacher) if method.lora else None
    noise = torch.randn(len(prompts), 16, 1 + FRAMES // 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    clips = []
    for start in range(0, len(prompts), BATCH):
        rows = slice(start, start + BATCH)
        text, null = embed_video(list(prompts[rows])), embed_video([None] * len(prompts[rows]))
        model = Denoiser(world.teacher, (text,), weights, method.cfg, (null,))
        fresh = seeded_noise(noise[rows], 1000 * seed + start)
        latent = sample_pcm(model, noise[rows], sigmas, determinism=method.determinism, flow=True, noise_sampler=fresh)
        clips.append(world.vae.decode(latent).clamp(0, 1))
    return torch.cat(clips)


def prompts_for(count: int) -> list[VideoPrompt]:
    """The world's prompts in turn; the stride visits all motions, colours and shapes early."""
    world = all_video_prompts()
    return [world[i * 37 % len(world)] for i in range(count)]


def run(world: VideoWorld, count: int, seeds: Sequence[int], methods: Sequence[Method] = METHODS) -> dict[str, Score]:
    """Scores of every method by name, and of real drawings before and after the autoencoder."""
    prompts = prompts_for(count)
    real = render_clips(sample_clips(count, torch.Generator().manual_seed(78), prompts))
    with torch.inference_mode():
        decoded = torch.cat([world.vae.decode(world.vae.encode(part)).clamp(0, 1) for part in real.split(BATCH)])
    rows = {"Drawings": measure(real, prompts), "Drawings, encoded and decoded": measure(decoded, prompts)}
    for method in methods:
        scores = [measure(generate(world, method, prompts, seed), prompts) for seed in seeds]
        rows[method.name] = Score(*np.mean([list(asdict(score).values()) for score in scores], axis=0).tolist())
        print(f"  {method.name}: {rows[method.name]}", flush=True)
    return rows


def markdown(rows: dict[str, Score], count: int, seeds: Sequence[int]) -> str:
    """One table: methods down, measures across."""
    names = [field.name for field in fields(Score)]
    lines = [f"{count} clips, {len(seeds)} seed(s). The teacher spends two evaluations a step, the others one.", ""]
    lines += ["| sampler | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for name, score in rows.items():
        values = asdict(score)
        cells = [f"{values[key]:.1f}" if key == "travel" else f"{values[key]:.3f}" for key in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score the video samplers of the demo world.")
    parser.add_argument("--quick", action="store_true", help="one seed, 45 clips")
    parser.add_argument("--output", type=Path, default=Path("output/demo/video_table.md"))
    options = parser.parse_args(arguments)
    started = time.monotonic()
    count, seeds = (45, [1]) if options.quick else (180, [1, 2, 3])
    rows = run(VideoWorld.load(), count, seeds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, count, seeds)
    options.output.write_text(text, encoding="utf-8", newline="\n")
    numbers = {"clips": count, "seeds": list(seeds), "rows": {name: asdict(score) for name, score in rows.items()}}
    options.output.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8", newline="\n")
    print(text)
    print(f"{time.monotonic() - started:.0f} s with {torch.get_num_threads()} threads. Table: {options.output}")


if __name__ == "__main__":
    main()
