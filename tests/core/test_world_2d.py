"""What PCM claims, on a world with a known answer. Minutes of training: ``dev.py test --long``.

Only what held on three seeds with a margin is asserted; benchmarks/table_2d.py prints the rest.
"""

from __future__ import annotations

import statistics

import pytest

from benchmarks.table_2d import Results, parse, run


@pytest.fixture(scope="module")
def results() -> Results:
    return run([1, 4], parse([]))[0]


def mean(results: Results, row: str, steps: int, metric: str) -> float:
    return statistics.mean(results[row, steps, metric])


pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_four_phases_in_four_steps_are_less_than_half_as_far_from_the_data_as_lcm(results: Results) -> None:
    lcm = mean(results, "LCM: M = 1, renoised", 4, "data")
    assert mean(results, "PCM, M = 4", 4, "data") < 0.5 * lcm


def test_four_phases_in_four_steps_are_nearer_to_the_data_than_the_teacher_in_sixteen(results: Results) -> None:
    assert mean(results, "PCM, M = 4", 4, "data") < mean(results, "teacher, DDIM", 16, "data")


def test_four_phases_in_four_steps_follow_the_flow_twice_as_closely_as_the_teacher(results: Results) -> None:
    assert mean(results, "PCM, M = 4", 4, "flow") < 0.5 * mean(results, "teacher, DDIM", 4, "flow")


def test_lcm_gets_worse_with_more_steps(results: Results) -> None:
    lcm = "LCM: M = 1, renoised"
    assert mean(results, lcm, 16, "data") > mean(results, lcm, 1, "data")


def test_fewer_steps_than_phases_are_worse(results: Results) -> None:
    assert mean(results, "PCM, M = 4", 2, "data") > 2 * mean(results, "PCM, M = 4", 4, "data")
