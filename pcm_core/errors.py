"""The one exception of the library."""

from __future__ import annotations

_LONGEST = 1000


class PCMError(ValueError):
    """A setting, file or model that PCM cannot serve.

    The message always answers three questions: what was found, what was expected, what to do next. It quotes names and
    texts that others wrote, and stays one line of printable characters.
    """

    def __init__(self, found: str, expected: str, action: str) -> None:
        found, expected, action = (one_line(part) for part in (found, expected, action))
        super().__init__(f"{found} Expected: {expected} {action}")
        self.found, self.expected, self.action = found, expected, action


def one_line(text: str) -> str:
    """``text`` with everything that is not printable escaped, and the middle of a very long one left out.

    A file name can hold line breaks, which would forge lines of the log, terminal commands and marks that reverse the
    direction of writing.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
