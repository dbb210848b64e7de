"""Is CFG per phase worth its evaluations? The demo world, by the measures of ``demo.score``.

A guided step costs two evaluations, a step at cfg 1 one. The four-phase LoRA was distilled with the teacher's guidance
of 3 inside, so cfg above 1 comes on top of it; the teacher has none inside and gets one value per step, as PCM Guider
gives it with as many phases as steps. ``--lora`` adds another four-phase LoRA, for instance one distilled without
guidance.

    python -m benchmarks.phase_cfg [--pictures 500] [--lora FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.common import markdown
from benchmarks.demo_pictures import evaluations, painter
from demo.judge import correct
from demo.score import CFG, REFERENCE_STEPS, World, features_of, frechet, labels_of, moments, prompts_for
from demo.train_vae import WEIGHTS
from pcm_core.guidance import parse_guidance

PHASES, TEACHER_STEPS = 4, 8
LORA = WEIGHTS / "demo_pcm_4phase.safetensors"
STUDENT_CFG = ("1", "1.5", "1.5, 1, 1, 1", "1, 1, 1, 1.5", "2", "2, 1, 1, 1", "3", "3, 1, 1, 1")
FREE_CFG = ("1", "3", "3, 1, 1, 1", "3, 3, 1, 1", "1, 3, 3, 3", "5, 1, 1, 1")
TEACHER_CFG = (
    "3", "3, 3, 3, 3, 1, 1, 1, 1", "1, 1, 1, 1, 3, 3, 3, 3", "3, 3, 1, 1, 1, 1, 1, 1", "6, 6, 1, 1, 1, 1, 1, 1",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--lora", type=Path, help="another four-phase LoRA")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world, prompts = World.load(), prompts_for(options.pictures)
    reference = moments(features_of(world.judge, painter(world, None, [CFG] * REFERENCE_STEPS, prompts)(9_000)))
    tests: list[tuple[str, Path | None, int, str]] = [("PCM, M = 4", LORA, PHASES, cfg) for cfg in STUDENT_CFG]
    tests += [(options.lora.stem, options.lora, PHASES, cfg) for cfg in FREE_CFG if options.lora]
    tests += [("teacher", None, TEACHER_STEPS, cfg) for cfg in TEACHER_CFG]
    rows: list[list[str]] = []
    for name, lora, steps, text in tests:
        cfg = parse_guidance(text, steps)
        features = features_of(world.judge, painter(world, lora, cfg, prompts)(1))
        right = correct(world.judge, features, labels_of(prompts)).all(1).float().mean().item()
        distance = frechet(moments(features), reference)
        cost = evaluations(cfg)
        rows.append([name, text, str(cost), f"{1 - cost / (2 * steps):.0%}", f"{distance:.2f}", f"{right:.3f}"])
    print(f"{options.pictures} pictures, one seed; distance to the teacher's {REFERENCE_STEPS} steps at cfg {CFG:g}.\n")
    print(markdown(["model", "cfg", "evaluations", "saved", "distance", "prompt accuracy"], rows))


if __name__ == "__main__":
    main()
