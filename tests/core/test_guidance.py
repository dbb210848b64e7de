"""CFG per phase: parsing what people type, and finding the phase of a sigma."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_core.errors import PCMError
from pcm_core.guidance import parse_guidance, phase_at

CFG = st.floats(0, 100, allow_nan=False).map(lambda value: round(value, 3))


@given(st.lists(CFG, min_size=1, max_size=16))
def test_text_of_one_value_per_phase_round_trips(values):
    assert parse_guidance(", ".join(map(str, values)), len(values)) == tuple(values)


@given(CFG, st.integers(1, 64))
def test_one_value_serves_every_phase(value, phases):
    assert parse_guidance(value, phases) == parse_guidance(str(value), phases) == (value,) * phases


def test_spaces_and_full_width_commas():
    assert parse_guidance(" 5,1 ,\t1\uff0c 1.5", 4) == (5, 1, 1, 1.5)


def test_one_stays_exactly_one():
    """The host skips the negative pass at exactly 1, not near it."""
    assert parse_guidance("5, 1.0, 1", 3)[1:] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "phases", "found"),
    [
        ("5, 1", 4, "cfg has 2 values for a model of 4 phases"),
        ("5, 1", 1, "cfg has 2 values for a model of 1 phase."),
        ("5, , 1, 1", 4, 'cfg contains ""'),
        ("5, 1, 1, 1,", 4, 'cfg contains ""'),
        ("", 4, 'cfg contains ""'),
        ("high", 4, 'cfg contains "high"'),
        ("5; 1", 2, 'cfg contains "5; 1"'),
        ("-1", 4, 'cfg contains "-1"'),
        ("nan", 1, 'cfg contains "nan"'),
        ("5, inf", 2, 'cfg contains "inf"'),
        ("1e999", 2, 'cfg contains "1e999"'),
        (math.nan, 2, 'cfg contains "nan"'),
        (-0.5, 2, 'cfg contains "-0.5"'),
    ],
)
def test_bad_values_are_refused_with_the_fix(text, phases, found):
    with pytest.raises(PCMError) as error:
        parse_guidance(text, phases)
    assert found in str(error.value)
    assert f'"{", ".join(["5"] + ["1"] * (phases - 1))}"' in error.value.action


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=16, unique=True), st.floats(0.001, 200))
def test_the_phase_of_a_sigma_is_the_lowest_that_reaches_it(tops, sigma):
    tops = [math.inf, *sorted(tops, reverse=True)]
    phase = phase_at(sigma, tops)
    assert tops[phase] >= sigma
    assert phase == len(tops) - 1 or tops[phase + 1] < sigma


def test_a_sigma_above_every_top_belongs_to_the_first_phase():
    assert phase_at(20.0, (14.6, 4.1)) == 0
