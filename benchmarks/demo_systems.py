"""PCM beside LCM, TCD and ComfyUI's stock samplers in the demo world, on the real host.

One run with the same prompts, starting noise and judge for every row: the columns of PCM Compare, graded by
``demo.score``. DDIM has no row of its own: without a mask the host runs it as Euler. TCD is its sampler with gamma 0.3
on the LoRA that stands in for LCM, as a one-phase LoRA allows; there is no LoRA trained by TCD's own recipe. Needs
COMFYUI_PATH.

    python -m benchmarks.demo_systems [--pictures 1000] [--seeds 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.score import BATCH, World, grade, prompts_for, teacher_reference
from demo.train_vae import WEIGHTS
from demo.world import Prompt, embed
from scripts.workers import Pack, load_pack

TABLE = Path(__file__).resolve().parent / "results" / "demo_systems.md"
STEPS = (4, 8)


@dataclass(frozen=True)
class System:
    """A row: a column of PCM Compare for {n} steps, on the teacher or with a LoRA; ``gamma`` selects TCD's sampler."""

    name: str
    column: str
    lora: str | None = None
    gamma: float | None = None


SYSTEMS = (
    System("teacher, Euler or DDIM, simple", "euler/simple@{n} cfg 3"),
    System("teacher, DPM++ 2M, simple", "dpmpp_2m/simple@{n} cfg 3"),
    System("LCM LoRA, LCM sampler", "lcm/simple@{n}", "demo_lcm"),
    System("LCM LoRA, TCD sampler, gamma 0.3", "{n}", "demo_lcm", 0.3),
    System("**PCM LoRA of as many phases**", "auto", "demo_pcm_{n}phase"),
)


@dataclass(frozen=True)
class Cell:
    """Means over the seeds; ``evaluations`` is per picture, with a guided step counted twice."""

    evaluations: int
    distance: float
    distance_std: float
    accuracy: float


class Maker:
    """Samples the rows on the host, many pictures at once."""

    def __init__(self, pack: Pack) -> None:
        self.pack, self.host = pack, pack("nodes.host")
        self.files = pack("nodes.host.loaders")
        self.files.quiet()
        self.teacher = self.files.load_model(WEIGHTS / "demo_sd3.safetensors")

    def ready(self, system: System, steps: int) -> Any:
        """The column, prepared as PCM Compare does it."""
        model = self.teacher
        if system.lora:
            path = WEIGHTS / f"{system.lora.format(n=steps)}.safetensors"
            model = self.pack("nodes.load_lora").load_lora(model, path, 1.0)[0]
        (column,) = self.pack("nodes.sampling.columns").parse_columns(system.column.format(n=steps))
        sampling = self.pack("nodes.sampling.comparison").Sampling(column, model, name="benchmark")
        if system.gamma is not None:
            sampling.sampler = self.host.ksampler(
                self.pack("nodes.sampling.function").sample_phased, gamma=system.gamma
            )
        assert sampling.steps == steps, (system.name, sampling.steps)
        return sampling

    @torch.inference_mode()
    def latents(self, sampling: Any, prompts: list[Prompt], seed: int) -> Tensor:
        """Latents [B, 16, 8, 8] in the model's own scale, from the noise that ``demo.score`` uses for a seed."""
        noise = torch.randn(len(prompts), 16, 8, 8, generator=torch.Generator().manual_seed(seed))
        made: list[Tensor] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            positive, negative = (
                [[context, {"pooled_output": pooled}]]
                for context, pooled in (embed(list(prompts[part])), embed([None] * len(prompts[part])))
            )
            guider = sampling.guider(positive, negative)
            latent = {"samples": torch.zeros_like(noise[part])}
            result, _ = self.host.sample(
                guider, sampling.sampler, sampling.sigmas, latent, seed=1000 * seed + start, noise=noise[part]
            )
            made.append(sampling.model.model.process_latent_in(result["samples"]))
        return torch.cat(made)


def measure(pack: Pack, count: int, seeds: Sequence[int]) -> dict[str, dict[int, Cell]]:
    """Every system at every step count."""
    world, maker, prompts = World.load(), Maker(pack), prompts_for(count)
    reference = teacher_reference(world, count)
    rows: dict[str, dict[int, Cell]] = {system.name: {} for system in SYSTEMS}
    for system in SYSTEMS:
        for steps in STEPS:
            sampling, grades = maker.ready(system, steps), []
            for seed in seeds:
                latents = maker.latents(sampling, prompts, seed)
                with torch.inference_mode():
                    pictures = torch.cat([world.vae.decode(part).clamp(0, 1) for part in latents.split(BATCH)])
                grades.append(grade(world.judge, pictures, prompts, reference))
            mean, std = np.mean(grades, axis=0).tolist(), np.std(grades, axis=0).tolist()
            evaluations = steps * (1 if float(sampling.cfg) == 1 else 2)
            cell = Cell(evaluations, mean[0], std[0], mean[1])
            rows[system.name][steps] = cell
            print(f"  {system.name}, {steps} steps: {cell}", flush=True)
    return rows


def markdown(rows: dict[str, dict[int, Cell]], count: int, seeds: Sequence[int]) -> str:
    """One table: systems down, step counts across."""
    lines = [f"{count} pictures, {len(seeds)} seed(s). FDt is the Frechet distance to the teacher's 50-step pictures, "
             "lower is better; accuracy is the share of prompts met.", ""]  # fmt: skip
    head = [f"{what}, {steps} steps" for steps in STEPS for what in ("evaluations", "FDt", "accuracy")]
    lines += ["| sampler | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name, cells in rows.items():
        values = [
            text
            for steps in STEPS
            for text in (
                str(cells[steps].evaluations),
                f"{cells[steps].distance:.2f}" + (f" +- {cells[steps].distance_std:.2f}" if len(seeds) > 1 else ""),
                f"{cells[steps].accuracy:.3f}",
            )
        ]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="PCM beside LCM, TCD and the stock samplers in the demo world.")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    started, seeds = time.monotonic(), list(range(1, options.seeds + 1))
    rows = measure(load_pack(), options.pictures, seeds)
    text = markdown(rows, options.pictures, seeds)
    took = f"{time.monotonic() - started:.0f} s with {torch.get_num_threads()} threads"
    TABLE.write_text(f"# Systems in the demo world\n\n`python -m benchmarks.demo_systems`, {took}.\n\n{text}", "utf-8")
    print(text, took, sep="\n")


if __name__ == "__main__":
    main()
