"""The phased objective: its solver grid, its loss, and the zero loss of a perfect student."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcm_core.distill import Denoiser, SolverGrid, add_noise, jump_batch, phased_loss, pseudo_huber
from pcm_core.errors import PCMError
from pcm_core.phases import MAX_COUNT, build_schedule, phase_edges
from pcm_core.sampling import jump, sample_pcm

GRIDS = [n for n in range(1, 1001) if 1000 % n == 0]
laws = settings(max_examples=200)

# A table whose sigma is its own timestep: what a grid says can be read off.
TIMESTEPS = torch.arange(1000.0)


def flow_table(shift: float = 3.0) -> Tensor:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    return (shift * t / (1 + (shift - 1) * t)).float()


def gaussian(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The solver grid


@pytest.mark.parametrize(
    ("index", "timestep", "below", "edge"),
    [(0, 19, 0, 0), (12, 259, 239, 239), (36, 739, 719, 499), (37, 759, 739, 739), (49, 999, 979, 739)],
)
def test_points_of_the_50_point_grid(index: int, timestep: int, below: int, edge: int) -> None:
    grid = SolverGrid.from_table(TIMESTEPS, phases=4)
    assert len(grid) == 50
    assert [row[index].item() for row in (grid.sigma, grid.below, grid.edge)] == [timestep, below, edge]


@laws
@given(data=st.data(), points=st.sampled_from(GRIDS), terminal=st.sampled_from(["alpha0", "zero"]))
def test_every_point_jumps_to_the_edge_of_its_phase(data: st.DataObject, points: int, terminal: str) -> None:
    phases = data.draw(st.integers(1, min(points, MAX_COUNT)))
    grid = SolverGrid.from_table(TIMESTEPS + 1, phases, points, terminal=terminal)  # type: ignore[arg-type]
    bottom = 1 if terminal == "alpha0" else 0
    edges = [bottom, *(edge + 1 for edge in phase_edges(phases, points)[1:])]
    assert grid.sigma.tolist() == [1000 / points * (i + 1) for i in range(points)]
    assert grid.below.tolist() == [bottom, *grid.sigma.tolist()[:-1]]
    assert grid.edge.tolist() == [max(edge for edge in edges if edge <= below) for below in grid.below.tolist()]
    assert set(grid.edge.tolist()) == set(edges)


def test_sigmas_are_those_of_the_models_table(sd_table: Tensor) -> None:
    grid = SolverGrid.from_table(sd_table.double(), phases=4)
    assert grid.sigma.dtype == torch.float32
    assert torch.equal(grid.sigma, sd_table[19::20])
    assert grid.below[0] == sd_table[0] and torch.equal(grid.below[1:], grid.sigma[:-1])
    assert set(grid.edge.tolist()) == set(sd_table[[0, 239, 499, 739]].tolist())


def test_larger_tables_are_indexed_by_fraction() -> None:
    fine = SolverGrid.from_table(torch.arange(1.0, 10001.0), phases=4)
    coarse = SolverGrid.from_table(torch.arange(10.0, 10001.0, 10), phases=4)
    for name in ("sigma", "below", "edge"):
        assert torch.equal(getattr(fine, name), getattr(coarse, name))


@pytest.mark.parametrize("entries", [1, 50, 999, 1500])
def test_tables_that_timesteps_cannot_index_are_refused(entries: int) -> None:
    with pytest.raises(PCMError, match=f"{entries} entries"):
        SolverGrid.from_table(torch.linspace(0.03, 14, entries), phases=4)


def test_grids_that_miss_the_first_timestep_are_refused(sd_table: Tensor) -> None:
    with pytest.raises(PCMError, match="64 points"):
        SolverGrid.from_table(sd_table, phases=4, grid=64)


# Its parts


@pytest.mark.parametrize(
    ("error", "loss"),
    [(0.0, 0.0), (1e-3, 4.14213562e-4), (-1e-3, 4.14213562e-4), (0.01, 0.00904987562), (1, 0.9990005)],
)
def test_pseudo_huber(error: float, loss: float) -> None:
    assert pseudo_huber(torch.tensor([error], dtype=torch.float64)).item() == pytest.approx(loss, rel=1e-8)


def test_pseudo_huber_is_a_mean() -> None:
    errors = torch.tensor([[0.0, 1e-3], [0.01, 1.0]], dtype=torch.float64)
    expected = (0 + 4.14213562e-4 + 0.00904987562 + 0.9990005) / 4
    assert pseudo_huber(errors).item() == pytest.approx(expected, rel=1e-7)
    assert pseudo_huber(errors, c=0.1).item() == pytest.approx(
        sum(math.hypot(e, 0.1) - 0.1 for e in errors.flatten().tolist()) / 4
    )


@pytest.mark.parametrize("shape", [(3, 2), (3, 4, 5, 6), (3, 16, 2, 4, 4)])
def test_noise_is_added_at_each_samples_level(shape: tuple[int, ...]) -> None:
    clean, noise, sigma = gaussian(shape, 0), gaussian(shape, 1), torch.tensor([0.1, 0.5, 1.0])
    for i, level in enumerate(sigma.tolist()):
        flow = add_noise(clean, noise, sigma, flow=True)[i]
        torch.testing.assert_close(flow, (1 - level) * clean[i] + level * noise[i])
        torch.testing.assert_close(add_noise(clean, noise, sigma, flow=False)[i], clean[i] + level * noise[i])


def test_a_batch_of_jumps_is_the_samplers_jump_sample_by_sample() -> None:
    x, denoised = gaussian((4, 3, 5), 0), gaussian((4, 3, 5), 1)
    sigma, sigma_next = torch.tensor([14.6, 1.6, 0.5, 0.03]), torch.tensor([3.9, 0.0, 0.5, 0.029])
    landing = jump_batch(x, denoised, sigma, sigma_next)
    for i in range(4):
        expected = jump(x[i], denoised[i], sigma[i].item(), sigma_next[i].item())
        torch.testing.assert_close(landing[i], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(landing[2], x[2])


def test_a_jump_from_zero_to_zero_stays() -> None:
    x = gaussian((2, 3), 0)
    assert torch.equal(jump_batch(x, x + 1, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])), x)


# The loss


def exact(lookup: Tensor, targets: Tensor, variance: float, *, flow: bool) -> Denoiser:
    """The x0 whose jump from ``lookup[i]`` lands on the probability flow ODE at ``targets[i]``, for Gaussian data."""

    def std(sigma: Tensor) -> Tensor:
        return (((1 - sigma) ** 2 if flow else 1.0) * variance + sigma**2).sqrt()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        here = sigma.double()
        target = targets.double()[(here[:, None] - lookup.double()).abs().argmin(1)]
        ratio = (std(target) / std(here) - target / here) / (1 - target / here)
        ratio = torch.where(target == here, 0.0, ratio)  # the edge itself: whatever the model says, the jump stays
        return ratio.reshape(-1, *[1] * (x.ndim - 1)) * x

    return model


@pytest.mark.parametrize("variance", [0.25, 1.0])
@pytest.mark.parametrize("terminal", ["alpha0", "zero"])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_a_perfect_student_has_no_loss(
    phases: int, flow: bool, terminal: str, variance: float, sd_table: Tensor
) -> None:
    table = flow_table() if flow else sd_table
    grid = SolverGrid.from_table(table, phases, terminal=terminal)  # type: ignore[arg-type]
    teacher = exact(grid.sigma, grid.below, variance, flow=flow)
    # Below point i lies point i - 1, whose edge is its own phase's; an edge point jumps nowhere.
    levels = torch.cat([grid.sigma, grid.below[:1]])
    student = exact(levels, torch.cat([grid.edge, grid.edge[:1]]), variance, flow=flow)
    index = torch.arange(len(grid))
    clean, noise = gaussian((50, 2, 3), 0).double() * math.sqrt(variance), gaussian((50, 2, 3), 1).double()

    def loss(student: Denoiser, target: Denoiser) -> float:
        return phased_loss(student, teacher, target, clean, noise, index, grid, flow=flow, huber_c=1e-3).item()

    assert loss(student, student) < 1e-8
    assert loss(lambda x, s: student(x, s) + 0.1, student) > 1e-3


def test_on_an_edge_the_landing_is_the_solver_step_to_the_bit(sd_table: Tensor) -> None:
    grid = SolverGrid.from_table(sd_table, phases=4)
    starts = torch.tensor([0, 12, 25, 37])
    assert torch.equal(grid.below[starts], grid.edge[starts])
    clean, noise = gaussian((4, 3), 0), gaussian((4, 3), 1)

    def teacher(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.sin(x)

    def untrained(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(x, math.nan)

    # The student that copies the teacher's step is right whatever the target network says.
    assert phased_loss(teacher, teacher, untrained, clean, noise, starts, grid, flow=False).item() == 0
    assert phased_loss(teacher, teacher, untrained, clean, noise, starts + 1, grid, flow=False).isnan()


def test_models_are_asked_at_the_right_points(sd_table: Tensor) -> None:
    grid = SolverGrid.from_table(sd_table, phases=4)
    index = torch.tensor([49, 20, 0])
    clean, noise = gaussian((3, 2), 0), gaussian((3, 2), 1)
    asked: dict[str, tuple[Tensor, Tensor]] = {}

    def spy(name: str) -> Denoiser:
        def model(x: Tensor, sigma: Tensor) -> Tensor:
            asked[name] = (x, sigma)
            return torch.tanh(x)

        return model

    phased_loss(spy("student"), spy("teacher"), spy("target"), clean, noise, index, grid, flow=False)
    x = clean + grid.sigma[index, None] * noise
    for name in ("student", "teacher"):
        torch.testing.assert_close(asked[name][0], x)
        assert torch.equal(asked[name][1], grid.sigma[index])
    torch.testing.assert_close(asked["target"][0], jump_batch(x, torch.tanh(x), grid.sigma[index], grid.below[index]))
    assert torch.equal(asked["target"][1], grid.below[index])


@pytest.mark.parametrize("flow", [False, True])
def test_only_the_student_is_trained(flow: bool, sd_table: Tensor) -> None:
    grid = SolverGrid.from_table(flow_table() if flow else sd_table, phases=4)
    weights = {name: torch.tensor(0.5, requires_grad=True) for name in ("student", "teacher", "target")}

    def model(name: str) -> Denoiser:
        return lambda x, sigma: torch.tanh(x * weights[name])

    clean, noise = gaussian((8, 2, 4, 4), 0), gaussian((8, 2, 4, 4), 1)
    index = torch.tensor([0, 5, 12, 20, 25, 36, 37, 49])
    phased_loss(*(model(name) for name in weights), clean, noise, index, grid, flow=flow).backward()
    assert weights["student"].grad is not None and weights["student"].grad.abs() > 0
    assert weights["teacher"].grad is None and weights["target"].grad is None


def test_losses_of_exploding_latents_are_compared_at_unit_variance(sd_table: Tensor) -> None:
    grid = SolverGrid.from_table(sd_table, phases=4)
    clean = noise = torch.zeros(1, 2)
    index = torch.tensor([49])
    edge = grid.edge[49].item()

    def constant(value: float) -> Denoiser:
        return lambda x, sigma: torch.full_like(x, value)

    # An x0 off by one moves the landing by 1 - edge / sigma, and the paper's unit-variance landing by alpha less.
    error = (1 - edge / grid.sigma[49].item()) / math.sqrt(1 + edge**2)
    loss = phased_loss(constant(1), constant(0), constant(0), clean, noise, index, grid, flow=False)
    assert loss.item() == pytest.approx(math.hypot(error, 1e-3) - 1e-3, rel=1e-5)


def test_a_trained_student_reaches_in_two_steps_what_the_teacher_reaches_in_twenty(sd_table: Tensor) -> None:
    grid = SolverGrid.from_table(sd_table, phases=2, grid=20)
    gain = torch.zeros(20, requires_grad=True)
    optimizer = torch.optim.Adam([gain], lr=0.02)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)

    def teacher(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.square())[:, None]  # the exact denoiser of unit Gaussian data

    def student(x: Tensor, sigma: Tensor) -> Tensor:
        index = (sigma[:, None] - grid.sigma).abs().argmin(1)
        return teacher(x, sigma) + gain[index, None] * x / (1 + sigma.square()).sqrt()[:, None]

    for step in range(300):
        clean, noise = gaussian((20, 16), 2 * step), gaussian((20, 16), 2 * step + 1)
        loss = phased_loss(student, teacher, student, clean, noise, torch.arange(20), grid, flow=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()

    two = build_schedule(2, spacing="aligned", grid=20, terminal="alpha0").sigmas(sd_table)
    twenty = torch.cat([grid.sigma.flip(0), grid.below[:1]])
    x = (1 + two[0].square()).sqrt().reshape(1, 1)
    reached = sample_pcm(teacher, x, twenty).item()
    assert sample_pcm(student, x, two).item() == pytest.approx(reached, abs=2e-3)
    assert abs(sample_pcm(teacher, x, two).item() - reached) > 0.4
