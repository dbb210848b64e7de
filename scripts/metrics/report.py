"""Figures by name, and the reason for each that could not be measured."""

from __future__ import annotations

from collections.abc import Callable

EXTRA = 'pip install ".[metrics]"'
Figures = dict[str, float]


class MissingError(Exception):
    """A measure cannot be computed; the message says what it needs."""


class Report:
    """The output of ``pcm metrics``."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.figures: Figures = {}
        self.absent: dict[str, str] = {}

    def take(self, name: str, measure: Callable[[], float | Figures]) -> None:
        """Add the result of ``measure``, or the reason why there is none."""
        try:
            found = measure()
        except MissingError as missing:
            self.absent[name] = str(missing)
        else:
            self.figures |= found if isinstance(found, dict) else {name: found}

    def text(self) -> str:
        """The report, one figure per line."""
        width = max(map(len, [*self.figures, *self.absent]))
        lines = [self.head, *(f"{name:<{width}}  {value:.4f}" for name, value in self.figures.items())]
        return "\n".join(lines + [f"{name:<{width}}  not measured: {why}" for name, why in self.absent.items()])
