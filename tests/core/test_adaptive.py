"""Edges fitted to a model: the price of a jump, and the cheapest chain of jumps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from benchmarks.adaptive import cheapest_chain, jump_errors
from pcm_core.errors import PCMError
from pcm_core.sampling import sample_pcm


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of unit Gaussian data."""
    return x / (1 + sigma.square())[:, None]


@pytest.fixture
def sigmas(sd_table: Tensor) -> Tensor:
    return torch.cat([sd_table[99::100].flip(0), torch.zeros(1)]).double()


@pytest.mark.parametrize("flow", [False, True])
def test_a_jump_costs_its_distance_from_the_run(flow: bool, sigmas: Tensor) -> None:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).double() * sigmas[0]
    calls: list[float] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma[0].item())
        return gaussian_denoiser(x, sigma)

    errors = jump_errors(model, x, sigmas, flow=flow)
    assert errors.shape == (11, 11) and calls == sigmas[:-1].tolist()
    start = sample_pcm(gaussian_denoiser, x, sigmas[:3])
    miss = sample_pcm(gaussian_denoiser, start, sigmas[[2, 7]]) - sample_pcm(gaussian_denoiser, x, sigmas[:8])
    scale = 1 if flow else 1 / math.sqrt(1 + sigmas[7].item() ** 2)
    assert errors[2, 7].item() == pytest.approx(miss.square().mean().sqrt().item() * scale, rel=1e-9)
    assert errors.diagonal(1).max() == 0  # a jump of one step is the run itself
    assert errors.tril().isinf()[torch.ones(11, 11).tril().bool()].all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("jumps", [1, 2, 3, 5, 8])
def test_no_chain_is_cheaper(jumps: int, seed: int) -> None:
    errors = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed)).double()
    errors[torch.ones(9, 9).tril().bool()] = torch.inf

    def cost(chain: tuple[int, ...]) -> float:
        return sum(errors[a, b].item() for a, b in itertools.pairwise((*chain, 8)))

    chain = cheapest_chain(errors, jumps)
    every = [(0, *middle) for middle in itertools.combinations(range(1, 8), jumps - 1)]
    assert len(chain) == jumps and cost(chain) == pytest.approx(min(map(cost, every)))


def test_a_straight_path_costs_nothing_and_a_bend_attracts_a_point(sigmas: Tensor) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double() * sigmas[0]
    assert jump_errors(lambda x, s: torch.ones_like(x), x, sigmas, flow=False).triu(1).max() < 1e-12

    def bends_at_six(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(x) if sigma[0] > sigmas[6] else -torch.ones_like(x)

    assert cheapest_chain(jump_errors(bends_at_six, x, sigmas, flow=False), 2) == (0, 6)


@pytest.mark.parametrize("jumps", [0, 11])
def test_impossible_chains_are_refused(jumps: int) -> None:
    with pytest.raises(PCMError, match=f"{jumps} jumps on 10 points"):
        cheapest_chain(torch.zeros(11, 11), jumps)


def test_sigmas_that_rise_are_refused() -> None:
    with pytest.raises(PCMError):
        jump_errors(gaussian_denoiser, torch.ones(1, 2), torch.tensor([1.0, 2.0]), flow=False)
