"""The memory plan against torch's own allocator, and weights streamed to a device that counts them."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext

import pytest
import torch
from large_networks import Levels, Tokens, counted, trainer
from torch import nn

from benchmarks.memory_truth import Allocated
from pcm_core import distill
from pcm_core.distill import memory, streaming
from pcm_core.errors import PCMError

# network, latent, rank, batch, accumulate, guided, ema, adversarial 0, checkpointing
WORK = {
    "transformer": (Tokens, {"shape": (4, 12, 12), "rank": 4}),
    "transformer, batch 4": (Tokens, {"shape": (4, 12, 12), "rank": 4, "batch": 4}),
    "transformer, rank 32": (Tokens, {"shape": (4, 8, 8), "rank": 32, "ema": True}),
    "transformer, checkpointing": (Tokens, {"shape": (4, 16, 16), "rank": 4, "batch": 2, "checkpointing": True}),
    "transformer, accumulated": (Tokens, {"shape": (4, 8, 8), "rank": 16, "accumulate": 2, "checkpointing": True}),
    "transformer, bf16 adapters": (Tokens, {"shape": (4, 12, 12), "rank": 32, "adapter_dtype": torch.bfloat16}),
    "U": (Levels, {"shape": (4, 32, 32), "rank": 8}),
    "U, unguided": (Levels, {"shape": (4, 32, 32), "rank": 8, "batch": 2, "guided": False}),
    "U, checkpointing": (Levels, {"shape": (4, 64, 64), "rank": 4, "checkpointing": True}),
    "U, streamed": (Levels, {"shape": (4, 32, 32), "rank": 4, "batch": 2, "streaming": True}),
    "transformer, streamed": (Tokens, {"shape": (4, 12, 12), "rank": 4, "batch": 2, "streaming": True}),
}


def config(load: memory.Workload) -> distill.DistillConfig:
    cfg = (4.0, 6.0) if load.guided else (1.0, 1.0)
    return distill.DistillConfig(
        steps=9, batch=load.batch, accumulate=load.accumulate, cfg=cfg, ema=0.9 * load.ema,
        target="ema" if load.ema else "student",
    )  # fmt: skip


def forward(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x - network(x, torch.ones(len(x)))


def recomputing(adapters: distill.Adapters, network: nn.Module, load: memory.Workload):
    """The context in which that work is done."""
    if load.streaming:
        carrier = streaming.DirectCarrier(torch.clone)
        return streaming.streamed(adapters, network, carrier)
    return adapters.checkpointed(network) if load.checkpointing else nullcontext()


def measured(network: nn.Module, load: memory.Workload) -> int:
    """What one update really takes, by torch's allocator: the memory in use before it, and the peak on top of that."""
    adapters, running = trainer(network, config(load), load.rank, load.shape, load.adapter_dtype)
    with adapters.attached(), recomputing(adapters, network, load):
        running.step()
        running._zero_grad()
        with Allocated() as during:
            running.step()
    moments = [value for state in running.optimizer.state.values() for value in state.values()]
    lying = [*adapters.parameters(), *adapters.student.masters, *running._good, *moments]
    away = streaming.streamed_tensors(network) if load.streaming else set()
    lying += [weight for weight in network.parameters() if id(weight) not in away]
    return sum(tensor.nbytes for tensor in lying) + during.peak


@pytest.mark.parametrize("name", WORK)
def test_the_plan_is_what_the_allocator_gives(name):
    make, settings = WORK[name]
    network, load = make(), memory.Workload(device="cpu", **settings)
    planned, real = memory.plan(network, forward, load), measured(network, load)
    assert planned.total == pytest.approx(real, rel=0.1), planned.parts
    assert not planned.estimated


def test_a_plan_leaves_the_network_as_it_was():
    network = Tokens(width=32, depth=2)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in network.named_parameters()}
    memory.plan(network, forward, memory.Workload(shape=(4, 8, 8), rank=2, streaming=True))
    for name, tensor in network.named_parameters():
        assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1])
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in network.modules())


def test_a_model_that_has_no_memory_is_planned_too():
    """On the meta device: 13 GB of weights that take no memory."""
    with torch.device("meta"):
        network = Tokens(width=8192, depth=8, filled=False).to(torch.bfloat16).requires_grad_(False)

    def run(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return network(x.bfloat16(), torch.ones(len(x), dtype=torch.bfloat16))

    load = {"shape": (4, 32, 32), "rank": 16}  # of the adapters too there is nothing
    whole = memory.plan(network, run, memory.Workload(**load))
    weights = sum(weight.nbytes for weight in network.parameters())
    assert whole.parts["weights"] == weights > 12e9
    streamed = memory.plan(network, run, memory.Workload(streaming=True, **load))
    block = sum(weight.nbytes for weight in network.blocks[0].parameters())
    assert streamed.parts["weights"] < 2.1 * block
    assert streamed.total < memory.plan(network, run, memory.Workload(checkpointing=True, **load)).total < whole.total


def test_the_parts_are_what_they_are_called():
    network, shape = Tokens(), (4, 12, 12)
    plain = memory.plan(network, forward, memory.Workload(shape=shape, rank=8))
    pairs = sum(8 * sum(module.weight.shape) * 4 for module in distill.adaptable(network).values())
    assert plain.parts["weights"] == sum(weight.nbytes for weight in network.parameters())
    assert plain.parts["adapters"] == pairs and plain.parts["optimizer"] == 2 * pairs
    averaged = memory.plan(network, forward, memory.Workload(shape=shape, rank=8, ema=True))
    assert averaged.parts["adapters"] == 2 * pairs
    on_cpu = memory.plan(network, forward, memory.Workload(shape=shape, rank=8, device="cpu"))
    assert on_cpu.parts["adapters"] == 2 * pairs, "the copy to fall back on"
    rounded = memory.plan(network, forward, memory.Workload(shape=shape, rank=8, adapter_dtype=torch.bfloat16))
    assert rounded.parts["adapters"] == pairs // 2 and rounded.parts["optimizer"] == rounded.parts["gradients"] == 0
    assert str(memory.MemoryPlan({"weights": 5 << 30, "adapters": 3 << 29, "activations": 3 << 28})) == (
        "7.2 GB (weights 5.0, adapters and optimizer 1.5, activations 0.75)"
    )


@pytest.mark.parametrize("make", [Tokens, Levels])
def test_streamed_gradients_are_the_resident_ones_to_the_bit(make):
    """Every gradient of three updates, with at most three blocks loaded and none used when it is not."""
    settings = distill.DistillConfig(steps=9, batch=2, cfg=(4.0, 6.0), lr=1e-3)
    seen = {}
    for way in ("resident", "checkpointed", "streamed"):
        network = make()
        adapters, running = trainer(network, settings, 4, (4, 8, 8))
        contexts = {"resident": nullcontext, "checkpointed": lambda: adapters.checkpointed(network),  # noqa: B023
                    "streamed": lambda: counted(adapters, network, nullcontext)}  # noqa: B023  # fmt: skip
        before = {name: id(tensor) for name, tensor in network.named_parameters()}
        with adapters.attached(), contexts[way]() as device:
            seen[way] = [
                [running.step().loss, *(p.grad.clone() for p in adapters.student.parameters())] for _ in range(3)
            ]
        assert {name: id(tensor) for name, tensor in network.named_parameters()} == before
        assert not any("forward" in module.__dict__ for module in network.modules())
    sizes = sorted(streaming.blocks_bytes(network))
    assert device.resident == 0, "all of it is gone in the end"
    assert sizes[-1] < device.most <= sum(sizes[-3:]) < sum(sizes)
    assert device.brought <= 3 * 4 * sum(sizes), "each weight once for student, teacher, target and backward pass"
    for way in ("checkpointed", "streamed"):
        for one, other in zip(seen["resident"], seen[way], strict=True):
            assert one[0] == other[0] and all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True)), way


@pytest.mark.long
@pytest.mark.parametrize("make", [lambda: Tokens(128), lambda: Levels(64)], ids=["transformer", "U"])
def test_streaming_costs_at_most_two_fifths_more_time(make):
    """CPU seconds of updates in turns, every copy a real one; benchmarks.streaming_cost has the host's families."""
    network = make()
    adapters, running = trainer(network, distill.DistillConfig(steps=99, batch=2, cfg=(4.0, 6.0)), 4, (4, 32, 32))
    ways = (lambda: adapters.checkpointed(network),
            lambda: streaming.streamed(adapters, network, streaming.carrier_for(torch.device("cpu"))))  # fmt: skip
    seconds: list[list[float]] = [[], []]
    for turn in range(8):
        for way in (0, 1) if turn % 2 else (1, 0):
            with adapters.attached(), ways[way]():
                started = time.process_time()
                running.step()
            seconds[way].append(time.process_time() - started)
    assert statistics.median(b / a for a, b in zip(*seconds, strict=True)) < 1.4, seconds


def test_a_weight_used_while_it_is_away_is_noticed():
    """The watcher itself: if it missed this, the test above would prove nothing."""
    network = Tokens()
    adapters, running = trainer(network, distill.DistillConfig(steps=9, batch=2), 4, (4, 8, 8))
    with adapters.attached(), counted(adapters, network, nullcontext) as device:
        with pytest.raises(AssertionError, match="not on the device"):
            network.blocks[0].qkv.weight.sum()
        running.step()
        held = device.begin([network.blocks[3].qkv.weight])
        device.release(held)
        with pytest.raises(AssertionError, match="was released"):
            held[0].sum()


def test_a_step_that_fails_leaves_everything_at_home():
    network = Tokens()
    adapters, running = trainer(network, distill.DistillConfig(steps=9, batch=2), 4, (4, 8, 8))
    before = {name: id(tensor) for name, tensor in network.named_parameters()}

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        adapters.attached(),
        streaming.streamed(adapters, network, streaming.DirectCarrier(torch.clone)),
    ):
        network.blocks[3].fc1.register_forward_hook(fail)
        running.step()
    assert {name: id(tensor) for name, tensor in network.named_parameters()} == before


def test_nothing_to_adapt_is_refused_as_in_training():
    with pytest.raises(PCMError, match="No module's name contains nothing"):
        memory.plan(Tokens(), forward, memory.Workload(shape=(4, 8, 8), rank=4, targets=("nothing",)))
