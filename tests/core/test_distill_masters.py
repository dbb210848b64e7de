"""Adapters in bf16 whose float32 masters are what is trained: gradients, updates, average, checkpoints, roll-back."""

from __future__ import annotations

import pytest
import test_matching_trainer as matching
import torch
from test_distill_trainer import make, same
from torch._subclasses.fake_tensor import FakeTensorMode

from pcm_core import distill
from pcm_core.distill import trainer as module
from pcm_core.errors import PCMError

BF16 = torch.bfloat16


def off_zero(trainer: distill.Trainer) -> distill.Trainer:
    """As after some training: at zero half of all gradients are zero."""
    state = trainer.adapters.state()["student"]
    for i, part in enumerate(weights[name] for weights in state.values() for name in ("down", "up")):
        part.add_(0.1 * torch.randn(part.shape, generator=torch.Generator().manual_seed(i)))
    trainer.adapters.load({"student": state})
    trainer._remember()
    return trainer


def run(trainer, steps: int) -> list[float]:
    with trainer.adapters.attached():
        return [trainer.step().loss for _ in range(steps)]


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"cfg": (2.0, 4.0)}, {"adversarial": 0.1}], ids=str)
def test_gradients_are_those_of_the_rounded_adapters_in_fp32(settings):
    """The same values in fp32 adapters give them; what bf16 adds is one rounding of every pass."""
    trainer = off_zero(make(dtype=BF16, max_grad_norm=1e9, **settings)[0])
    plain = make(max_grad_norm=1e9, **settings)[0]
    rounded = {name: {part: value.bfloat16().float() for part, value in weights.items()}
               for name, weights in trainer.adapters.student.state().items()}  # fmt: skip
    plain.adapters.load({"student": rounded})
    losses = [run(one, 1) for one in (trainer, plain)]
    assert losses[0] == losses[1]
    pairs = zip(trainer._gradients(), plain._gradients(), strict=True)
    for mine, theirs in pairs:
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2**-7 * float(theirs.abs().max()))
    assert all(parameter.grad is None for parameter in trainer.adapters.student.parameters()), "handed over"


def test_the_masters_are_updated_as_fp32_values_are(monkeypatch):
    """Against an optimizer of our own on a copy of them, and the pairs are their rounded values."""
    trainer = off_zero(make(dtype=BF16, lr=1e-5, warmup=0)[0])
    copies = [torch.nn.Parameter(master.detach().clone()) for master in trainer.adapters.student.masters]
    optimizer = torch.optim.AdamW(copies, lr=1e-5, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(4):
        run(trainer, 1)
        for copy, master in zip(copies, trainer.adapters.student.masters, strict=True):
            copy.grad = master.grad.clone()
        optimizer.param_groups[0]["lr"] = trainer.config.learning_rate(step)
        optimizer.step()
    student = trainer.adapters.student
    for copy, master, parameter in zip(copies, student.masters, student.parameters(), strict=True):
        torch.testing.assert_close(master, copy, rtol=1e-6, atol=1e-9)
        assert parameter.dtype == BF16 and torch.equal(parameter, master.bfloat16())


def test_an_update_that_bf16_would_lose_is_kept():
    trainer = off_zero(make(dtype=BF16, lr=1e-6, warmup=0)[0])
    before, rounded = trainer.adapters.lora(), [p.clone() for p in trainer.adapters.student.parameters()]
    run(trainer, 3)
    lora = trainer.adapters.lora()
    moved = [key for key in lora if "weight" in key and not torch.equal(lora[key], before[key])]
    assert len(moved) == 6 and all(lora[key].dtype == torch.float32 for key in moved)
    same_values = [(a == b).float().mean() for a, b in zip(trainer.adapters.student.parameters(), rounded, strict=True)]
    assert min(map(float, same_values)) > 0.9, "rounded to bf16 nearly nothing moved"


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9, "target": "ema"}, {"adversarial": 0.1, "accumulate": 2}], ids=str
)
def test_resume_is_to_the_bit(settings):
    whole = make(dtype=BF16, **settings)[0]
    losses = run(whole, 6)
    first = make(dtype=BF16, **settings)[0]
    run(first, 3)
    state = first.state()
    assert {value.dtype for weights in state["adapters"]["student"].values() for value in weights.values()} == {
        torch.float32
    }
    second = make(dtype=BF16, **settings)[0]
    second.load(state)
    assert run(second, 3) == losses[3:]
    assert same(second.adapters.state(), whole.adapters.state())
    for parameter, master in zip(second.adapters.student.parameters(), second.adapters.student.masters, strict=True):
        assert torch.equal(parameter, master.bfloat16())


@pytest.mark.parametrize(("made", "resumed"), [(BF16, torch.float32), (torch.float32, BF16)])
def test_a_checkpoint_of_the_other_dtype_is_refused(made, resumed):
    state, other = make(dtype=made)[0].state(), make(dtype=resumed)[0]
    names = [str(dtype).removeprefix("torch.") for dtype in (made, resumed)]
    with pytest.raises(PCMError, match=f"dtype of the adapters {names[0]} -> {names[1]}"):
        other.load(state)


def test_a_checkpoint_without_a_dtype_is_one_of_fp32():
    state = make()[0].state()
    del state["adapter_dtype"]
    make()[0].load(state)


def test_the_average_is_kept_in_fp32_and_follows_the_masters():
    trainer = off_zero(make(dtype=BF16, ema=0.9)[0])
    run(trainer, 1)
    average = [value.detach().clone() for value in trainer.adapters.ema.parameters()]
    run(trainer, 1)
    decay = min(0.9, 2 / 11)
    for before, after, master in zip(
        average, trainer.adapters.ema.parameters(), trainer.adapters.student.masters, strict=True
    ):
        assert after.dtype == torch.float32
        torch.testing.assert_close(after, decay * before + (1 - decay) * master, rtol=1e-6, atol=1e-7)


def test_a_step_that_diverges_is_undone(monkeypatch):
    trainer = make(dtype=BF16)[0]
    run(trainer, 2)
    good, original = trainer.adapters.state(), module.pseudo_huber
    run(trainer, 1)
    monkeypatch.setattr(module, "pseudo_huber", lambda error, c: original(error, c) * float("nan"))
    with pytest.raises(distill.Diverged):
        run(trainer, 1)
    assert same(trainer.adapters.state(), good) and trainer.step_number == 2
    student = trainer.adapters.student
    assert all(torch.equal(p, m.bfloat16()) for p, m in zip(student.parameters(), student.masters, strict=True))


def test_a_lora_to_go_on_from_is_kept_exactly():
    trainer = make(dtype=BF16)[0]
    lora = {key: value + 0.123456789 if key.endswith("weight") else value
            for key, value in trainer.adapters.lora().items()}  # fmt: skip
    trainer.adapters.load_lora(lora)
    assert all(torch.equal(value, lora[key]) for key, value in trainer.adapters.lora().items())


def test_the_matching_stage_resumes_to_the_bit(tmp_path):
    """Student and fake."""
    whole, _ = matching.make(dtype=BF16)
    assert {value.dtype for value in whole.fake.parameters()} == {BF16} and len(whole.fake.masters) == 6
    fake = [value.detach().clone() for value in whole.fake.masters]
    matching.run(whole)
    assert not any(torch.equal(a, b) for a, b in zip(fake, whole.fake.masters, strict=True))
    first, _ = matching.make(dtype=BF16)
    matching.run(first, 8)
    second, _ = matching.make(dtype=BF16)
    second.load(first.state())
    matching.run(second)
    assert same(second.adapters.state(), whole.adapters.state()) and second.losses == whole.losses


class Still(distill.TrainingLoop):
    """A loop that takes no step."""

    def step(self):
        raise AssertionError

    def state(self):
        raise AssertionError

    def load(self, state):
        raise AssertionError


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_on_a_gpu_the_copy_to_fall_back_on_is_in_main_memory(dtype):
    """On torch's fake tensors, which have a device that is not there."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 6)).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        adapters = distill.Adapters(distill.adaptable(network), 2, dtype=dtype)
        loop = Still(network, adapters, None, steps=1, ema=0.0, autocast=None, seed=0)
        assert {parameter.device.type for parameter in adapters.parameters()} == {"cuda"}
        assert len(loop._good) == 2 and {copy.device.type for copy in loop._good} == {"cpu"}
        assert all(copy.dtype == torch.float32 for copy in loop._good)
