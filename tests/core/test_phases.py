"""Phase edges, evaluation timesteps and sigmas: the authors' own vectors, and laws by hypothesis."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcm_core.errors import PCMError
from pcm_core.guidance import phase_at
from pcm_core.phases import (
    MAX_COUNT,
    SPACINGS,
    TERMINALS,
    Spacing,
    build_schedule,
    eval_timesteps,
    phase_edges,
)

GRIDS = [n for n in range(1, 1001) if 1000 % n == 0]
counts = st.integers(1, MAX_COUNT)
grids = st.sampled_from(GRIDS)
laws = settings(max_examples=300)


def flow_table(shift: float, entries: int = 1000) -> Tensor:
    t = torch.arange(1, entries + 1, dtype=torch.float64) / entries
    return (shift * t / (1 + (shift - 1) * t)).float()


@st.composite
def schedule_options(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that ``build_schedule`` accepts: no more phases and steps than the solver grid has points."""
    grid = draw(grids)
    spacing = draw(st.sampled_from(SPACINGS))
    most = MAX_COUNT if spacing == "trailing" else min(grid, MAX_COUNT)
    return {
        "phases": draw(st.integers(1, most)),
        "steps": draw(st.none() | st.integers(1, most)),
        "spacing": spacing,
        "grid": grid,
        "terminal": draw(st.sampled_from(TERMINALS)),
        "denoise": draw(st.just(1.0) | st.floats(0, 1, exclude_min=True)),
        "spend_extra_steps": draw(st.booleans()),
    }


# Edges


@pytest.mark.parametrize(
    ("phases", "grid", "edges"),
    [
        (1, 50, [0]),
        (2, 50, [0, 499]),
        (4, 50, [0, 239, 499, 739]),
        (5, 50, [0, 199, 399, 599, 799]),
        (8, 50, [0, 119, 239, 359, 499, 619, 739, 859]),
        (16, 50, [0, 59, 119, 179, 239, 299, 359, 419, 499, 559, 619, 679, 739, 799, 859, 919]),
        (2, 40, [0, 499]),
        (4, 40, [0, 249, 499, 749]),
        (5, 40, [0, 199, 399, 599, 799]),
        (8, 40, [0, 124, 249, 374, 499, 624, 749, 874]),
        (16, 40, [0, 49, 124, 174, 249, 299, 374, 424, 499, 549, 624, 674, 749, 799, 874, 924]),
    ],
)
def test_edges_of_the_authors_solver_grids(phases: int, grid: int, edges: list[int]) -> None:
    assert phase_edges(phases, grid) == tuple(edges)


@laws
@given(phases=counts, grid=grids)
def test_edges_follow_the_training_scripts_formula(phases: int, grid: int) -> None:
    assume(phases <= grid)
    stride = 1000 // grid
    points = np.arange(1, grid + 1) * stride - 1
    below = np.concatenate([[0], points[:-1]])
    # linspace puts phase 19 of 38 a rounding error below the middle of the grids of 250, 500 and 1000 points.
    starts = np.floor(np.linspace(0, grid, phases, endpoint=False) + 1e-9).astype(int)
    assert phase_edges(phases, grid) == tuple(below[starts])


@laws
@given(phases=counts, grid=grids)
def test_edges_ascend_from_zero(phases: int, grid: int) -> None:
    assume(phases <= grid)
    edges = phase_edges(phases, grid)
    assert len(edges) == phases and edges[0] == 0
    assert all(low < high for low, high in pairwise(edges))


# Evaluation timesteps


@pytest.mark.parametrize(
    ("steps", "timesteps"),
    [
        (1, [999]),
        (2, [999, 499]),
        (3, [999, 666, 332]),
        (4, [999, 749, 499, 249]),
        (6, [999, 832, 666, 499, 332, 166]),
        (8, [999, 874, 749, 624, 499, 374, 249, 124]),
        # Half to even: 812.5 becomes 812 and 562.5 becomes 562.
        (16, [999, 937, 874, 811, 749, 687, 624, 561, 499, 437, 374, 311, 249, 187, 124, 61]),
    ],
)
def test_trailing_timesteps_of_the_model_card(steps: int, timesteps: list[int]) -> None:
    assert eval_timesteps(steps) == tuple(timesteps)


@pytest.mark.parametrize(
    ("steps", "timesteps"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
        (16, [999, 939, 879, 819, 759, 699, 639, 579, 499, 439, 379, 319, 259, 199, 139, 79]),
    ],
)
def test_tcd_timesteps_of_the_demo(steps: int, timesteps: list[int]) -> None:
    assert eval_timesteps(steps, spacing="tcd") == tuple(timesteps)


@pytest.mark.parametrize(
    ("steps", "grid", "timesteps"),
    [
        (4, 50, [999, 739, 499, 239]),
        (8, 50, [999, 859, 739, 619, 499, 359, 239, 119]),
        (4, 40, [999, 749, 499, 249]),
        (8, 40, [999, 874, 749, 624, 499, 374, 249, 124]),
        (16, 40, [999, 924, 874, 799, 749, 674, 624, 549, 499, 424, 374, 299, 249, 174, 124, 49]),
    ],
)
def test_aligned_timesteps_are_the_edges(steps: int, grid: int, timesteps: list[int]) -> None:
    assert eval_timesteps(steps, spacing="aligned", grid=grid) == tuple(timesteps)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_all_spacings_agree_for_one_two_and_five_steps(steps: int) -> None:
    assert len({eval_timesteps(steps, spacing=spacing) for spacing in SPACINGS}) == 1


def test_fewer_aligned_steps_than_phases_visit_a_subset_of_the_edges() -> None:
    assert eval_timesteps(2, phases=4, spacing="aligned") == (999, 499)
    assert eval_timesteps(3, phases=8, spacing="aligned") == (999, 739, 359)


def test_more_aligned_steps_than_phases_subdivide_the_phases_on_the_grid() -> None:
    # The phases of the 50-point grid hold 13, 12, 13 and 12 points.
    assert eval_timesteps(8, phases=4, spacing="aligned") == (999, 879, 739, 619, 499, 379, 239, 119)
    assert eval_timesteps(50, phases=4, spacing="aligned") == tuple(range(999, 0, -20))


@laws
@given(options=schedule_options())
def test_timesteps_descend_from_the_top(options: dict[str, Any]) -> None:
    steps = options["steps"] or options["phases"]
    wanted = {key: options[key] for key in ("phases", "spacing", "grid")}
    timesteps = eval_timesteps(steps, **wanted)
    assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] >= 0
    assert all(high > low for high, low in pairwise(timesteps))


@laws
@given(data=st.data(), grid=grids)
def test_enough_aligned_steps_visit_every_edge(data: st.DataObject, grid: int) -> None:
    steps = data.draw(st.integers(1, min(grid, MAX_COUNT)))
    phases = data.draw(st.integers(1, steps))
    timesteps = eval_timesteps(steps, phases=phases, spacing="aligned", grid=grid)
    assert set(phase_edges(phases, grid)[1:]) <= set(timesteps)


# Schedules


def test_steps_default_to_the_phases() -> None:
    schedule = build_schedule(4)
    assert schedule.timesteps == schedule.starts == (999, 749, 499, 249)
    assert (schedule.steps, schedule.phases, schedule.start, schedule.notes) == (4, 4, 999, ())


def test_more_steps_than_phases_run_the_phase_jumps_and_say_so() -> None:
    schedule = build_schedule(4, 8)
    assert schedule == build_schedule(4)
    (note,) = schedule.notes
    assert "8 steps" in note and "4-phase" in note


def test_extra_steps_are_spent_when_asked() -> None:
    schedule = build_schedule(4, 8, spend_extra_steps=True)
    assert schedule.timesteps == eval_timesteps(8) and schedule.notes == ()
    assert [phase_at(t, schedule.starts) for t in schedule.timesteps] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("phases", [50, 51, 64])
def test_trailing_needs_no_solver_grid(phases: int) -> None:
    assert build_schedule(phases).timesteps == eval_timesteps(phases)


def test_fewer_steps_than_phases_run_with_a_note() -> None:
    schedule = build_schedule(8, 4)
    assert schedule.timesteps == eval_timesteps(4)
    (note,) = schedule.notes
    assert "8 phases" in note and "4 steps" in note
    assert [phase_at(t, schedule.starts) for t in schedule.timesteps] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("grid", "start", "timesteps"),
    [
        (50, 600, [600, 499, 239]),
        (40, 600, [600, 499, 249]),
        (40, 250, [249]),  # the jump 250 -> 249 is shorter than a solver step
        (40, 249, [249]),
        (50, 519, [519, 499, 239]),  # and this is one solver step
        (50, 518, [499, 239]),
        (50, 1, [1]),
        (50, 0, [1]),  # timestep 0 is where sampling ends
        (50, 999, [999, 739, 499, 239]),
        (50, 1000, [999, 739, 499, 239]),
    ],
)
def test_entering_below_the_top_keeps_the_later_edges(grid: int, start: int, timesteps: list[int]) -> None:
    schedule = build_schedule(4, spacing="aligned", grid=grid, start=start)
    assert schedule.timesteps == tuple(timesteps)
    assert schedule.start == timesteps[0]


def test_denoise_enters_at_its_share_of_the_path() -> None:
    assert build_schedule(4, denoise=0.6).timesteps == (600, 499, 249)
    assert build_schedule(4, denoise=0.5).timesteps == (499, 249)
    assert build_schedule(4, denoise=1e-9).timesteps == (1,)


@laws
@given(options=schedule_options())
def test_the_model_runs_as_often_as_promised(options: dict[str, Any]) -> None:
    schedule = build_schedule(**options | {"denoise": 1.0})
    asked, phases = options["steps"] or options["phases"], options["phases"]
    assert schedule.steps == (asked if options["spend_extra_steps"] else min(asked, phases))
    assert schedule.phases == phases and schedule.start == 999
    assert bool(schedule.notes) == (asked != schedule.steps or asked < phases)


@laws
@given(options=schedule_options())
def test_an_entry_keeps_every_later_point(options: dict[str, Any]) -> None:
    schedule, full = build_schedule(**options), build_schedule(**options | {"denoise": 1.0})
    entry = max(1, min(round(options["denoise"] * 1000), 999))
    assert schedule.steps >= 1
    assert schedule.start == schedule.timesteps[0] <= entry
    # Nothing but a jump shorter than a solver step is lost between the entry and where sampling really starts.
    assert entry - schedule.start < 1000 // options["grid"]
    assert {t for t in full.timesteps if t < entry} <= set(schedule.timesteps)
    assert set(schedule.timesteps) <= {entry, *full.timesteps}


@laws
@given(options=schedule_options())
def test_phases_of_the_steps_never_go_back(options: dict[str, Any]) -> None:
    schedule = build_schedule(**options)
    phases = [phase_at(t, schedule.starts) for t in schedule.timesteps]
    assert phases == sorted(phases)
    assert 0 <= phases[0] and phases[-1] < schedule.phases
    if schedule.start == 999:
        assert phases[0] == 0
        if schedule.steps == schedule.phases:
            assert phases == list(range(schedule.phases))
        if schedule.spacing == "aligned" and schedule.steps > schedule.phases:
            assert set(phases) == set(range(schedule.phases))


@laws
@given(options=schedule_options())
def test_sigmas_of_every_table_descend_strictly(options: dict[str, Any], sd_table: Tensor) -> None:
    schedule = build_schedule(**options)
    for table in (sd_table, flow_table(1), flow_table(3), flow_table(17), flow_table(1.15, 10000)):
        sigmas = schedule.sigmas(table)
        assert sigmas.shape == (schedule.steps + 1,)
        assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
        assert (sigmas[:-1] > sigmas[1:]).all()
        assert torch.isin(sigmas[:-1], table).all()
        if schedule.start == 999:
            assert sigmas[0].item() == table[-1].item()
        if schedule.terminal == "zero":
            assert sigmas[-1].item() == 0


@pytest.mark.parametrize(
    ("spacing", "grid", "sigmas"),
    [
        ("aligned", 50, [14.614641, 3.912613, 1.612886, 0.667538, 0.0291672]),
        ("aligned", 40, [14.614641, 4.081729, 1.612886, 0.693205, 0.0291672]),
        ("trailing", 50, [14.614641, 4.081729, 1.612886, 0.693205, 0.0291672]),
        ("tcd", 50, [14.614641, 4.260557, 1.612886, 0.719380, 0.0291672]),
    ],
)
def test_sigmas_of_stable_diffusion(spacing: Spacing, grid: int, sigmas: list[float], sd_table: Tensor) -> None:
    got = build_schedule(4, spacing=spacing, grid=grid, terminal="alpha0").sigmas(sd_table)
    torch.testing.assert_close(got, torch.tensor(sigmas), rtol=1e-5, atol=0)
    zero = build_schedule(4, spacing=spacing, grid=grid).sigmas(sd_table)
    assert torch.equal(zero, torch.cat([got[:-1], torch.zeros(1)]))


def test_larger_tables_are_indexed_by_fraction() -> None:
    fine, coarse = flow_table(3, 10000), flow_table(3)
    schedule = build_schedule(4, terminal="alpha0")
    torch.testing.assert_close(schedule.sigmas(fine), schedule.sigmas(coarse), rtol=1e-6, atol=0)
    assert schedule.sigmas(fine).tolist() == [fine[i].item() for i in (9999, 7499, 4999, 2499, 9)]


def test_the_table_is_not_written_to(sd_table: Tensor) -> None:
    table = sd_table.clone().double().requires_grad_()
    sigmas = build_schedule(4).sigmas(table)
    assert not sigmas.requires_grad
    sigmas.zero_()
    assert torch.equal(table.float(), sd_table)


def test_schedules_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        build_schedule(4).grid = 40  # type: ignore[misc]


# Bad input


def assert_three_parts(error: PCMError, found: str) -> None:
    assert found in error.found
    for part in (error.found, error.expected, error.action):
        assert part.endswith(".") and part in str(error)


@pytest.mark.parametrize("entries", [0, 1, 50, 999, 1500])
def test_tables_that_timesteps_cannot_index_are_refused(entries: int) -> None:
    with pytest.raises(PCMError) as raised:
        build_schedule(4).sigmas(torch.linspace(0.03, 14, entries))
    assert_three_parts(raised.value, f"{entries} entries")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 65}, "steps is 65"),
        ({"steps": 10000}, "steps is 10000"),
        ({"phases": 0}, "phases is 0"),
        ({"phases": 65, "grid": 100}, "phases is 65"),
        ({"phases": 41, "grid": 40, "spacing": "aligned"}, "41 phases"),
        ({"phases": 41, "grid": 40, "spacing": "tcd"}, "41 phases"),
        ({"phases": 4, "grid": 0}, "0 points"),
        ({"phases": 4, "grid": -50}, "-50 points"),
        ({"phases": 4, "grid": 64}, "64 points"),
        ({"phases": 4, "grid": 2000}, "2000 points"),
        ({"phases": 4, "spacing": "karras"}, "karras"),
        ({"phases": 4, "terminal": "one"}, "one"),
        ({"phases": 4, "denoise": 0.0}, "denoise is 0.0"),
        ({"phases": 4, "denoise": -0.1}, "denoise is -0.1"),
        ({"phases": 4, "denoise": 1.01}, "denoise is 1.01"),
        ({"phases": 4, "denoise": math.nan}, "denoise is nan"),
        ({"phases": 4, "denoise": math.inf}, "denoise is inf"),
        ({"phases": 4, "start": -1}, "timestep is -1"),
        ({"phases": 4, "start": 1001}, "timestep is 1001"),
        ({"phases": 20, "steps": 30, "grid": 25, "spacing": "aligned", "spend_extra_steps": True}, "30 steps"),
        ({"phases": 20, "steps": 30, "grid": 25, "spacing": "tcd", "spend_extra_steps": True}, "30 steps"),
    ],
)
def test_bad_schedules_are_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(PCMError) as raised:
        build_schedule(**{"phases": 4} | options)
    assert_three_parts(raised.value, found)


@pytest.mark.parametrize("phases", [0, -4, 65])
def test_bad_phase_counts_are_refused_wherever_they_enter(phases: int) -> None:
    with pytest.raises(PCMError) as raised:
        phase_edges(phases, 100)
    assert_three_parts(raised.value, f"phases is {phases}")
    with pytest.raises(PCMError):
        eval_timesteps(4, phases=phases, spacing="aligned", grid=100)


def test_more_trailing_steps_than_timesteps_are_refused() -> None:
    with pytest.raises(PCMError):
        eval_timesteps(11, grid=10, train_steps=10)
