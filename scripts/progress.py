"""The progress bar of all commands: one updated line on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
DELAY = 2.0  # seconds; shorter work shows no bar
IN_A_LOG = 30.0  # seconds between lines


def bar(total: int, what: str, *, done: int = 0, unit: str = "it", show: bool = True, delay: float = DELAY) -> Any:
    """A tqdm bar on stderr.

    Args:
        total: number of steps, including those of an earlier run.
        done: number of steps that an earlier run made.
        show: ``False`` in every process except the first.
        delay: seconds before the bar is shown.
    """
    live = sys.stderr.isatty()
    interval = 0.2 if live else IN_A_LOG
    return tqdm(
        total=total, desc=what, initial=done, unit=f" {unit}", delay=delay, disable=not show, ascii=" #",
        mininterval=interval, maxinterval=max(interval, 10.0), dynamic_ncols=live, file=sys.stderr,
    )  # fmt: skip


def watched(items: Iterable[T], total: int, what: str, *, unit: str = "it") -> Iterator[T]:
    """Iterate over items with a progress bar."""
    with bar(total, what, unit=unit) as shown:
        for item in items:
            yield item
            shown.update()
