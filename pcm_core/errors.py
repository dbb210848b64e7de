"""The one exception of the library."""

from __future__ import annotations


class PCMError(ValueError):
    """A setting, file or model that PCM cannot serve.

    The message always answers three questions: what was found, what was expected, what to do next.
    """

    def __init__(self, found: str, expected: str, action: str) -> None:
        super().__init__(f"{found} Expected: {expected} {action}")
        self.found, self.expected, self.action = found, expected, action
