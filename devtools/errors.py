"""The exception of the developers' tools."""

from __future__ import annotations

import re
from pathlib import Path

COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")


class DevError(Exception):
    """One clear sentence for the person at the keyboard. dev.py prints it and exits with 1."""


def last_line(log: Path, *markers: str) -> str:
    """The last line of a log that contains one of ``markers``, or else its last line."""
    text = COLOUR_CODE.sub("", log.read_text("utf-8", errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if any(marker in line for marker in markers)]
    return (marked or lines or ["the log is empty"])[-1]
