"""Two experiments on LoRAs in the 2-D world: does the adversarial loss help, and can one LoRA serve several M?

    python -m benchmarks.experiments_2d [--seeds 3] [--steps 800] [--log runs.jsonl] [--table]

``--log`` stores every finished run and continues from there; ``--table`` prints the log without training. All LoRAs
have rank 16 and are trained on batches of 128. Distances are measured on 8,192 samples from the same noise, with the
number of steps in the column head.

Adversarial rows change one thing each. "renoised low / high": to the lower / upper quarter of the phase only. "last
block": features of one block instead of three. "against data": the real samples are data points noised to the phase's
edge instead of the target's prediction there; this is a GAN and not the paper's loss.

Several M: the network does not know which edge it jumps to, and where M and 2 M phases have different edges its single
output cannot serve both. "mixed" draws M = 2, 4 or 8 for every step and accepts the compromise; "curriculum" spends a
third of the steps each on 8, 4 and 2 phases; "by strength" also draws M, but scales the LoRA by 2 / M in training and
sampling, which tells the network what M is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lora_2d import GRID, TABLE, Bench, Log, bench, settings, train
from pcm_core import distill

WIDTH = 96
EVERYWHERE = ("none", "as the paper: weight 0.1, heads 1e-5", "weight 1, heads 1e-3")  # the rest: first seed, M = 1
LADDER = (2, 4, 8)
STRENGTHS = (0.4, 0.6, 0.8)
ADVERSARIAL: dict[str, dict[str, Any]] = {
    "none, other draws": {"weight": 0.0},
    "none": {"weight": 1e-9},
    "as the paper: weight 0.1, heads 1e-5": {"rate": 1e-5},
    "weight 0.1, heads 1e-3": {},
    "weight 1, heads 1e-3": {"weight": 1.0},
    "renoised low, heads 1e-3": {"span": (0.0, 0.25)},
    "renoised high, heads 1e-3": {"span": (0.75, 1.0)},
    "last block, heads 1e-3": {"depth": 1},
    "against data, weight 0.1": {"against_data": True},
    "against data, weight 1": {"against_data": True, "weight": 1.0},
}


class AgainstData(distill.Trainer):
    """A trainer whose discriminator sees data at the phase's edge as real samples."""

    def _adversarial(self, pair: distill.PhasedPair, batch: Any) -> tuple[Tensor, Tensor]:
        data = distill.add_noise(batch.clean, batch.noise, pair.edge, flow=pair.flow)
        return super()._adversarial(distill.PhasedPair(pair.prediction, data, pair.edge, pair.flow), batch)


def features(where: Bench, depth: int) -> Any:
    """Outputs of the teacher's last ``depth`` residual blocks, one token per point."""

    def see(x: Tensor, sigma: Tensor, captions: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        with ExitStack() as stack:
            for block in list(where.network.outer)[-depth:]:
                hook = block.register_forward_hook(lambda module, arguments, output: found.append(output[:, None]))
                stack.callback(hook.remove)
            where.backbone(x, sigma, captions)
        return found

    return see


def adversarial(
    seed: int, phases: int, steps: int, *, weight: float = 0.1, rate: float = 1e-3, depth: int = 3,
    span: tuple[float, float] = (0.0, 1.0), against_data: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train a LoRA of M = ``phases`` and measure it at N = M."""
    where = bench(seed)
    heads = distill.DiscriminatorHeads([WIDTH] * depth, 64, torch.Generator().manual_seed(seed))
    config = settings(phases, steps, seed, adversarial=weight, adversarial_lr=rate, adversarial_span=span)
    adapters = where.adapters(seed)
    with adapters.attached():
        kind = AgainstData if against_data else distill.Trainer
        train(where, adapters, config, distill.Discriminator(features(where, depth), heads), kind)
        with adapters.use("ema"):
            return [{"steps": phases} | where.measure(phases, phases)]


def single(seed: int, phases: int, steps: int) -> list[dict[str, Any]]:
    """A LoRA of one M at every N, also at reduced strength if there are more steps than phases."""
    where = bench(seed)
    adapters = where.adapters(seed)
    lines: list[dict[str, Any]] = []
    with adapters.attached():
        train(where, adapters, settings(phases, steps, seed))
        with adapters.use("ema"):
            for count in LADDER:
                lines.append({"steps": count} | where.measure(count, count))
                for strength in STRENGTHS if count > phases else ():
                    scale(adapters, strength)
                    row = f"M = {phases} only, at strength {strength}"
                    lines.append({"row": row, "steps": count} | where.measure(count, count))
                    scale(adapters, 1.0)
    return lines


def scale(adapters: distill.Adapters, strength: float) -> None:
    for pairs in (adapters.pairs, adapters["ema"].pairs):
        for pair in pairs.values():
            pair.scale = strength


def several(seed: int, how: str, steps: int) -> list[dict[str, Any]]:
    """One LoRA for every step count of ``LADDER``."""
    where = bench(seed)
    adapters = where.adapters(seed)
    grids = {phases: distill.SolverGrid.from_table(TABLE, phases, GRID, "zero") for phases in LADDER}
    draws = torch.Generator().manual_seed(seed)

    def choose(trainer: distill.Trainer) -> None:
        if how == "curriculum":
            phases = LADDER[::-1][len(LADDER) * trainer.step_number // steps]
        else:
            phases = LADDER[int(torch.randint(len(LADDER), (), generator=draws))]
        trainer.grid = grids[phases]
        scale(adapters, strength(phases))

    def strength(phases: int) -> float:
        return LADDER[0] / phases if how == "by strength" else 1.0

    lines: list[dict[str, Any]] = []
    with adapters.attached():
        train(where, adapters, settings(LADDER[0], steps, seed), before_step=choose)
        with adapters.use("ema"):
            for count in LADDER:
                scale(adapters, strength(count))
                lines.append({"steps": count} | where.measure(count, count))
    return lines


def fill(log: Log, seeds: Sequence[int], steps: int) -> None:
    """Run the missing rows, starting with those that need every seed."""
    for seed in seeds:
        for phases in (1, 2):
            for name in EVERYWHERE:
                once_adversarial(log, name, seed, phases, steps)
        for phases in LADDER:
            key = {"experiment": "several", "row": f"M = {phases} only", "seed": seed}
            log.once(key, partial(single, seed, phases, steps))
        for how in ("mixed", "curriculum", "by strength"):
            log.once({"experiment": "several", "row": how, "seed": seed}, partial(several, seed, how, steps))
    for name in ADVERSARIAL:
        once_adversarial(log, name, seeds[0], 1, steps)
    for how in ("mixed", "by strength"):
        key = {"experiment": "several", "row": f"{how}, three times the steps", "seed": seeds[0]}
        log.once(key, partial(several, seeds[0], how, 3 * steps))


def once_adversarial(log: Log, name: str, seed: int, phases: int, steps: int) -> None:
    key = {"experiment": "adversarial", "row": name, "phases": phases, "seed": seed}
    log.once(key, partial(adversarial, seed, phases, steps, **ADVERSARIAL[name]))


def tables(log: Log) -> str:
    titles = {"data": "sliced Wasserstein distance to the data", "flow": "distance to the end of the exact flow"}
    parts: list[str] = []
    for metric, title in titles.items():
        parts.append(f"**adversarial loss at N = M: {title}**\n\n"
                     + log.table(metric, "row", "phases", experiment="adversarial"))  # fmt: skip
    for metric, title in titles.items():
        parts.append(f"**one LoRA at N steps: {title}**\n\n" + log.table(metric, "row", "steps", experiment="several"))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Adversarial loss and shared LoRAs in the 2-D world.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = Log.open(options.log)
    if not options.table:
        fill(log, range(options.seeds), options.steps)
    print(tables(log))


if __name__ == "__main__":
    main()
