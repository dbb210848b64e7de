"""The adversarial consistency loss: how much noise it adds, its losses, and which parameters get a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pcm_core import distill
from pcm_core.errors import PCMError


@pytest.fixture
def timestep_sigma(sd_table):
    return lambda t: sd_table[t : t + 1].double()


@pytest.mark.parametrize(("low", "high", "std"), [(739, 900, 7.372728999), (499, 600, 1.618078413), (239, 239, 0.0)])
def test_variance_exploding_renoise_is_the_official_one(timestep_sigma, low, high, std):
    """``noise_travel`` of the authors' DDPM scheduler, in sigma space (T15 of the method notes)."""
    found = distill.renoise_std(timestep_sigma(low), timestep_sigma(high), flow=False)
    assert float(found) == pytest.approx(std, rel=2e-5, abs=1e-9)


@pytest.mark.parametrize(("low", "high", "std"), [
    (0.75, 0.9, 0.848528137), (0.5, 0.75, 0.707106781), (0.9, 0.99, 0.985900604), (0.5, 0.5, 0.0), (0.0, 0.3, 0.3),
    (0.6, 1.0, 1.0),
])  # fmt: skip
def test_flow_renoise_has_the_right_variance(low, high, std):
    """T16; the official (s - m) / (1 - m) would give 0.6, 0.5 and 0.9 for the first three."""
    found = distill.renoise_std(torch.tensor([low]).double(), torch.tensor([high]).double(), flow=True)
    assert float(found) == pytest.approx(std, abs=1e-6)


@pytest.mark.parametrize("flow", [True, False])
def test_renoised_latents_are_as_noisy_as_fresh_ones(flow):
    """Noise a latent to one level, renoise to a higher one: mean and variance are those of noising directly."""
    generator = torch.Generator().manual_seed(4)
    low, high = (0.5, 0.8) if flow else (1.6, 5.0)
    n = 200_000
    sigma, to = torch.full((n,), low).double(), torch.full((n,), high).double()
    clean = torch.full((n, 1), 3.0).double()
    noises = torch.randn(3, n, 1, generator=generator, dtype=torch.float64)
    x = distill.renoise(distill.add_noise(clean, noises[0], sigma, flow=flow), sigma, to, noises[1], flow=flow)
    direct = distill.add_noise(clean, noises[2], to, flow=flow)
    assert float(x.mean()) == pytest.approx(float(direct.mean()), abs=0.05)
    assert float(x.std()) == pytest.approx(float(direct.std()), rel=0.01)


def test_hinge_losses():
    ones = [torch.ones(2, 3, 1), torch.ones(2, 5, 1)]
    zeros = [torch.zeros_like(score) for score in ones]
    assert float(distill.hinge_discriminator(zeros, zeros)) == 2  # chance
    assert float(distill.hinge_discriminator(ones, [-score for score in ones])) == 0
    assert float(distill.hinge_generator(zeros)) == 1
    assert float(distill.hinge_generator(ones)) == 0


def test_heads_take_any_number_of_tokens_and_freeze():
    heads = distill.DiscriminatorHeads([6, 10], 16, torch.Generator().manual_seed(0))
    features = [torch.randn(2, 7, 6, requires_grad=True), torch.randn(2, 1, 10, requires_grad=True)]
    scores = heads(features)
    assert all(bool(score.any()) for score in scores)
    assert [tuple(score.shape) for score in scores] == [(2, 7, 1), (2, 1, 1)]
    distill.hinge_generator(heads(features, frozen=True)).backward()
    assert all(parameter.grad is None for parameter in heads.parameters())
    assert all(feature.grad is not None and bool(feature.grad.any()) for feature in features)
    distill.hinge_discriminator(scores, [-score for score in scores]).backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


@pytest.mark.parametrize("hidden", [8, 20])
def test_heads_that_would_be_dead_are_refused(hidden):
    with pytest.raises(PCMError, match="multiple of 8"):
        distill.DiscriminatorHeads([4], hidden, torch.Generator())


def test_heads_learn_to_tell_two_latents_apart():
    """A discriminator that learns does better than chance; the losses above would not reveal a dead one."""
    generator = torch.Generator().manual_seed(5)
    heads = distill.DiscriminatorHeads([4], 16, generator)
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    for _ in range(60):
        real, fake = torch.randn(2, 16, 9, 4, generator=generator)
        loss = distill.hinge_discriminator(heads([real + 1]), heads([fake - 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_levels_lie_inside_the_phase_and_reach_all_of_it(phases):
    grid = distill.SolverGrid.from_table(torch.arange(1, 1001) / 1000, phases, 40, terminal="zero")
    discriminator = distill.Discriminator(
        lambda x, s, c: [x], distill.DiscriminatorHeads([1], 16, torch.Generator().manual_seed(0))
    )
    generator = torch.Generator().manual_seed(6)
    index = torch.arange(40).repeat(200)
    level = discriminator.level(grid, index, generator)
    assert bool((level > grid.edge[index]).all())
    for k in range(phases):
        low, high = k / phases, (k + 1) / phases
        inside = level[(grid.edge[index] - low).abs() < 1e-6]
        assert low < float(inside.min()) <= low + 0.03 and float(inside.max()) == pytest.approx(high)


@pytest.mark.parametrize("span", [(0.0, 0.25), (0.75, 1.0), (0.2, 0.6)])
def test_a_span_is_a_part_of_the_phase(span):
    grid = distill.SolverGrid.from_table(torch.arange(1, 1001) / 1000, 4, 40, terminal="zero")
    discriminator = distill.Discriminator(
        lambda x, s, c: [x], distill.DiscriminatorHeads([1], 16, torch.Generator().manual_seed(0))
    )
    index = torch.arange(40).repeat(100)
    level = discriminator.level(grid, index, torch.Generator().manual_seed(6), span)
    fraction = (level - grid.edge[index]) * 4  # a solver point stands for the tenth of the phase below it
    assert span[0] < float(fraction.min()) <= span[0] + 0.1 + 1e-6
    assert span[1] - 1e-6 <= float(fraction.max()) <= span[1] + 0.1


class Joint(nn.Module):
    """A block like SD3's: text tokens beside image tokens, and no text output from the last block."""

    def __init__(self, text: bool) -> None:
        super().__init__()
        self.text = text

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        return (x[:, :1] if self.text else None), x


def test_block_features_are_the_picture_s_tokens():
    """Outputs [B, T, C] are used as they are, [B, C, H, W] and [B, C, T, H, W] become tokens, and text is ignored."""
    blocks = nn.ModuleList([Joint(True), Joint(False), nn.Identity(), nn.Identity()])

    def backbone(x: torch.Tensor, sigma: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        for block, value in zip(blocks, (x, x, x.reshape(2, 6, 2, 2), x.reshape(2, 3, 2, 2, 2)), strict=True):
            block(value)
        return x

    x = torch.arange(48.0).reshape(2, 4, 6).requires_grad_()
    found = distill.BlockFeatures(backbone, list(blocks))(x, torch.ones(2), torch.zeros(2, dtype=torch.int64))
    assert [tuple(tokens.shape) for tokens in found] == [(2, 4, 6), (2, 4, 6), (2, 4, 6), (2, 8, 3)]
    assert torch.equal(found[2][0, 1], x.reshape(2, 6, 2, 2)[0, :, 0, 1])
    assert all(tokens.requires_grad for tokens in found)
    assert not any(block._forward_hooks for block in blocks)
