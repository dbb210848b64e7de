"""Distribution matching after consistency, in the 2-D world: an exact teacher, phases 1 and 2, several seeds.

    python -m benchmarks.matching_2d                 three seeds
    python -m benchmarks.matching_2d --seeds 0       one

Sliced Wasserstein distance to the data of the consistency LoRA, and of the same LoRA after a matching stage, sampled
in as many steps as it has phases. One phase begins with regression alone, long and at a high rate: the map from noise
to nine modes is steep, and a short training stops halfway.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import markdown
from benchmarks.lora_2d import GRID, TABLE, Bench, bench, settings, train
from pcm_core import distill

BY_PHASES: dict[int, dict[str, Any]] = {1: {"regression_warmup": 6000, "regression_lr": 5e-3, "batch": 512}}


def models(where: Bench, adapters: distill.Adapters) -> tuple[distill.Denoiser, distill.Denoiser]:
    """The student and the teacher; there is no guidance in this world."""

    def under(mode: str) -> distill.Denoiser:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            with adapters.use(mode):
                return where.network.denoiser(x, sigma)

        return denoise

    return under("student"), under("off")


def run(seed: int, phases: int, steps: int, updates: int) -> dict[str, float]:
    """Distances before and after the matching stage, and after its part by regression alone, NaN if there is none."""
    where = bench(seed)
    adapters = where.adapters(seed)
    with adapters.attached():
        train(where, adapters, settings(phases, steps, seed))
        adapters.adopt_ema()

        def measured(mode: str) -> float:
            with adapters.use(mode):
                return where.measure(phases, phases)["data"]

        before = measured("student")
        usual: dict[str, Any] = {"batch": 256, "lr": 3e-4, "fake_lr": 1e-3, "fake_warmup": updates, "regression": 1.0}
        usual |= {"cfg": 1.0, "teacher_cfg": 1.0} | BY_PHASES.get(phases, {})
        config = distill.MatchingConfig(phases=phases, grid=GRID, steps=updates, seed=seed, **usual)
        plan = distill.BankPlan.of(
            TABLE, phases, GRID, "zero", shape=(2,), texts=1, pairs=16_384, chunk=4096, cfg=1.0, flow=False, seed=seed,
            held_samples=512,
        )  # fmt: skip
        store = distill.BankStore(None, plan, distill.fingerprint(adapters))
        bank = store.make(lambda captions: models(where, adapters), "cpu")
        trainer = distill.MatchingTrainer(where.backbone, adapters, bank, plan, TABLE, config, flow=False)
        alone = math.nan

        def look(report: distill.StepReport) -> None:
            nonlocal alone
            if report.step == config.regression_warmup:
                alone = measured("ema")

        trainer.run(look)
        return {"before": before, "regression": alone, "after": measured("ema")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Distribution matching after consistency, in the 2-D world.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--phases", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--steps", type=int, default=1500, help="of the consistency stage")
    parser.add_argument("--updates", type=int, default=450, help="of the matching stage")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    for phases in options.phases:
        for seed in options.seeds:
            found = run(seed, phases, options.steps, options.updates)
            ratio = found["after"] / found["before"]
            distances = ["" if math.isnan(value) else f"{value:.3f}" for value in found.values()]
            row = [str(phases), str(seed), *distances, f"{ratio:.2f}"]
            print(" ".join(row), flush=True)
            rows.append(row)
    print(markdown(["phases", "seed", "SW before", "after regression", "after all", "ratio"], rows))


if __name__ == "__main__":
    main()
