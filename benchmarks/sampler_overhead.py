"""The cost of the sampler itself per step: sample_pcm against ComfyUI's euler, ddim, lcm and dpmpp_2m.

The model is free (it returns a stored tensor), so only the sampler's own arithmetic and Python remain. Samplers take
turns within a round, in shuffled order; each runs twice per turn, and the second run is timed. A row is the median over
rounds, a ratio the median of the ratios within a round. Times are CPU times, which are least affected by the load of
the machine; on another device, wall time until it has finished. Memory is counted in live tensors, without the caller's
latent and the model's x0. Needs COMFYUI_PATH.

    python -m benchmarks.sampler_overhead [--rounds 60] [--steps 20] [--device cuda] [--peer PACK ...]

``--peer`` adds the samplers of another node pack: every node that makes a SAMPLER from its default inputs and a model.
They run on the same sigmas, one per node.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import markdown, pack_label, peak_bytes, ratio_of
from devtools.generate.host_nodes import load
from pcm_core.phases import build_schedule
from pcm_core.sampling import is_finite, sample_pcm

SHAPES = {"SD1.5 512": (1, 4, 64, 64), "SD3 1024": (1, 16, 128, 128), "Wan 832x480x81": (1, 16, 21, 60, 104)}
STOCK = ("euler", "ddim", "lcm", "dpmpp_2m")
LARGE = 10**6  # latents with more elements than this get a quarter of the rounds
Run = Callable[[Any, Tensor, Tensor], Tensor]


class FreeModel:
    """Everything that a host sampler needs of its model, at no cost."""

    def __init__(self, x0: Tensor, sampling: Any) -> None:
        self.x0, self.noise = x0, x0
        patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=SimpleNamespace(model_sampling=sampling))

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return self.x0


class Patched:
    """A model to patch, for nodes that take one together with their sampler."""

    model = SimpleNamespace(model_config=None)

    def clone(self) -> Patched:
        return self

    def add_object_patch(self, name: str, value: Any) -> None:
        """Ignored: this model is not sampled."""


def hosted(sampler: Any) -> Run:
    """A SAMPLER of the host as ``(model, x, sigmas) -> x`` with the callback the host always passes."""

    def run(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
        options = {"extra_args": {"seed": 0}, "callback": _ignore, "disable": True, **sampler.extra_options}
        return sampler.sampler_function(model, x, sigmas, **options)

    return run


def own(
    determinism: float, callback: Callable[[dict[str, Any]], None], model: Any, x: Tensor, sigmas: Tensor
) -> Tensor:
    return sample_pcm(model, x, sigmas, {"seed": 0}, callback, True, determinism=determinism)


def _ignore(entry: dict[str, Any]) -> None:
    """A callback that does nothing."""


def _check(entry: dict[str, Any]) -> None:
    """The check that our nodes add to every step; with stock samplers NaN ends in a black image."""
    assert is_finite(entry["denoised"])


def peers(pack: Path, steps: int) -> Iterator[tuple[str, Run]]:
    """The samplers of another pack, one per node."""
    nodes = sys.modules["nodes"]
    before = set(nodes.NODE_CLASS_MAPPINGS)
    if not asyncio.run(nodes.load_custom_node(str(pack.resolve()), module_parent="custom_nodes")):
        sys.exit(f"{pack} did not load; see the messages above.")
    for name in sorted(set(nodes.NODE_CLASS_MAPPINGS) - before):
        node = nodes.NODE_CLASS_MAPPINGS[name]
        if "SAMPLER" in node.RETURN_TYPES:
            sampler = getattr(node(), node.FUNCTION)(**_inputs(node, steps))[list(node.RETURN_TYPES).index("SAMPLER")]
            yield f"{pack_label(pack)}: {name}", hosted(sampler)


def _inputs(node: Any, steps: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, (kind, *options) in node.INPUT_TYPES().get("required", {}).items():
        default = options[0]["default"] if options and "default" in options[0] else kind[0]
        values[name] = Patched() if kind == "MODEL" else steps if name == "steps" else default
    return values


def now(device: torch.device) -> float:
    """CPU seconds, or wall-clock seconds once everything queued on another device is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def measure(runs: dict[str, Run], model: Any, x: Tensor, sigmas: Tensor, rounds: int) -> dict[str, list[float]]:
    """Microseconds per step of every run in every round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffle = list(runs), random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            runs[name](model, x, sigmas)  # warms the caches for this sampler
            began = now(x.device)
            runs[name](model, x, sigmas)
            times[name].append((now(x.device) - began) / (len(sigmas) - 1) * 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default="cpu", help="where the latents are, e.g. cuda")
    parser.add_argument("--peer", type=Path, action="append", default=[], help="folder of another node pack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load()
    import comfy.model_sampling
    import comfy.samplers

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        """The model sampling of SD 1.5 in the host."""

    runs: dict[str, Run] = {
        "pcm": partial(own, 1.0, _ignore),
        "pcm, and the nodes' check for NaN": partial(own, 1.0, _check),
        "pcm, r = 0": partial(own, 0.0, _ignore),
    }
    runs |= {name: hosted(comfy.samplers.sampler_object(name)) for name in STOCK}
    runs |= {name: run for pack in options.peer for name, run in peers(pack, options.steps)}
    sampling = Sampling()
    sigmas = build_schedule(options.steps).sigmas(sampling.sigmas).to(options.device)
    rows: list[list[str]] = []
    most = 0.0
    for latent, shape in SHAPES.items():
        x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
        model, x = FreeModel(x0, sampling), x0 * sigmas[0]
        rounds = options.rounds if x.numel() < LARGE else max(options.rounds // 4, 2)
        times = measure(runs, model, x, sigmas, rounds)
        for name, run in runs.items():
            low, middle, high = ratio_of(times[name], times["euler"])
            held = peak_bytes(partial(run, model, x, sigmas)) / x.nbytes
            microseconds = statistics.median(times[name])
            figures = [f"{microseconds:.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{held:.1f}"]
            rows.append([f"{latent}, {'x'.join(map(str, shape))}", name, *figures])
            if name.startswith("pcm"):
                most = max(most, held)
    cpu = options.device.type == "cpu"
    where = "the CPU" if cpu else torch.cuda.get_device_name(options.device)
    print(f"float32 on {where}, one thread, {options.steps} steps, {options.rounds} rounds; the model costs nothing.\n")
    print(
        markdown(
            ["latent", "sampler", f"{'CPU ' if cpu else ''}us per step", "x euler", "quartiles", "latents held"], rows
        )
    )
    print(
        "\n*Latents held*: the most alive at once beside the caller's and the model's x0; 2 are the current one and the"
    )
    print(
        f"next, 3 with fresh noise. The most that ours held: {most:.1f}. Target: a step costs under 0.1 % of a step of"
    )
    print("the smallest real model (SD1.5 at 512 pixels), and at most one extra latent.")


if __name__ == "__main__":
    main()
