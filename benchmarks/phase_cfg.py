"""Is CFG per phase worth its evaluations? The demo world, with the measures of ``demo.score``.

A guided step costs two evaluations, a step at cfg 1 one. The four-phase LoRA was distilled with guidance 3 built in, so
cfg above 1 comes on top of it. The teacher has no guidance built in and gets one value per step, as PCM Guider gives it
with as many phases as steps; it is compared with fewer, fully guided steps at the same number of evaluations.

    python -m benchmarks.phase_cfg [--pictures 500]
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common import markdown
from benchmarks.demo_pictures import evaluations, painter
from demo.judge import correct
from demo.score import CFG, REFERENCE_STEPS, World, features_of, frechet, labels_of, moments, prompts_for
from demo.train_vae import WEIGHTS
from pcm_core.guidance import parse_guidance

LORA = WEIGHTS / "demo_pcm_4phase.safetensors"
STUDENT = [(4, cfg) for cfg in ("1", "1.5", "1.5, 1, 1, 1", "1, 1, 1, 1.5", "2", "2, 1, 1, 1", "3", "3, 1, 1, 1")]
TEACHER = [
    (8, "3"), (8, "3, 3, 3, 3, 1, 1, 1, 1"), (8, "1, 1, 1, 1, 3, 3, 3, 3"), (8, "1, 1, 3, 3, 3, 3, 1, 1"), (6, "3"),
    (8, "3, 3, 1, 1, 1, 1, 1, 1"), (8, "1, 1, 1, 3, 3, 1, 1, 1"), (5, "3"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world, prompts = World.load(), prompts_for(options.pictures)
    reference = moments(features_of(world.judge, painter(world, None, [CFG] * REFERENCE_STEPS, prompts)(9_000)))
    rows: list[list[str]] = []
    whole: dict[int, float] = {}
    partly: dict[int, float] = {}
    for name, lora, tests in (("PCM, M = 4", LORA, STUDENT), ("teacher", None, TEACHER)):
        for steps, text in tests:
            cfg = parse_guidance(text, steps)
            features = features_of(world.judge, painter(world, lora, cfg, prompts)(1))
            right = correct(world.judge, features, labels_of(prompts)).all(1).float().mean().item()
            distance = frechet(moments(features), reference)
            if lora is None:
                kept = partly if 1 in cfg else whole
                kept[evaluations(cfg)] = min(distance, kept.get(evaluations(cfg), distance))
            rows.append([name, str(steps), text, str(evaluations(cfg)), f"{distance:.2f}", f"{right:.3f}"])
    print(f"{options.pictures} pictures, one seed; distance to the teacher's {REFERENCE_STEPS} steps at cfg {CFG:g}.")
    print("Fewer pictures make every distance larger: compare within this table, not with demo/results.md.\n")
    print(markdown(["model", "steps", "cfg, one value or one per step", "evaluations", "distance", "accuracy"], rows))
    for count, distance in sorted(partly.items(), reverse=True):
        print(f"\nTeacher at {count} evaluations: {distance:.2f} at best with guidance in some of 8 steps,")
        print(f"{whole[count]:.2f} with guidance in all of fewer steps.")


if __name__ == "__main__":
    main()
