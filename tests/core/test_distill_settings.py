"""Every trainer setting has exactly the effect it describes; a setting that is ignored fails here."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from test_distill_trainer import make

from pcm_core import distill
from pcm_core.distill import trainer as module
from pcm_core.distill.adversarial import hinge_discriminator, renoise
from pcm_core.distill.trainer import NULL_CAPTION
from pcm_core.errors import PCMError


def gradients(trainer, passes: int = 1) -> list[torch.Tensor]:
    """Of the adapters, then of the heads, after that many batches."""
    trainer._zero_grad()
    for _ in range(passes):
        trainer._pass()
    return [gradient.clone() for gradient in trainer._gradients()]


def warmed(**settings):
    """A trainer with attached adapters that are not zero, so that every gradient counts."""
    trainer, network, backbone = make(**settings)
    with torch.no_grad():
        for i, parameter in enumerate(trainer.adapters.student.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return trainer, network, backbone


@pytest.fixture
def pairs(monkeypatch):
    """The pairs that the passes make, in order."""
    seen = []
    original = module.phased_pair

    def spy(*arguments, **options):
        seen.append(original(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(module, "phased_pair", spy)
    return seen


@pytest.mark.parametrize(("rate", "fraction"), [(0.0, 0.0), (0.5, 0.5), (0.9, 0.9)])
def test_captions_are_dropped_as_often_as_asked(rate, fraction):
    trainer, _, _ = make(caption_dropout=rate, batch=512)
    dropped = (trainer._draw().captions == NULL_CAPTION).double().mean()
    assert abs(float(dropped) - fraction) < 0.1


def test_guidance_is_drawn_from_its_range_and_moves_the_teacher_away_from_the_null():
    trainer, network, _ = make(cfg=(2.0, 4.0), batch=512)
    batch = trainer._draw()
    assert 2 <= batch.cfg.min() < 2.1 and 3.9 < batch.cfg.max() <= 4
    x, sigma = torch.randn(512, 2, generator=torch.Generator().manual_seed(0)), torch.full((512,), 0.5)
    null = torch.full_like(batch.captions, NULL_CAPTION)
    with torch.no_grad():
        conditional, unconditional = (x - 0.5 * network(x, sigma, text) for text in (batch.captions, null))
        expected = unconditional + batch.cfg[:, None] * (conditional - unconditional)
        torch.testing.assert_close(trainer._teacher(batch)(x, sigma), expected)


@pytest.mark.parametrize("settings", [{"loss": "l2"}, {"loss": "huber", "huber_c": 0.3}], ids=str)
def test_the_loss_is_the_one_that_is_named(settings, pairs):
    trainer, _, _ = warmed(**settings)
    with trainer.adapters.attached():
        loss = float(trainer._pass()[0])
    error = pairs[0].error.double()
    expected = error.square() if settings["loss"] == "l2" else (error.square() + 0.09).sqrt() - 0.3
    assert loss == pytest.approx(float(expected.detach().mean()), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"adversarial": 0.1}], ids=str)
def test_accumulated_gradients_are_the_mean_of_their_batches(settings):
    one, _, _ = warmed(**settings)
    two, _, _ = warmed(**settings, accumulate=2)
    with one.adapters.attached():
        single = [gradients(one), gradients(one)]
    with two.adapters.attached():
        both = gradients(two, passes=2)
    for gradient, *parts in zip(both, *single, strict=True):
        torch.testing.assert_close(gradient, sum(parts) / 2, rtol=1e-4, atol=1e-6)


def test_the_adversarial_gradient_is_linear_in_its_weight_and_leaves_the_heads_alone():
    found = {}
    for weight in (1e-9, 0.1, 0.2):
        trainer, _, _ = warmed(adversarial=weight)
        with trainer.adapters.attached():
            found[weight] = gradients(trainer)
        count = len(list(trainer.adapters.student.parameters()))
    for nothing, tenth, fifth in zip(*(found[weight][:count] for weight in found), strict=True):
        torch.testing.assert_close(fifth - nothing, 2 * (tenth - nothing), rtol=1e-2, atol=1e-6)
    assert any((tenth - nothing).abs().max() > 1e-5 for nothing, tenth in zip(found[1e-9], found[0.1], strict=True))
    for tenth, fifth in zip(found[0.1][count:], found[0.2][count:], strict=True):
        assert torch.equal(tenth, fifth) and tenth.abs().max() > 0


def test_the_discriminator_tells_the_target_from_the_student_by_frozen_features(pairs):
    trainer, _, _ = warmed(adversarial=0.1)
    features, seen = trainer.discriminator.features, []

    def spy(x, sigma, captions):
        found = features(x, sigma, captions)
        seen.append((x.detach(), sigma, trainer.adapters.mode, [part.detach() for part in found]))
        return found

    trainer.discriminator.features = spy
    state = trainer.generator.get_state()
    with trainer.adapters.attached():
        totals = trainer._pass()
    trainer.generator.set_state(state)
    batch = trainer._draw()
    (real, level, mode, seen_real), (fake, _, _, seen_fake) = seen
    assert mode == seen[1][2] == "off"
    for shown, ending, noise in zip((real, fake), (pairs[0].landing, pairs[0].prediction), batch.renoise, strict=True):
        torch.testing.assert_close(shown, renoise(ending, pairs[0].edge, level, noise, flow=True).detach())
    heads = trainer.discriminator.heads
    with torch.no_grad():
        expected = hinge_discriminator(heads(seen_real), heads(seen_fake))
    assert float(totals[2]) == pytest.approx(float(expected), rel=1e-5)


def test_the_discriminator_learns_at_its_own_rate():
    trainer, _, _ = make(adversarial=0.1, adversarial_lr=0.02)
    heads = trainer.discriminator.heads
    before = copy.deepcopy(heads.state_dict())
    with trainer.adapters.attached():
        trainer.step()
    moved = [float((weight - before[name]).abs().max()) for name, weight in heads.state_dict().items()]
    assert all(0.01 < move < 0.03 for move in moved), moved  # Adam's first step is its rate


def test_a_broken_discriminator_ends_the_run(monkeypatch):
    """Only its own loss is broken; the rest of the step is untouched."""
    trainer, _, _ = make(adversarial=0.1)
    monkeypatch.setattr(module, "hinge_discriminator", lambda real, fake: math.inf * hinge_discriminator(real, fake))
    with trainer.adapters.attached(), pytest.raises(PCMError, match="step 1"):
        trainer.step()


def test_the_rate_warms_up_and_falls_along_a_cosine():
    config = distill.DistillConfig(phases=2, steps=100, lr=1.0, warmup=10)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[0] < 0.2 and rates[:10] == sorted(rates[:10]) and max(rates) == pytest.approx(1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.03
    assert rates[54] == pytest.approx(0.5, abs=0.03)
    trainer, _, _ = make()
    with trainer.adapters.attached():
        assert [trainer.step().lr for _ in range(3)] == [trainer.config.learning_rate(step) for step in range(3)]


def test_the_average_follows_the_student_and_is_the_target():
    trainer, _, backbone = make(ema=0.2, target="ema")
    average = [parameter.detach().clone() for parameter in trainer.adapters.student.parameters()]
    with trainer.adapters.attached():
        for step in range(6):
            trainer.step()
            decay = min(0.2, (step + 1) / (step + 10))
            for value, parameter in zip(average, trainer.adapters.student.parameters(), strict=True):
                value.lerp_(parameter.detach(), 1 - decay)
    assert {mode for mode, _, _ in backbone.calls} == {"student", "off", "ema"}
    lora, student = trainer.adapters.lora(ema=True), trainer.adapters.lora()
    name = next(iter(trainer.adapters.pairs))
    torch.testing.assert_close(lora[f"diffusion_model.{name}.lora_down.weight"], average[0])
    assert not torch.equal(student[f"diffusion_model.{name}.lora_down.weight"], average[0])


def test_decay_and_clipping_are_those_asked_for():
    trainer, _, _ = warmed(weight_decay=0.3, max_grad_norm=1e-3)
    (group,) = trainer.optimizer.param_groups
    assert group["weight_decay"] == 0.3
    with trainer.adapters.attached():
        report = trainer.step()
    clipped = torch.stack([gradient.norm() for gradient in trainer._gradients()]).norm()
    assert report.grad_norm > 2e-3 and float(clipped) == pytest.approx(1e-3, rel=1e-2)


def test_grid_and_terminal_make_the_solver_points():
    zero, _, _ = make(grid=20, terminal="zero")
    official, _, _ = make(grid=20, terminal="alpha0")
    assert len(zero.grid) == len(official.grid) == 20
    assert zero.grid.below[0] == 0 and official.grid.below[0] == pytest.approx(1e-3)


def test_an_exported_lora_says_its_alpha():
    adapters = distill.Adapters({"a": torch.nn.Linear(3, 4)}, 2, alpha=7.0)
    assert float(adapters.lora()["diffusion_model.a.alpha"]) == 7 and adapters.pairs["a"].scale == 3.5


@pytest.mark.parametrize(
    ("rank", "alpha", "targets", "said"),
    [
        (2, 4.0, ["blocks", "leave"], "rank 4 -> 2"), (1, 4.0, ["blocks", "leave"], "rank 4 -> 1"),
        (4, 1.0, ["blocks", "leave"], "alpha 4 -> 1"), (4, 4.0, ["leave"], "targets: 3 modules -> 1"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_adapters_is_refused_and_changes_nothing(rank, alpha, targets, said):
    made, _, _ = make()
    trainer, network, _ = make()
    trainer.adapters = distill.Adapters(distill.adaptable(network, targets), rank, alpha=alpha)
    before = [parameter.clone() for parameter in trainer.adapters.student.parameters()]
    with pytest.raises(PCMError, match=said):
        trainer.load(made.state())
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.adapters.student.parameters(), strict=True))
