"""The library's exception."""

from __future__ import annotations

_LONGEST = 1000


class PCMError(ValueError):
    """A setting, file or model that PCM cannot handle.

    The message always says what was found, what was expected and what to do next. It may quote names and texts from
    files, but is always one line of printable characters.
    """

    def __init__(self, found: str, expected: str, action: str) -> None:
        found, expected, action = (one_line(part) for part in (found, expected, action))
        super().__init__(f"{found} Expected: {expected} {action}")
        self.found, self.expected, self.action = found, expected, action


def one_line(text: str) -> str:
    """``text`` with unprintable characters escaped; the middle of a very long text is left out.

    A file name can contain line breaks, which could forge lines of the log, terminal escape sequences, and characters
    that reverse the writing direction.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
