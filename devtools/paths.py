"""Where things lie. Everything dev.py makes is inside the repository and ignored by git."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
HOSTS = ROOT / ".host"
BASE = ROOT / ".base"
LOGS = ROOT / ".logs"
WEIGHTS = ROOT / "demo" / "weights"
