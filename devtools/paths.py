"""Where things lie. Everything dev.py makes is inside the repository and ignored by git."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
HOSTS = ROOT / ".host"
BASE = ROOT / ".base"
LOGS = ROOT / ".logs"
WEIGHTS = ROOT / "demo" / "weights"
# All but what measuring writes.
SOURCES = (".", ":!benchmarks/results.md", ":!docs/hosts.md")


def commit() -> str:
    """The commit of the working tree, ``-dirty`` where more than its reports differs; "no commit" without git."""
    here = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*here, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=False)
        clean = subprocess.run([*here, "diff", "--quiet", "HEAD", "--", *SOURCES], check=False)
    except OSError:
        return "no commit"
    return found.stdout.strip() + "-dirty" * (clean.returncode != 0) if found.returncode == 0 else "no commit"
