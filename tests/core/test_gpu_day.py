"""devtools/gpu_day.sh: a part that fails or hangs is a line in the report, and the others run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "devtools" / "gpu_day.sh"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script")


def run(folder: Path, cases: str, seconds: int) -> tuple[int, str]:
    """The rehearsal with a stand-in for Python; its exit code and report."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\n*) echo "made by $*" ;;\nesac\n', "utf-8")
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "GPU_DAY_SECONDS": str(seconds)}
    done = subprocess.run(
        ["sh", str(SCRIPT), "--rehearse", str(folder / "out")], env=environment, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    return done.returncode, (folder / "out" / "report.md").read_text("utf-8")


def test_every_part_is_in_the_report(tmp_path):
    code, report = run(tmp_path, "*nothing*) ;;", 60)
    assert code == 0 and report.rstrip().endswith("0 parts failed.")
    assert re.findall(r"^## (\w+)$", report, re.MULTILINE) == [
        "versions",
        "training",
        "streaming",
        "real_size",
        "tests",
    ]
    assert report.count("Done in ") == 5 and "made by -m benchmarks.memory_plan --truth --tiny" in report


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    code, report = run(tmp_path, "*memory_plan*) echo half; echo no room >&2; exit 3 ;;", 60)
    assert code == 1 and report.count("Done in ") == 4
    assert re.search(r"## training\n\n.*\n\nFailed with exit code 3 after \d+ s\.\n\nhalf\n\n```\nno room\n```", report)


def test_a_part_that_hangs_ends_with_the_time(tmp_path):
    code, report = run(tmp_path, "*streaming_cost*) echo begun; exec sleep 50 ;;", 6)
    assert code == 3 and report.count("Done in ") == 2
    assert re.search(r"## streaming\n\n.*\n\nStopped after \d+ s: it took too long\.\n\nbegun\n", report)
    assert report.count("Not run: the time was over.") == 2 and report.rstrip().endswith("3 parts failed.")
