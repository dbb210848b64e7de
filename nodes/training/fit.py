"""Whether a distillation fits its device: plan it, say so, and recompute or stream blocks where it would not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ...pcm_core.distill.memory import MemoryPlan, Workload, gigabytes
from ...pcm_core.errors import PCMError
from ..host import memory as host_memory
from ..host.backbone import Conditioning, can_checkpoint

How = Literal["auto", "off", "stream"]
# A run whose rough estimate is below this part of what is free is not traced: it costs seconds and decides nothing.
_SMALL = 0.25


@dataclass(frozen=True)
class Fit:
    """How a run will be done.

    Attributes:
        load: with ``checkpointing`` and ``streaming`` as they will be.
        plan: what that needs.
        text: what it needs, what is free, and what was chosen or could be.
    """

    load: Workload
    plan: MemoryPlan
    text: str


def fit(model: Any, conditioning: Conditioning, load: Workload, how: How) -> Fit:
    """Plan a run before its first step.

    Args:
        load: as the switches say.
        how: ``auto`` switches checkpointing on where the plan does not fit, and streaming where that does not either;
            ``stream`` streams; ``off`` leaves it at the switches and says what would help.
    """
    if how == "stream":
        load = replace(load, checkpointing=True, streaming=True)
    free = host_memory.free_bytes(model)
    rough = host_memory.estimate(model, load, "next to what is free it is small")
    if rough.total < _SMALL * free:
        return Fit(load, rough, _sentence(rough, free))
    plan = host_memory.plan(model, conditioning, load)
    if plan.total <= free:
        return Fit(load, plan, _sentence(plan, free))
    savings = [(words, other, host_memory.plan(model, conditioning, other)) for words, other in _savings(model, load)]
    if how == "auto":
        automatic = [saving for saving in savings if _same_training(saving[1], load)]
        fitting = [saving for saving in automatic if saving[2].total <= free]
        if chosen := (fitting or automatic[-1:]):
            words, other, less = chosen[0]
            done = f"{words} is on, with which it needs {gigabytes(less.total)} GB"
            return Fit(other, less, f"{_sentence(plan, free)}: {done}{'' if fitting else ', which may not be enough'}")
    helpful = [saving for saving in savings if saving[2].total <= free] or savings[:2]
    advice = " or ".join(f"{words} ({gigabytes(less.total)} GB)" for words, _, less in helpful)
    return Fit(load, plan, f"{_sentence(plan, free)}{': try ' + advice if advice else ''}")


@contextmanager
def out_of_memory_explained(fit: Fit) -> Iterator[None]:
    """Turn a device's out-of-memory error into one that says what was planned.

    Raises:
        PCMError: in its place.
    """
    try:
        yield
    except Exception as error:
        if not host_memory.out_of_memory(error):
            raise
        raise PCMError(
            f"Memory ran out; the run {fit.text}.",
            "enough of it for one update.",
            "Take a smaller rank, batch or latent, set fit_memory to stream, or close what else uses the device.",
        ) from error


def _same_training(one: Workload, other: Workload) -> bool:
    """Whether both train the same LoRA, to the bit."""
    return (one.rank, one.batch, one.adapter_dtype) == (other.rank, other.batch, other.adapter_dtype)


def _savings(model: Any, load: Workload) -> Iterator[tuple[str, Workload]]:
    """What needs less, in words and as a workload, the cheapest in time first."""
    if can_checkpoint(model):
        if not load.checkpointing:
            yield "gradient checkpointing", replace(load, checkpointing=True)
        if not load.streaming and load.device != "cpu":
            yield "streaming of the weights", replace(load, checkpointing=True, streaming=True)
    if load.adapter_dtype == torch.float32 and load.device != "cpu":
        yield "adapter_dtype bf16", replace(load, adapter_dtype=torch.bfloat16)
    if load.rank > 8:
        yield f"rank {load.rank // 2}", replace(load, rank=load.rank // 2)
    if load.batch > 1:
        yield "batch_size 1 with more grad_accumulation", replace(load, batch=1, accumulate=2)


def _sentence(plan: MemoryPlan, free: int) -> str:
    how = f", estimated ({plan.estimated})" if plan.estimated else ""
    return f"needs about {plan}{how}; {gigabytes(free)} GB are free"
