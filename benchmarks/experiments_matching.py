"""Distribution matching on the demo world's LoRAs: train a stage from a LoRA, score it as ``demo.score`` does.

    python -m benchmarks.experiments_matching --phases 4 --steps 1300 --pairs 25600 --log runs.jsonl
    python -m benchmarks.experiments_matching --phases 2 --set cfg=5 regression=1 --name "cfg 5, weight 1"
    python -m benchmarks.experiments_matching --clips --phases 4 --steps 450 --pairs 3200
    python -m benchmarks.experiments_matching --score a.safetensors b.safetensors --phases 4 --seeds 1 2 3

``--set`` takes any setting of ``MatchingConfig``. Needs no pictures: the bank is made of noise and prompts. It takes
minutes of one core; --folder keeps LoRA and bank.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.matching_terms import TERMS, with_terms
from demo import score, score_video
from demo.distill import CFG, GRID, save_lora
from demo.match import Matched
from demo.train_vae import WEIGHTS
from pcm_core import distill
from pcm_core.safetensors_file import read_tensors

START = {4: "demo_pcm_4phase.safetensors", 2: "demo_pcm_2phase.safetensors", 1: "demo_lcm.safetensors"}
START_CLIPS = {phases: name.replace("demo_", "demo_wan_") for phases, name in START.items()}
CONFIG: dict[int, dict[str, Any]] = {4: {}, 2: {"cfg": 5.0, "regression": 1.0}, 1: {"regression": 0.3}}
COUNT, CLIPS = 1000, 180


class ClipScorer:
    """Scores of LoRA files on the clips of ``demo.score_video``."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.world, self.seeds = score_video.VideoWorld.load(), seeds

    def __call__(self, lora: Path | None, steps: int, determinism: float = 1.0) -> dict[str, Any]:
        method = score_video.Method("", steps, str(lora) if lora else None, 1.0 if lora else CFG, determinism)
        found = score_video.run(self.world, CLIPS, self.seeds, [method])[""]
        return {"steps": steps, **{name: round(value, 4) for name, value in asdict(found).items()}}


class Scorer:
    """Scores of LoRA files on pictures from some seeds; the reference is made once and kept in ``folder``."""

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.world, self.seeds = score.World.load(), seeds
        kept = folder / "reference.npz"
        if not kept.exists():
            np.savez(kept, *score.teacher_reference(self.world, COUNT))
        with np.load(kept) as arrays:
            self.reference = (arrays["arr_0"], arrays["arr_1"])

    def __call__(self, lora: Path | None, steps: int, determinism: float = 1.0) -> dict[str, Any]:
        """One cell: of a LoRA file, or of the teacher."""
        method = score.Method("", str(lora) if lora else None, 1.0 if lora else CFG, determinism)
        cell = score.score(self.world, method, steps, COUNT, self.seeds, self.reference)
        spreads = {f"{name}_sd": round(value, 4) for name, value in asdict(cell.spreads).items()}
        return {
            "steps": steps, "FDt": round(cell.distance, 4), "FDt_sd": round(cell.distance_std, 4),
            "accuracy": round(cell.accuracy, 4), "crisp": round(cell.crisp, 3), **spreads, "seeds": list(self.seeds),
        }  # fmt: skip


def show(report: distill.StepReport) -> None:
    if isinstance(report, distill.MatchingReport) and report.diagnosis is not None:
        found = report.diagnosis
        print(
            f"step {report.step}: fake {report.discriminator_loss:.4f}, regression {report.regression:.4f}, "
            f"held-out distance {found.distance:.4f}, spread {found.spread:.3f}",
            flush=True,
        )


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Distribution matching on the demo world's LoRAs.")
    parser.add_argument("--clips", action="store_true", help="the video world instead of the pictures")
    parser.add_argument("--phases", type=int, choices=sorted(START), default=4)
    parser.add_argument("--name", default="matched", help="of the row and the file")
    parser.add_argument("--start", type=Path, help="LoRA to start from; default the demo's of these phases")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the stage")
    parser.add_argument("--term", nargs="*", default=[], metavar="NAME=WEIGHT", help=f"more terms: {', '.join(TERMS)}")
    parser.add_argument("--steps", type=int, default=650, help="updates of the student")
    parser.add_argument("--rank", type=int, help="of the LoRA; default that of the one to start from")
    parser.add_argument("--pairs", type=int, default=6400, help="of the bank")
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12], help="of the pictures")
    parser.add_argument("--folder", type=Path, default=Path("output/matching"))
    parser.add_argument("--bank", default="bank", help="name of the whole walks' bank in the folder; all runs share it")
    parser.add_argument("--only-bank", action="store_true", help="make that bank and stop")
    parser.add_argument("--log", type=Path, help="append the figures to this file, a row of JSON each")
    parser.add_argument("--score", type=Path, nargs="+", help="only score these LoRA files, or the word teacher")
    parser.add_argument("--at", type=int, nargs="+", help="step counts to score at; default the phases")
    parser.add_argument("--determinism", type=float, default=1.0, help="of the sampler")
    return parser.parse_args(arguments)


def bank_of(options: argparse.Namespace) -> Path:
    return options.folder / f"{options.bank}_{'clips' if options.clips else 'pictures'}"


def train(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """One matching stage; its LoRA file and what the row says of the training."""
    asked = dict(item.split("=", 1) for item in options.set)
    settings = {name: _value(text) for name, text in asked.items()}
    common = {"phases": options.phases, "grid": GRID, "teacher_cfg": CFG, "steps": options.steps, "seed": options.seed}
    config = distill.MatchingConfig(**{"fake_warmup": 600, **CONFIG[options.phases], **common, **settings})
    usual = START_CLIPS if options.clips else START
    start, clock = options.start or WEIGHTS / usual[options.phases], time.process_time()
    tensors, metadata = read_tensors(start)
    world = Matched.clips() if options.clips else Matched.pictures()
    walks = world.walks(options.pairs, config.teacher_cfg, bank_of(options)) if config.walk == "path" else None
    terms = {name: float(weight) for name, weight in (item.split("=", 1) for item in options.term)}
    kind = with_terms(terms, world.teacher) if terms else distill.MatchingTrainer
    lora = world.train(tensors, config, options.pairs, walks, options.rank, show, kind)
    file = options.folder / f"{options.name}_{options.phases}_{options.seed}.safetensors"
    base = "wan" if options.clips else "demo_sd3"
    before = int(metadata["pcm_train_steps"])
    save_lora(lora, file.name, options.phases, before + options.steps, config.lr, options.folder, base, matching=config)
    minutes = (time.process_time() - clock) / 60
    told = {"pairs": options.pairs, "rank": options.rank, "start": start.name, **terms, **asked}
    return file, {"updates": config.steps, "seed": config.seed, **told, "minutes": round(minutes, 1)}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a word
        return text


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {}
    files: list[Path] = options.score or []
    if options.only_bank:
        (Matched.clips() if options.clips else Matched.pictures()).walks(options.pairs, CFG, bank_of(options))
        return
    if not files:
        file, told = train(options)
        files = [file]
    scorer = ClipScorer(options.seeds) if options.clips else Scorer(options.folder, options.seeds)
    for file in files:
        lora = None if file.name == "teacher" else file.resolve()
        for steps in options.at or [options.phases]:
            row = {"row": options.name if told else file.stem, "phases": options.phases, **told}
            row |= scorer(lora, steps, options.determinism)
            print(json.dumps(row), flush=True)
            if options.log:
                with options.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
