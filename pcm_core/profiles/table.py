"""Reads ``methods.json``, the table of few-step methods."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("methods.json")


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """``methods.json``; its ``about`` explains every entry."""
    return json.loads(_TABLE.read_text(encoding="utf-8"))
