"""The virtual environment: created once, then recognised by a stamp file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from .errors import DevError, last_line
from .paths import FRONTENDS, LOGS, OFFICIAL_TEMPLATES, ROOT, VENV

REQUIREMENTS = ROOT / "requirements-dev.txt"
CONSTRAINTS = ROOT / "constraints-host.txt"
TEMPLATES = "comfyui-workflow-templates-json==0.1.123"  # read by devtools/templates, docs/templates.md
# The newest frontend, and that of the oldest host; the host's own comes with its requirements.
OTHER_FRONTENDS = {"newest": "comfyui-frontend-package==1.58.1", "oldest": "comfyui-frontend-package==1.39.19"}
TORCHAUDIO = "torchaudio==2.11.0"  # required by the host; it pins an older torch than ours, hence --no-deps


def venv_python() -> Path:
    """The interpreter of ``.venv``."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv() -> None:
    """Create ``.venv`` with the running interpreter unless it exists.

    Raises:
        DevError: if the venv module could not create it.
    """
    if venv_python().exists():
        return
    print("Creating .venv")
    try:
        venv.create(VENV, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(VENV, ignore_errors=True)
        raise DevError(
            f"Could not create {VENV}: {error}. On Debian and Ubuntu the package python3-venv may be missing."
        ) from error


def pip(*arguments: str, what: str) -> None:
    """Run pip in ``.venv`` and write its output to ``.logs/pip.log``.

    Raises:
        DevError: if pip fails; names ``what``, pip's last error line and the log.
    """
    LOGS.mkdir(exist_ok=True)
    log = LOGS / "pip.log"
    command = [str(venv_python()), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    with log.open("wb") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise DevError(f"Could not {what}: {last_line(log, 'ERROR:')} (pip exit {code}, log: {log}).")


def install(host_requirements: Path, *, pinned: bool) -> None:
    """Install our tools and the host's requirements, unless the stamp says that this has been done.

    torch is installed first, so that the host's unpinned ``torch`` is already satisfied. ``pinned`` applies tested
    versions of everything that the host leaves open; the user's own checkout may need others.
    """
    beside = {OFFICIAL_TEMPLATES: TEMPLATES} | {FRONTENDS / name: package for name, package in OTHER_FRONTENDS.items()}
    steps = [
        ["-r", str(REQUIREMENTS)],
        *(["--no-deps", "--upgrade", "--target", str(folder), package] for folder, package in beside.items()),
        ["--no-deps", TORCHAUDIO],
        ["-r", str(host_requirements), *(["-c", str(CONSTRAINTS)] if pinned else [])],
    ]
    stamp = VENV / "installed.sha256"
    digest = hashlib.sha256(f"{sys.version}{pinned}{TORCHAUDIO}{sorted(beside.values())}".encode())
    for file in (REQUIREMENTS, CONSTRAINTS, host_requirements):
        digest.update(file.read_bytes())
    if stamp.exists() and stamp.read_text("ascii") == digest.hexdigest():
        return
    print("Installing PyTorch, the tools and ComfyUI's requirements into .venv (several minutes the first time)")
    for step in steps:
        pip("install", *step, what="install the requirements")
    stamp.write_text(digest.hexdigest(), "ascii", newline="\n")
