"""The real server for hours, and what may go wrong around it. Its fixtures are those of ``tests/conftest.py``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))  # for ``import recipes``
