"""Does memory grow with the length of a clip? PCM Video Sampler with context windows and without.

Counts the bytes of all live tensors while the node samples a tiny Wan model, so the figures do not depend on the
allocator, the machine or its load; scratch memory inside kernels is not seen. With windows the peak may grow only as
the latent does: "copies" is the growth since the row above, in latents. Needs COMFYUI_PATH.

    python -m benchmarks.video_memory [--frames 16 32 64 128] [--window 16] [--size 16]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from scripts.host_nodes import ROOT, load

MIB = 2**20
STRIDE = 4  # pictures per latent frame of Wan


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes of tensors made under it and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())
        return tensor

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def defaults(node: Any) -> dict[str, Any]:
    """The widgets of a node as they are when it is dropped on the canvas."""
    required = node.INPUT_TYPES()["required"]
    return {
        name: options[0]["default"] for name, (_, *options) in required.items() if options and "default" in options[0]
    }


def ours(nodes: Any, tiny: Any, latent: Tensor, window: int) -> None:
    """PCM Video Sampler, in windows of that many latent frames or, for 0, without."""
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
    """Most bytes alive beside the model and the latent while it is sampled."""
    with torch.inference_mode(), LiveBytes() as counter:
        run(nodes, tiny, latent, window)
    return counter.peak


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
        peak(ours, nodes, model, torch.zeros(1, 16, 1, options.size, options.size), 0)  # what is made once and kept
        last: list[int] = []
        print(f"{'frames':>6} {'latent':>10}" + "".join(f"{name:>16} {'copies':>7}" for name, *_ in columns))
        for frames in options.frames:
            latent = torch.zeros(1, 16, frames, options.size, options.size)
            peaks = [peak(run, nodes, model, latent, window) for _, run, window in columns]
            grown = [(new - old) / (latent.nbytes - last[-1]) for new, old in zip(peaks, last, strict=False)]
            cells = [
                f"{value / MIB:12.2f} MiB {copies:7.1f}"
                for value, copies in zip(peaks, grown or [0.0] * 3, strict=True)
            ]
            print(f"{frames:6} {latent.nbytes / MIB:6.2f} MiB" + "".join(cells))
            last = [*peaks, latent.nbytes]


if __name__ == "__main__":
    main()
