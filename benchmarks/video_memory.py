"""Does memory grow with the length of a clip? PCM Video Sampler with context windows and without.

Counts the bytes of all live tensors while the node samples a tiny Wan model, so the figures do not depend on the
allocator, the machine or its load; scratch memory inside kernels is not counted. With windows the peak should grow only
with the latent: "copies" is the growth since the row above, in latents. Needs COMFYUI_PATH.

    python -m benchmarks.video_memory [--frames 16 32 64 128] [--window 16] [--size 16]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import MIB, markdown, peak_bytes
from devtools.generate.host_nodes import ROOT, load

STRIDE = 4  # frames per latent frame of Wan


def defaults(node: Any) -> dict[str, Any]:
    """The default widget values of a node."""
    required = node.INPUT_TYPES()["required"]
    return {
        name: options[0]["default"] for name, (_, *options) in required.items() if options and "default" in options[0]
    }


def ours(nodes: Any, tiny: Any, latent: Tensor, window: int) -> None:
    """PCM Video Sampler with windows of ``window`` latent frames; 0 for none."""
    node = nodes["PCMVideoSampler"]
    inputs = {"window": (window - 1) * STRIDE + 1 if window else 0, "overlap": window * STRIDE // 4, "steps": 2}
    values = {"model": tiny.model, "positive": tiny.positive, "negative": tiny.negative, **inputs}
    node.execute(**{**defaults(node), **values, "latent_image": {"samples": latent}})


def stock(nodes: Any, tiny: Any, latent: Tensor, window: int) -> None:
    """KSampler and the host's Context Windows node."""
    node = nodes["ContextWindowsManual"]
    inputs = {"context_length": window, "context_overlap": window // 4, "dim": 2, "freenoise": True}
    (model,) = node.execute(**{**defaults(node), "model": tiny.model, **inputs}).args
    nodes["KSampler"]().sample(model, 0, 2, 1.0, "euler", "simple", tiny.positive, tiny.negative, {"samples": latent})


def peak(run: Callable[[Any, Any, Tensor, int], None], nodes: Any, tiny: Any, latent: Tensor, window: int) -> int:
    """Peak memory of live tensors while sampling, without the model and the latent, in bytes."""
    with torch.inference_mode():
        return peak_bytes(lambda: run(nodes, tiny, latent, window))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64, 128], help="latent frames")
    parser.add_argument("--window", type=int, default=16, help="latent frames in a window")
    parser.add_argument("--size", type=int, default=16, help="side of the latent")
    options = parser.parse_args()
    torch.set_num_threads(1)
    nodes = load()
    sys.path.append(str(ROOT / "tests" / "host"))
    import tiny

    columns = (("windows", ours, options.window), ("stock windows", stock, options.window), ("whole clip", ours, 0))
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.wan(Path(folder))
        peak(ours, nodes, model, torch.zeros(1, 16, 1, options.size, options.size), 0)  # warm-up
        last: list[int] = []
        rows: list[list[str]] = []
        for frames in options.frames:
            latent = torch.zeros(1, 16, frames, options.size, options.size)
            peaks = [peak(run, nodes, model, latent, window) for _, run, window in columns]
            grown = [(new - old) / (latent.nbytes - last[-1]) for new, old in zip(peaks, last, strict=False)]
            copies = [f"{value:.1f}" for value in grown] or [""] * len(peaks)
            cells = [cell for pair in zip(map(_mib, peaks), copies, strict=True) for cell in pair]
            rows.append([str(frames), _mib(latent.nbytes), *cells])
            last = [*peaks, latent.nbytes]
    head = [cell for name, *_ in columns for cell in (name, "copies")]
    print(f"A tiny Wan model, 2 steps, latents of {options.size} x {options.size}, windows of {options.window} frames.")
    print("*Copies*: the growth since the row above, in latents. Activations are those of one window.\n")
    print(markdown(["latent frames", "latent", *head], rows))


def _mib(size: int) -> str:
    return f"{size / MIB:.2f} MiB"


if __name__ == "__main__":
    main()
