"""What "Use PCM nodes" would do for a file, or why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .finding import Mend
from .notes import Note


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The steps, or a reason.

    Attributes:
        steps: changes to the workflow, in their order; empty where it cannot be done.
        reason: why not.
    """

    steps: tuple[Mend, ...] = ()
    reason: Note | None = None


class NoExchangeError(Exception):
    """Ends the search for steps with a reason."""

    def __init__(self, key: str, **facts: Any) -> None:
        super().__init__(key)
        self.reason = Note.of(key, **facts)
