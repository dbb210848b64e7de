"""The loss that keeps samples of one text as far apart as the teacher's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pcm_core.distill.bank import Bank
from pcm_core.distill.loop import Processes
from pcm_core.distill.spread import Spread, coarse


def bank_of(pairs: int, texts: int, shape: tuple[int, ...] = (2, 3), seed: int = 0) -> Bank:
    """Ends with a mean of their own and wide and narrow directions for each text."""
    generator = torch.Generator().manual_seed(seed)
    captions = torch.arange(pairs) % texts
    wide = torch.linspace(0.2, 2.0, int(np.prod(shape))).reshape(shape)
    ends = torch.randn(pairs, *shape, generator=generator) * wide + 5 * captions.reshape(-1, *[1] * len(shape))
    return Bank((ends,), ends, captions)


def pull(bank: Bank, landing: torch.Tensor) -> torch.Tensor:
    """Minus the gradient of the loss with respect to all landings of the bank at once."""
    landing = landing.clone().requires_grad_()
    Spread.of(bank).loss(landing, torch.arange(len(bank)), Processes()).backward()
    assert landing.grad is not None
    return -landing.grad


def means_of(bank: Bank) -> torch.Tensor:
    return torch.stack([bank.ends[bank.captions == text].mean(0) for text in range(3)])[bank.captions]


@pytest.mark.parametrize(("factor", "outwards"), [(0.5, 1.0), (1.5, -1.0)])
def test_samples_are_driven_apart_or_together(factor, outwards):
    bank = bank_of(300, 3)
    apart = bank.ends - means_of(bank)
    push = pull(bank, means_of(bank) + factor * apart)
    # Along each sample's deviation, by as much as the variance is off.
    expected = (1 - factor**2) * factor * apart / apart.numel()
    torch.testing.assert_close(push, expected, rtol=1e-3, atol=1e-7)
    assert float((push * apart).sum()) * outwards > 0


def test_samples_that_vary_as_the_teachers_are_left_alone():
    """Mirrored about their means they lie elsewhere, and vary as much."""
    bank = bank_of(300, 3)
    assert float(pull(bank, 2 * means_of(bank) - bank.ends).abs().max()) < 1e-7


def test_ends_that_are_all_alike_have_no_direction():
    ends = torch.ones(8, 2, 3)
    bank = Bank((ends,), ends, torch.zeros(8, dtype=torch.int64))
    assert float(pull(bank, torch.randn(8, 2, 3)).abs().max()) == 0


def test_only_the_direction_that_is_off_is_moved():
    bank = bank_of(30_000, 3)
    landing = bank.ends.clone()
    landing[:, 1, 2] = means_of(bank)[:, 1, 2] + 0.5 * (landing - means_of(bank))[:, 1, 2]
    push = pull(bank, landing).square().mean(0).sqrt().flatten()
    assert push[-1] > 20 * push[:-1].max()


def test_the_axes_are_those_of_the_covariance_within_texts():
    bank = bank_of(300, 3)
    found = Spread.of(bank)
    values = np.concatenate([
        (group - group.mean(0)) for group in (bank.ends[bank.captions == text].flatten(1).numpy() for text in range(3))
    ])  # fmt: skip
    assert found.variances.numpy() == pytest.approx(np.linalg.eigvalsh(values.T @ values / 300), rel=1e-4)
    assert found.axes.T.numpy() @ values.T @ values / 300 @ found.axes.numpy() == pytest.approx(
        np.diag(found.variances.numpy()), abs=1e-4
    )


def test_texts_with_few_pairs_share_a_mean():
    assert len(Spread.of(bank_of(12, 4)).means) == 1
    assert len(Spread.of(bank_of(16, 4)).means) == 4


def test_the_average_forgets_after_3200_samples():
    bank = bank_of(320, 4)
    found, rows = Spread.of(bank), torch.arange(320)
    for _ in range(100):
        found.loss(bank.ends, rows, Processes())
    assert float(found.excess.abs().max()) == 0
    found.loss(4 * bank.ends - 3 * found.means[bank.captions].reshape_as(bank.ends), rows, Processes())
    assert found.excess.tolist() == pytest.approx([1.5] * 6, rel=1e-3)  # a tenth of 4^2 - 1


@pytest.mark.parametrize(("shape", "size"), [
    ((2,), 2), ((5000,), 625), ((16, 8, 8), 1024), ((16, 128, 128), 1024), ((4, 90, 160), 960),
    ((16, 21, 60, 104), 768), ((64, 500), 1024), ((2048, 1, 1), 2048),
])  # fmt: skip
def test_large_latents_are_averaged_over_areas(shape, size):
    x = torch.randn(3, *shape)
    found = coarse(x)
    assert found.shape == (3, size)
    if size == x[0].numel():
        assert torch.equal(found, x.flatten(1))
