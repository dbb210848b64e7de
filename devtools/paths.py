"""Paths. Everything that dev.py creates is inside the repository and ignored by git."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
# ComfyUI's own workflow templates, newer than those that the host itself pins; hence beside site-packages.
OFFICIAL_TEMPLATES = VENV / "official-templates"
HOSTS = ROOT / ".host"
FRONTENDS = VENV / "frontends"  # newest and oldest, see environment.OTHER_FRONTENDS
BASE = ROOT / ".base"
LOGS = ROOT / ".logs"
WEIGHTS = ROOT / "demo" / "weights"
# Everything except the reports that measurements write.
SOURCES = (".", ":!benchmarks/results.md", ":!docs/hosts.md")


def commit() -> str:
    """``commit <hash>`` of the working tree, with ``-dirty`` if more than the reports changed, or ``no commit``."""
    try:
        top, head = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "--short=9", "HEAD")
        changed = _git("status", "--porcelain", "--", *SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return f"commit {head}" + "-dirty" * bool(changed) if Path(top).resolve() == ROOT else "no commit"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
