"""Paths only. The repository root goes to the end of ``sys.path``: ``import pcm_core`` and ``import demo`` work, and
``import nodes`` still finds the host's ``nodes.py`` once ``tests/host/conftest.py`` has put COMFYUI_PATH first.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _is_root(entry: str) -> bool:
    return not entry or Path(entry).resolve() == ROOT


sys.path[:] = [entry for entry in sys.path if not _is_root(entry)] + [str(ROOT)]
