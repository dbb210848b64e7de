"""Train every model of the demo world from scratch.

    python -m demo.train                     everything, in order
    python -m demo.train --only lora         one stage, using the files of the earlier ones

Stages: ``vae``, ``judge``, ``teacher``, ``lora``, ``match`` (goes on from the LoRAs, without pictures), ``decoder``
(fine-tunes the decoder; the latents do not change), and for video ``video_vae``, ``video_teacher``, ``video_lora``,
``video_match`` and ``video_decoder``.
``demo/README.md`` says how long each took on two CPU cores. Every stage prints its loss and writes its file at the end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pcm_core.distill import MatchingConfig
from pcm_core.safetensors_file import read_tensors

from .distill import CFG, GRID, Critic, distil, save_lora
from .judge import correct, load_judge, train_judge
from .match import Matched
from .teacher import LatentPool, Pool, load_teacher, train_teacher
from .train_vae import WEIGHTS, finetune_decoder, load_vae, psnr, train_vae
from .train_video import (
    VideoPool,
    finetune_video_decoder,
    load_video_teacher,
    load_video_vae,
    train_video_teacher,
    train_video_vae,
    video_psnr,
)
from .video_world import FRAMES
from .world import render, sample_scene


@dataclass(frozen=True)
class Cycle:
    """One cosine learning-rate cycle: its iterations and peak rate."""

    steps: int
    lr: float
    seed: int = 0
    critic: Critic | None = None


@dataclass(frozen=True)
class LoraRun:
    """One distillation in cycles, each of which continues from the one before.

    ``start`` is the LoRA file of an earlier run of the same rank to continue from; its phases are merged to ``phases``.
    """

    file: str
    phases: int
    rank: int
    cycles: tuple[Cycle, ...]
    start: str | None = None


# demo/README.md has the gain of each cycle and what else was tried.
LORAS = (
    LoraRun(
        "demo_pcm_4phase.safetensors", 4, 36,
        (Cycle(4000, 1e-3), Cycle(3000, 5e-4, 1), Cycle(3000, 3e-4, 2), Cycle(3000, 5e-4, 5)),
    ),
    LoraRun("demo_lcm.safetensors", 1, 36, (Cycle(4000, 3e-4), Cycle(3000, 1.5e-4, 1), Cycle(3000, 1e-4, 2))),
    LoraRun(
        "demo_pcm_2phase.safetensors", 2, 36,
        (Cycle(1200, 5e-4), Cycle(6000, 5e-4, 5, Critic())),
        start="demo_pcm_4phase.safetensors",
    ),
    LoraRun("demo_pcm_8phase.safetensors", 8, 12, (Cycle(4000, 1e-3),)),
)  # fmt: skip

VIDEO_LORAS = (
    LoraRun("demo_wan_pcm_4phase.safetensors", 4, 16, (Cycle(900, 6e-4),)),
    LoraRun("demo_wan_lcm.safetensors", 1, 16, (Cycle(900, 6e-4),)),
    LoraRun("demo_wan_pcm_2phase.safetensors", 2, 16, (Cycle(900, 6e-4),)),
)
VIDEO_CLIPS = 4000


@dataclass(frozen=True)
class MatchRun:
    """A matching stage.

    Attributes:
        start: the LoRA file it goes on from.
        rank: at least that of ``start``, the default.
    """

    file: str
    start: str
    config: MatchingConfig
    rank: int | None = None


def matching(phases: int, **settings: Any) -> MatchingConfig:
    common = {"grid": GRID, "teacher_cfg": CFG, "lr": 3e-4, "fake_warmup": 300, "seed": 1}
    return MatchingConfig(**{"phases": phases, **common, **settings})


# benchmarks/results/experiments.md has what else was tried. Runs with the same guidance of the walks share a bank.
MATCHES = (
    MatchRun(
        "demo_pcm_4phase_matched.safetensors", "demo_pcm_4phase.safetensors", matching(4, steps=3000, spread=20.0), 72
    ),
    MatchRun(
        "demo_pcm_2phase_matched.safetensors", "demo_pcm_2phase.safetensors",
        matching(2, steps=2500, cfg=5.0, regression=1.0, teacher_cfg=2.5), 72,
    ),
    MatchRun(
        "demo_pcm_1phase_matched.safetensors", "demo_pcm_2phase_matched.safetensors",
        matching(1, steps=3000, lr=5e-4, fake_lr=1e-3, fake_updates=3, regression=0.3, regression_warmup=2500), 72,
    ),
    MatchRun(
        "demo_lcm_matched.safetensors", "demo_lcm.safetensors",
        matching(1, steps=600, lr=1e-4, cfg=3.0, fake_updates=3, regression=0.0, renoised=4),
    ),
)  # fmt: skip
MATCH_PAIRS = 25_600
VIDEO_MATCHES = (
    MatchRun(
        "demo_wan_pcm_4phase_matched.safetensors", "demo_wan_pcm_4phase.safetensors",
        matching(4, steps=500, fake_warmup=200),
    ),
    MatchRun(
        "demo_wan_pcm_2phase_matched.safetensors", "demo_wan_pcm_2phase.safetensors",
        matching(2, steps=600, cfg=5.0, regression=1.0, fake_warmup=200),
    ),
    MatchRun(
        "demo_wan_lcm_matched.safetensors", "demo_wan_lcm.safetensors",
        matching(1, steps=400, lr=1e-4, cfg=3.0, fake_updates=3, regression=0.0, renoised=4, fake_warmup=200),
    ),
)  # fmt: skip
VIDEO_MATCH_PAIRS = 3000


@dataclass(frozen=True)
class TeacherRun:
    """One round of the video teacher: clips rendered, iterations, learning rate, and the length of its cosine.

    A round continues from the teacher of the round before.
    """

    clips: int
    steps: int
    lr: float
    horizon: int


VIDEO_DECODER = ((500, 9), (800, FRAMES))  # (iterations, frames of a clip)
VIDEO_TEACHER = (TeacherRun(VIDEO_CLIPS, 4000, 2e-3, 4000), TeacherRun(12_000, 2300, 1.2e-3, 3000))


def stage_vae(folder: Path) -> None:
    print(f"autoencoder: PSNR {psnr(train_vae(3000, folder=folder)):.2f} dB")


def stage_judge(folder: Path) -> None:
    train_judge(3500, folder=folder)
    scene = sample_scene(4000, torch.Generator().manual_seed(123))
    with torch.no_grad():
        judge = load_judge(folder)
        features = torch.cat([judge(batch) for batch in render(scene).split(250)])
    print(f"judge: {correct(judge, features, scene).all(1).float().mean():.4f} of real drawings fully right")


def stage_teacher(folder: Path) -> None:
    train_teacher(load_vae(folder), 22_000, folder=folder)


def train(run: LoraRun, cycle: Cycle, teacher: nn.Module, pool: Pool, **options: Any) -> dict[str, Tensor]:
    how = {"rank": run.rank, "lr": cycle.lr, "seed": cycle.seed, "critic": cycle.critic}
    return distil(teacher, pool, run.phases, cycle.steps, **how, **options)


def save(run: LoraRun, lora: dict[str, Tensor], folder: Path, base: str = "demo_sd3") -> None:
    steps = sum(cycle.steps for cycle in run.cycles)
    save_lora(lora, run.file, run.phases, steps, run.cycles[0].lr, folder, base, run.cycles[-1].critic)


def stage_lora(folder: Path) -> None:
    teacher, pool = load_teacher(folder), LatentPool(load_vae(folder), 32_000, seed=1)
    for run in LORAS:
        lora = load_file(folder / run.start) if run.start else None
        for cycle in run.cycles:
            lora = train(run, cycle, teacher, pool, start=lora)
        assert lora is not None
        save(run, lora, folder)


def stage_match(
    folder: Path, runs: Sequence[MatchRun] = MATCHES, pairs: int = MATCH_PAIRS, base: str = "demo_sd3"
) -> None:
    world = Matched.pictures(folder) if base == "demo_sd3" else Matched.clips(folder)
    walks = {cfg: world.walks(pairs, cfg) for cfg in sorted({run.config.teacher_cfg for run in runs})}
    for run in runs:
        start, metadata = read_tensors(folder / run.start)
        lora = world.train(start, run.config, pairs, walks[run.config.teacher_cfg], run.rank)
        config, steps = run.config, int(metadata["pcm_train_steps"]) + run.config.steps
        save_lora(lora, run.file, config.phases, steps, config.lr, folder, base, matching=config)


def stage_video_match(folder: Path) -> None:
    stage_match(folder, VIDEO_MATCHES, VIDEO_MATCH_PAIRS, "wan")


def stage_decoder(folder: Path) -> None:
    vae = load_vae(folder).requires_grad_(True)
    finetune_decoder(vae, 1000, folder=folder)
    print(f"decoder: PSNR {psnr(vae):.2f} dB")


def stage_video_vae(folder: Path) -> None:
    print(f"video autoencoder: PSNR {video_psnr(train_video_vae(650, folder=folder)):.2f} dB")


def stage_video_teacher(folder: Path) -> None:
    start = None
    for seed, run in enumerate(VIDEO_TEACHER):
        pool = VideoPool(load_video_vae(folder), run.clips, seed=0)
        start = train_video_teacher(
            pool, run.steps, lr=run.lr, horizon=run.horizon, start=start, seed=seed, folder=folder
        )  # fmt: skip


def stage_video_lora(folder: Path) -> None:
    teacher, pool = load_video_teacher(folder), VideoPool(load_video_vae(folder), VIDEO_CLIPS, seed=0)
    for run in VIDEO_LORAS:
        (cycle,) = run.cycles
        save(run, train(run, cycle, teacher, pool, batch=24), folder, base="wan")


def stage_video_decoder(folder: Path) -> None:
    vae = load_video_vae(folder)
    for steps, frames in VIDEO_DECODER:
        finetune_video_decoder(vae, steps, frames=frames, folder=folder)
    print(f"video decoder: PSNR {video_psnr(vae):.2f} dB")


STAGES: dict[str, Callable[[Path], None]] = {
    "vae": stage_vae,
    "judge": stage_judge,
    "teacher": stage_teacher,
    "lora": stage_lora,
    "match": stage_match,
    "decoder": stage_decoder,
    "video_vae": stage_video_vae,
    "video_teacher": stage_video_teacher,
    "video_lora": stage_video_lora,
    "video_match": stage_video_match,
    "video_decoder": stage_video_decoder,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the demo world.")
    parser.add_argument("--only", choices=STAGES, action="append", help="run only this stage (repeatable)")
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="where the weights go")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only or STAGES:
        started = time.monotonic()
        STAGES[name](options.folder)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
