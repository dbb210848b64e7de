"""The one exception of the developers' tools."""

from __future__ import annotations

from pathlib import Path


class DevError(Exception):
    """One clear sentence for the person at the keyboard. dev.py prints it and exits with 1."""


def last_line(log: Path, *markers: str) -> str:
    """The last line of a log that holds one of ``markers``, or the last line there is."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    marked = [line for line in lines if any(marker in line for marker in markers)]
    return (marked or lines or ["the log is empty"])[-1]
