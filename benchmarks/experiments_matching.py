"""Distribution matching on the demo world's LoRAs: train a stage from a shipped LoRA, score it as ``demo.score`` does.

    python -m benchmarks.experiments_matching --phases 4
    python -m benchmarks.experiments_matching --phases 2 --cfg 5 --regression 1 --updates 900

Needs no pictures: the bank is made of noise and prompts. It takes minutes of one core; --folder keeps LoRA and bank.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demo import score
from demo.distill import CFG, GRID, TABLE, Denoiser, save_lora
from demo.distill import load_lora as load_merged
from demo.teacher import load_teacher
from demo.train_vae import WEIGHTS
from demo.world import all_prompts, embed
from pcm_core import distill

START = {4: "demo_pcm_4phase.safetensors", 2: "demo_pcm_2phase.safetensors", 1: "demo_lcm.safetensors"}
RANK = 36


def match(config: distill.MatchingConfig, start: Path, folder: Path, pairs: int) -> dict[str, Tensor]:
    """One matching stage; returns the averaged LoRA."""
    teacher, (context, pooled) = load_teacher(), embed([*all_prompts(), None])

    def backbone(x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return Denoiser(teacher, (context[captions], pooled[captions]))(x, sigma)

    matrices = {name: m for name, m in distill.adaptable(teacher).items() if isinstance(m, nn.Linear)}
    adapters = distill.Adapters(matrices, RANK, generator=torch.Generator().manual_seed(config.seed))
    adapters.load_lora({name: value.float() for name, value in load_file(start).items()})
    plan = distill.BankPlan.of(
        TABLE, config.phases, GRID, config.terminal, shape=(16, 8, 8), texts=len(all_prompts()), pairs=pairs, chunk=64,
        cfg=config.teacher_cfg, flow=True, held_texts=16,
    )  # fmt: skip
    print(plan.announcement(), flush=True)

    def models(captions: Tensor) -> tuple[distill.Denoiser, distill.Denoiser]:
        def student(x: Tensor, sigma: Tensor) -> Tensor:
            with adapters.use("student"):
                return backbone(x, sigma, captions)

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            both = torch.cat([captions, torch.full_like(captions, -1)])
            with adapters.use("off"):
                conditional, unconditional = backbone(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            return distill.guided(conditional, unconditional, torch.full((len(x),), config.teacher_cfg))

        return student, guided

    def show(report: distill.StepReport) -> None:
        if isinstance(report, distill.MatchingReport) and report.diagnosis is not None:
            found = report.diagnosis
            print(f"step {report.step}: held-out distance {found.distance:.4f}, spread {found.spread:.3f}", flush=True)

    with adapters.attached():
        store = distill.BankStore(folder / f"bank_{config.phases}", plan, distill.fingerprint(adapters))
        bank = store.make(models, "cpu")
        distill.MatchingTrainer(backbone, adapters, bank, plan, TABLE, config, flow=True).run(show)
    return adapters.lora(ema=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Distribution matching on the demo world's LoRAs.")
    parser.add_argument("--phases", type=int, choices=sorted(START), default=4)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--regression", type=float, default=2.0)
    parser.add_argument("--updates", type=int, default=650)
    parser.add_argument("--pairs", type=int, default=6400)
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12], help="of the pictures")
    parser.add_argument("--folder", type=Path, default=Path("output/matching"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    config = distill.MatchingConfig(
        phases=options.phases, grid=GRID, cfg=options.cfg, teacher_cfg=CFG, regression=options.regression,
        steps=options.updates, fake_warmup=600, seed=options.seed,
    )  # fmt: skip
    started = time.process_time()
    lora = match(config, WEIGHTS / START[options.phases], options.folder, options.pairs)
    name = f"matched_{options.phases}.safetensors"
    save_lora(lora, name, options.phases, options.updates, config.lr, options.folder)
    print(f"{(time.process_time() - started) / 60:.1f} CPU minutes")
    world, count = score.World.load(), 1000
    reference, prompts = score.teacher_reference(world, count), score.prompts_for(count)
    for title, folder, file in (("shipped", WEIGHTS, START[options.phases]), ("matched", options.folder, name)):
        score.load_lora = lambda lora, teacher, folder=folder: load_merged(lora, teacher, folder)
        cell = score.score(world, score.Method(title, file), options.phases, count, options.seeds, reference)
        print(f"{title}: FDt {cell.distance:.3f}, accuracy {cell.accuracy:.4f}  ({len(prompts)} pictures a seed)")


if __name__ == "__main__":
    main()
