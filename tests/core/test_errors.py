"""The one exception of the library."""

import pytest

from pcm_core.errors import PCMError


def test_the_message_says_what_was_found_expected_and_to_be_done() -> None:
    error = PCMError("steps is 0.", "1 to 64.", "Set steps to 4.")
    assert str(error) == "steps is 0. Expected: 1 to 64. Set steps to 4."
    assert (error.found, error.expected, error.action) == ("steps is 0.", "1 to 64.", "Set steps to 4.")


def test_it_is_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"steps is 0\."):
        raise PCMError("steps is 0.", "1 to 64.", "Set steps to 4.")
