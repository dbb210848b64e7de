"""What a sampler itself costs per step: sample_pcm against ComfyUI's euler, ddim, lcm and dpmpp_2m.

The model is free (it returns a tensor made beforehand), so what is left is the sampler's own arithmetic and Python.
Samplers take turns within a round and the order is shuffled; a row is the median over rounds, a ratio the median of
the ratios within a round. Needs COMFYUI_PATH.

    python -m benchmarks.sampler_overhead [--rounds 60] [--steps 20]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pcm_core.phases import build_schedule
from pcm_core.sampling import sample_pcm

SHAPES = {"SD1.5 512": (1, 4, 64, 64), "SD3 1024": (1, 16, 128, 128), "Wan 832x480x81": (1, 16, 21, 60, 104)}
STOCK = ("euler", "ddim", "lcm", "dpmpp_2m")
Run = Callable[[Tensor, Tensor], Tensor]


class FreeModel:
    """What a host sampler asks of its model, at no cost."""

    def __init__(self, x0: Tensor, sampling: Any) -> None:
        self.x0 = x0
        patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        self.inner_model = SimpleNamespace(
            model_patcher=patcher, inner_model=SimpleNamespace(model_sampling=sampling)
        )  # fmt: skip

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return self.x0


def host_samplers() -> Any:
    """``comfy.samplers`` of the checkout that COMFYUI_PATH names."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise SystemExit("COMFYUI_PATH is not set: this benchmark compares with the host's own samplers.")
    sys.path.insert(0, str(Path(path).resolve()))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.samplers

    return comfy.samplers


def runs(samplers: Any, model: FreeModel) -> dict[str, Run]:
    """Every sampler as ``(x, sigmas) -> x`` with the callback the host always passes."""

    def stock(name: str) -> Run:
        sampler = samplers.sampler_object(name)

        def run(x: Tensor, sigmas: Tensor) -> Tensor:
            return sampler.sampler_function(
                model, x, sigmas, extra_args={"seed": 0}, callback=_ignore, disable=True, **sampler.extra_options
            )

        return run

    def pcm(determinism: float) -> Run:
        return lambda x, sigmas: sample_pcm(model, x, sigmas, {"seed": 0}, _ignore, True, determinism=determinism)

    return {"pcm": pcm(1.0), "pcm, r = 0": pcm(0.0), **{name: stock(name) for name in STOCK}}


def _ignore(entry: dict[str, Any]) -> None:
    """A callback that does nothing."""


def measure(table: dict[str, Run], x: Tensor, sigmas: Tensor, rounds: int) -> dict[str, list[float]]:
    """Microseconds per step of every run in every round."""
    steps = len(sigmas) - 1
    times: dict[str, list[float]] = {name: [] for name in table}
    order = list(table)
    shuffle = random.Random(0)
    for i in range(rounds + 3):
        shuffle.shuffle(order)
        for name in order:
            began = time.perf_counter()
            table[name](x, sigmas)
            if i >= 3:  # warm
                times[name].append((time.perf_counter() - began) / steps * 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    options, _ = parser.parse_known_args()
    samplers = host_samplers()
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        """What SD 1.5 has in the host."""

    sampling = Sampling()
    sigmas = build_schedule(options.steps).sigmas(sampling.sigmas)
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {load}, torch {torch.__version__},")
    print(f"{torch.get_num_threads()} thread(s), float32 on the CPU, {options.steps} steps, {options.rounds} rounds\n")
    print("| latent | sampler | us per step | against euler | quartiles of the ratio |\n|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        model = FreeModel(x0, sampling)
        times = measure(runs(samplers, model), x0 * sigmas[0], sigmas, options.rounds)
        for sampler, values in times.items():
            ratios = [value / euler for value, euler in zip(values, times["euler"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            shape_text = "x".join(map(str, shape))
            print(
                f"| {name}, {shape_text} | {sampler} | {statistics.median(values):.0f} | {middle:.2f} "
                f"| {low:.2f} to {high:.2f} |"
            )


if __name__ == "__main__":
    main()
