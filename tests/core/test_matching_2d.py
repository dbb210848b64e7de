"""Matching after consistency in the 2-D world, where the data is known."""

from __future__ import annotations

import pytest

from benchmarks.matching_2d import run


@pytest.mark.long
@pytest.mark.parametrize("phases", [2, 1])
def test_the_stage_brings_the_samples_nearer_to_the_data_by_a_third(phases):
    found = run(0, phases, steps=1500, updates=450)
    assert found["after"] <= 2 / 3 * found["before"]
