"""Figures by name, and for each that could not be taken what it lacks."""

from __future__ import annotations

from collections.abc import Callable

EXTRA = 'pip install ".[metrics]"'
Figures = dict[str, float]


class MissingError(Exception):
    """A measure that cannot be taken, and what it lacks."""


class Report:
    """What ``pcm metrics`` prints."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.figures: Figures = {}
        self.absent: dict[str, str] = {}

    def take(self, name: str, measure: Callable[[], float | Figures]) -> None:
        """Add what ``measure`` returns, or its reason."""
        try:
            found = measure()
        except MissingError as missing:
            self.absent[name] = str(missing)
        else:
            self.figures |= found if isinstance(found, dict) else {name: found}

    def text(self) -> str:
        """One line a figure."""
        width = max(map(len, [*self.figures, *self.absent]))
        lines = [self.head, *(f"{name:<{width}}  {value:.4f}" for name, value in self.figures.items())]
        return "\n".join(lines + [f"{name:<{width}}  not measured: {why}" for name, why in self.absent.items()])
