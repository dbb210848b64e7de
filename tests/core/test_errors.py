"""The one exception of the library."""

import pytest

from pcm_core.errors import PCMError, one_line


def test_the_message_says_what_was_found_expected_and_to_be_done() -> None:
    error = PCMError("steps is 0.", "1 to 64.", "Set steps to 4.")
    assert str(error) == "steps is 0. Expected: 1 to 64. Set steps to 4."
    assert (error.found, error.expected, error.action) == ("steps is 0.", "1 to 64.", "Set steps to 4.")


def test_it_is_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"steps is 0\."):
        raise PCMError("steps is 0.", "1 to 64.", "Set steps to 4.")


def test_what_it_quotes_stays_one_printable_line() -> None:
    error = PCMError('It is "a\nERROR b\x1b[2J\u202ec\ud800".', "x" * 5000, "\0")
    assert str(error).isprintable() and len(str(error)) < 1000
    assert error.found == 'It is "a\\nERROR b\\x1b[2J\\u202ec\\ud800".'


def test_printable_text_of_any_language_is_left_alone() -> None:
    text = "caf\u00e9 \u56fe\u7247 %s {0} <b>"
    assert one_line(text) == text
