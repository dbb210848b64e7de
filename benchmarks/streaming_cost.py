"""What streaming of the weights costs in time: updates of four families of the host, in turns.

    python -m benchmarks.streaming_cost [--rounds 5] [--device cpu] [--models sd15 sd35 flux wan_1b]

Each model is its family's real network, narrow on the CPU and whole on a GPU, with random weights and the latents and
texts of a real one. One trainer runs its updates with the whole model on the device, with gradient checkpointing, and
with the weights streamed, in turns; the CPU's copies are real copies of memory. Ratios are medians of the rounds.
Streaming includes checkpointing, so "streaming / checkpointing" is what the coming and going of the weights costs, and
"streaming / as it is" what a user pays who could have done without both. Needs COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from benchmarks.common import markdown
from benchmarks.model_shapes import MODELS, NARROW, fill, start_host

TARGET = 1.4
WAYS = ("as it is", "checkpointing", "streaming")


def measure(name: str, rounds: int, device: str, pack: Any) -> dict[str, list[float]]:
    """Seconds of every update by way; CPU seconds on the CPU."""
    distill, training, memory = (
        pack(f"{module}") for module in ("pcm_core.distill", "nodes.host.training", "nodes.host.memory")
    )
    host, backbone = pack("nodes.host"), pack("nodes.host.backbone")
    model = NARROW[name] if device == "cpu" else MODELS[name]
    patcher = model.build(torch.float32 if device == "cpu" else torch.bfloat16, "cpu")
    fill(patcher.model.diffusion_model)
    patcher.load_device = torch.device(device)
    text, found = model.conditioning(), {way: [] for way in WAYS}

    def body(guider: Any, extra_args: dict[str, Any]) -> None:
        base, where = guider.inner_model, torch.device(device)
        network, table = base.diffusion_model, host.sigma_table(patcher)
        adapters = distill.Adapters(distill.adaptable(network), 16, device=where)
        data = distill.LatentSet([torch.randn(4, *model.latent)], [0], lambda x: x.to(where, torch.float32))
        around = backbone.OutOfPlaceOps
        called = backbone.Backbone(guider, extra_args, [text], text, around=around)
        config = distill.DistillConfig(steps=10_000, batch=1, cfg=(4.0, 6.0))
        trainer = distill.Trainer(called, adapters, data, table, config, flow=table.flow)
        ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            "as it is": nullcontext,
            "checkpointing": lambda: adapters.checkpointed(network, around),
            "streaming": lambda: memory.streamed(base, where, adapters, around),
        }
        for turn in range(rounds + 1):  # the first is thrown away
            for way in WAYS if turn % 2 else reversed(WAYS):
                if device != "cpu":
                    base.to("cpu" if way == "streaming" else where)
                with adapters.attached(), ways[way]():
                    seconds = _timed(trainer.step, device)
                if turn:
                    found[way].append(seconds)

    training.with_model(patcher, text, (1, *model.latent), body, at_home=device != "cpu")
    return found


def _timed(step: Callable[[], Any], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        step()  # what is pinned and compiled at first
        torch.cuda.synchronize()
    started = clock()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def row(name: str, found: dict[str, list[float]]) -> list[str]:
    streamed = found["streaming"]
    ratios = [statistics.median(a / b for a, b in zip(streamed, found[way], strict=True)) for way in WAYS[1::-1]]
    typical = (statistics.median(found[way]) for way in WAYS)
    return [name, *(f"{seconds:.2f} s" for seconds in typical), *(f"{ratio:.2f}" for ratio in ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(NARROW), default=list(NARROW))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    pack, rows = start_host(options.device), []
    for name in options.models:
        rows.append(row(name, measure(name, options.rounds, options.device, pack)))
        print(*rows[-1], file=sys.stderr, flush=True)
    print(f"An update at batch 1, rank 16, guided, on the {options.device}, median of {options.rounds} rounds.")
    print(f"Target: streaming at most {TARGET} times the seconds of checkpointing.\n")
    print(markdown(["", *WAYS, "streaming / checkpointing", "streaming / as it is"], rows))


if __name__ == "__main__":
    main()
