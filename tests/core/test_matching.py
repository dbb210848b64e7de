"""Distribution matching against closed forms: scores of Gaussians, vanishing gradients, unrolled jumps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pcm_core import distill
from pcm_core.distill.adversarial import renoise, renoise_std
from pcm_core.distill.matching import Scores
from pcm_core.sampling import sample_pcm
from pcm_core.sigma_table import SigmaTable

FLOW_TABLE = torch.arange(1, 1001) / 1000


def normal_points(count: int) -> Tensor:
    """Quantiles of the standard normal, rescaled to mean 0 and variance 1 exactly."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    points = torch.distributions.Normal(0.0, 1.0).icdf(places)
    return points / points.square().mean().sqrt()


@pytest.mark.parametrize(("flow", "edge", "level"), [
    (True, 0.0, 0.4), (True, 0.5, 0.7), (True, 0.75, 0.8), (True, 0.9, 0.99),
    (False, 0.0, 1.3), (False, 0.7, 1.6), (False, 4.0, 5.0), (False, 4.0, 14.0),
])  # fmt: skip
def test_the_fitted_fake_is_the_score_of_renoised_gaussians(flow, edge, level):
    """Landings N(.3, .8^2) at level s: the fake that minimises its loss is the score of N(a .3, a^2 .8^2 + q^2)."""
    mean, std, count = 0.3, 0.8, 400
    landing = (mean + std * normal_points(count)).repeat_interleave(count)[:, None]
    noise = normal_points(count).repeat(count)[:, None]
    edges, levels = (torch.full((count**2,), value, dtype=torch.float64) for value in (edge, level))
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def fake(x: Tensor, sigma: Tensor) -> Tensor:
        return weights[0] * x + weights[1]  # the score of a Gaussian is linear, and so is its x0

    def loss() -> Tensor:
        return distill.fake_loss(fake, landing, edges, levels, noise, flow=flow)

    # Quadratic in two weights: one Newton step is the minimum.
    (gradient,) = torch.autograd.grad(loss(), weights, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(part, weights, retain_graph=True)[0] for part in gradient])
    with torch.no_grad():
        weights -= torch.linalg.solve(hessian, gradient)

    scale = (1 - level) / (1 - edge) if flow else 1.0
    variance = scale**2 * std**2 + level**2 - (scale * edge) ** 2
    for x in (-1.0, 0.2, 2.0):
        denoised = float((weights[0] * x + weights[1]).detach())
        score = (((1 - level) if flow else 1.0) * denoised - x) / level**2
        assert score == pytest.approx(-(x - scale * mean) / variance, abs=1e-3)


@pytest.mark.parametrize("flow", [True, False])
def test_at_zero_noise_the_target_is_the_landing_and_above_it_its_variance_stays_of_order_one(flow):
    generator = torch.Generator().manual_seed(0)
    landing, noise = torch.randn(2, 20_000, 1, generator=generator)
    zero, level = torch.zeros(20_000), torch.full((20_000,), 0.3)
    assert torch.equal(distill.subinterval_target(landing, zero, level, noise, flow=flow), landing)
    for edge, level in ((0.9, 0.92), (0.5, 0.51), (0.75, 0.89)):
        low, high = torch.full((20_000,), edge), torch.full((20_000,), level)
        wobble = distill.subinterval_target(landing, low, high, noise, flow=flow).std() if flow else None
        loss = distill.fake_loss(lambda x, s: torch.zeros_like(x), landing, low, high, noise, flow=flow)
        assert float(loss) < 3, (edge, level, wobble)


@pytest.mark.parametrize("flow", [True, False])
def test_levels_are_stratified_inside_their_part_of_the_phase(flow, sd_table):
    table = FLOW_TABLE if flow else sd_table
    low, high = float(table[249]), float(table[749])
    generator = torch.Generator().manual_seed(1)
    levels = distill.stratified_levels(table, low, high, 50, generator, (0.1, 0.9), flow=flow)
    assert low < float(levels.min()) < float(levels.max()) < high
    assert torch.equal(levels, levels.sort().values)
    # In timesteps (a flow table here is even in them): one from each stretch of 8 of the 400 in the middle.
    steps = torch.searchsorted(table, levels).double()
    assert float((steps - (249 + 50 + 8 * (torch.arange(50) + 0.5))).abs().max()) <= 5.5


def test_levels_reach_down_to_the_clean_end(sd_table):
    levels = distill.stratified_levels(
        sd_table, 0.0, 1.6, 200, torch.Generator().manual_seed(1), (0.0, 1.0), flow=False
    )
    assert 0 < float(levels.min()) < float(sd_table[10]) and 1.5 < float(levels.max()) <= float(sd_table[500])


def test_the_gradient_vanishes_where_fake_and_teacher_agree():
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    scores = Scores(fake=x, real=x)
    assert not distill.matching_gradient(scores, 2 * x).any()
    landing = x.clone().requires_grad_()
    loss = distill.matching_loss(landing, distill.matching_gradient(scores, 2 * x))
    loss.backward()
    assert float(loss.detach()) == 0 and landing.grad is not None and not landing.grad.any()


def test_the_gradient_is_normalized_by_the_sample_and_has_a_floor():
    real = torch.zeros(3, 4)
    denoised = torch.stack([torch.full((4,), value) for value in (2.0, 0.1, 0.0)])
    gradient = distill.matching_gradient(Scores(real + 1, real, real + 0.5), denoised, floor=0.05)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.25, 5.0, 10.0]))
    landing = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distill.matching_loss(landing, gradient).backward()
    torch.testing.assert_close(landing.grad, gradient / 12)


def test_matching_moves_a_gaussian_onto_the_teacher():
    """Landings N(1, 2^2) with their exact score, a teacher N(0, 1): following the gradient makes them equal."""
    generator = torch.Generator().manual_seed(3)
    landing = (1 + 2 * torch.randn(4096, 1, generator=generator)).requires_grad_()
    optimizer = torch.optim.SGD([landing], lr=0.1 * 4096)
    zero = torch.zeros(4096)

    def gaussian(mean: Tensor | float, variance: Tensor | float):
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            level = sigma[:, None]
            keep = (1 - level) * variance / ((1 - level).square() * variance + level.square())
            return mean + keep * (x - (1 - level) * mean)

        return denoise

    for _ in range(150):
        level = distill.stratified_levels(FLOW_TABLE, 0.0, 1.0, 4096, generator, flow=True)
        level = level[torch.randperm(4096, generator=generator)]  # they come sorted, and the points stay where they are
        noised = renoise(landing.detach(), zero, level, torch.randn(4096, 1, generator=generator), flow=True)
        fake = gaussian(landing.detach().mean(), landing.detach().var())(noised, level)
        real = gaussian(0.0, 1.0)(noised, level)
        optimizer.zero_grad()
        distill.matching_loss(landing, distill.matching_gradient(Scores(fake, real), landing)).backward()
        optimizer.step()
    assert abs(float(landing.detach().mean())) < 0.05
    assert float(landing.detach().std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("jumps", [1, 2, 3])
def test_unrolled_jumps_are_euler_steps_and_recomputing_changes_no_gradient(jumps):
    edges = (1.0, 0.7, 0.4, 0.0)[-jumps - 1 :]
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    found = {}
    for recompute in (False, True):
        weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

        def student(x: Tensor, sigma: Tensor, weight: Tensor = weight) -> Tensor:
            return torch.tanh(weight * x) + sigma[:, None].to(x)

        landing, denoised = distill.unroll(student, x, edges, recompute=recompute)
        landing.square().sum().backward()
        found[recompute] = (landing.detach(), denoised.detach(), weight.grad)
    for plain, again in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(again, plain)

    def ends(weight: float) -> Tensor:
        y = x
        for above, below in pairwise(edges):
            y = y + (below - above) * (y - (torch.tanh(weight * y) + above)) / above
        return y

    torch.testing.assert_close(found[False][0], ends(0.3), rtol=1e-5, atol=1e-6)
    slope = (ends(0.3 + 1e-5).square().sum() - ends(0.3 - 1e-5).square().sum()) / 2e-5
    torch.testing.assert_close(found[False][2], slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flow", [True, False])
def test_a_renoised_path_is_lcm_sampling(flow):
    """The sampler at determinism 0, with the same noises; the gradient goes through all of its steps."""
    table = SigmaTable.of(torch.linspace(0.01, 1.0 if flow else 14.0, 1000))
    path = distill.renoised_path(table, 4, 0.0)
    assert path == (*(table.sigma(t) for t in (999, 749, 499, 249)), 0.0)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    noises = [torch.randn(5, 2, generator=torch.Generator().manual_seed(i)) for i in (1, 2, 3)]
    weight = torch.tensor(0.3, requires_grad=True)
    seen: list[Tensor] = []

    def student(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = torch.tanh(weight * x) + 0.1 * sigma[:, None]
        if denoised.requires_grad:
            denoised.retain_grad()
            seen.append(denoised)
        return denoised

    landing, denoised = distill.unroll(student, x, path, noises=noises, flow=flow)
    landing.square().sum().backward()
    assert torch.equal(landing, denoised) and all(float(step.grad.abs().min()) > 0 for step in seen)
    fresh = iter(noises)
    sampled = sample_pcm(
        student, x, torch.tensor(path), determinism=0.0, flow=flow, noise_sampler=lambda *_: next(fresh)
    )  # fmt: skip
    torch.testing.assert_close(landing.detach(), sampled, rtol=1e-5, atol=1e-6)


def test_the_renoised_fake_knows_its_own_variance():
    """``t^2 - q^2 = a^2 s^2``, which the target relies on."""
    edge, level = torch.tensor([0.5, 0.9]), torch.tensor([0.7, 0.95])
    for flow in (True, False):
        scale = (1 - level) / (1 - edge) if flow else torch.ones(2)
        q = renoise_std(edge, level, flow=flow)
        torch.testing.assert_close(level.square() - q.square(), (scale * edge).square())
    assert math.isfinite(float(q.sum()))
