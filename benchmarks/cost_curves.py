"""How time and memory of PCM Sampler grow with batch, resolution, phases and frames, on tiny real models.

Along each axis the other values stay small. Time is the minimum CPU time over rounds, which is least affected by load;
memory is the peak of live tensors without the model. Both are fitted by a + b n + c n^2 with non-negative coefficients
(non-negative least squares of the relative errors, scipy). The terms are given as fractions of the cost at the largest
n. Needs COMFYUI_PATH.

    python -m benchmarks.cost_curves [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.common import MIB, markdown, peak_bytes
from benchmarks.video_memory import defaults
from devtools.generate.host_nodes import ROOT, load

POWERS = ("constant", "linear", "quadratic")


@dataclass(frozen=True)
class Axis:
    """One axis: its values, and the function that samples at one of them."""

    name: str
    values: tuple[int, ...]
    sample: Callable[[int], Any]


def axes(nodes: Any, image: Any, clip: Any) -> list[Axis]:
    """Flux for images, Wan for clips; ``side`` is in latent pixels, ``frames`` in latent frames."""

    def picture(batch: int = 1, side: int = 16, steps: int = 4) -> Any:
        return run(nodes["PCMSampler"], image, torch.zeros(batch, 16, side, side), steps=steps)

    def video(window: int, frames: int) -> Any:
        size = {"window": (window - 1) * 4 + 1, "overlap": window} if window else {"window": 0}
        return run(nodes["PCMVideoSampler"], clip, torch.zeros(1, 16, frames, 16, 16), steps=2, **size)

    return [
        Axis("pictures in a batch", (1, 2, 4, 8, 16), lambda n: picture(batch=n)),
        Axis("latent pixels of a picture", (256, 1024, 2304, 4096), lambda n: picture(side=round(n**0.5))),
        Axis("phases, one step each", (1, 2, 4, 8, 16), lambda n: picture(steps=n)),
        Axis("frames, whole clip", (4, 8, 16, 32), partial(video, 0)),
        Axis("frames, windows of 8", (16, 32, 48, 64, 96), partial(video, 8)),
    ]


def run(node: Any, tiny: Any, latent: torch.Tensor, **values: Any) -> Any:
    inputs = {"model": tiny.model, "positive": tiny.positive, "negative": tiny.negative, **values}
    with torch.inference_mode():
        return node.execute(**{**defaults(node), **inputs, "latent_image": {"samples": latent}})


def fit(values: tuple[int, ...], costs: list[float]) -> str:
    """The constant, linear and quadratic terms of the cost at the largest value, without the small ones."""
    n, cost = np.array(values, dtype=float), np.array(costs)
    powers = np.stack([n**0, n, n**2], axis=1)
    factors, _ = nnls(powers / cost[:, None], np.ones(len(n)))
    parts = factors * powers[-1]
    worst = float(np.abs(powers @ factors / cost - 1).max())
    shares = {name: float(part / parts.sum()) for name, part in zip(POWERS, parts, strict=True)}
    shown = ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share >= 0.01)
    return f"{shown} (fits to {worst:.0%})"


def seconds(axis: Axis, value: int) -> float:
    began = time.process_time()
    axis.sample(value)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    nodes = load()
    sys.path.append(str(ROOT / "tests" / "host"))
    import tiny

    figures: list[list[str]] = []
    growth: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for axis in axes(nodes, tiny.flux(Path(folder)), tiny.wan(Path(folder))):
            axis.sample(axis.values[0])  # loads the model
            times = {n: [seconds(axis, n) for _ in range(options.rounds)] for n in axis.values}
            least = [min(times[n]) for n in axis.values]
            peaks = [peak_bytes(partial(axis.sample, n)) / MIB for n in axis.values]
            growth.append([axis.name, fit(axis.values, least), fit(axis.values, peaks)])
            for n, second, peak in zip(axis.values, least, peaks, strict=True):
                figures.append([axis.name, str(n), f"{1e3 * second:.0f}", f"{peak:.2f}"])
    print(f"Tiny Flux (pictures, 4 steps) and Wan (clips, 2 steps), one thread, {options.rounds} rounds. Shares of the")
    print("cost at the largest value:\n")
    print(markdown(["axis", "time", "memory"], growth))
    print("\n" + markdown(["axis", "value", "CPU ms", "peak MiB"], figures))


if __name__ == "__main__":
    main()
