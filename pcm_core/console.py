"""Text on any console: Windows has cp1252 or cp936, a log often ASCII, and files are called whatever people like."""

from __future__ import annotations

import sys
from typing import Any


def any_console() -> None:
    r"""Let stdout and stderr write what their encoding lacks as an escape (``\u4eba``), instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)  # a stream that replaces them may have none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
