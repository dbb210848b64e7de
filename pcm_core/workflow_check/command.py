"""The command ``pcm check``: say of workflow files whether they sample their few-step files as intended."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..console import any_console
from ..errors import PCMError
from .check import check
from .describe import as_json, as_text
from .mend import apply_mends
from .read import read_file
from .schedules import Schedules


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="pcm check",
        description="Check how workflows sample their few-step files. Exit code 1 where something is wrong, 2 for a "
        "file that is no workflow.",
    )
    made.add_argument("files", nargs="+", type=Path, metavar="workflow.json", help="UI or API form")
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    made.add_argument("--comfyui", metavar="PATH", help="a ComfyUI checkout, whose schedulers judge what we cannot")
    made.add_argument("--mend", metavar="OUT", type=Path, help="write the one workflow with everything mended")
    return made


def main(arguments: Sequence[str] | None = None, host_schedules: Callable[[str], Schedules] | None = None) -> int:
    """Check files; returns the exit code.

    Args:
        arguments: of the command line.
        host_schedules: makes the schedules of a ComfyUI checkout, which this package knows nothing of.
    """
    any_console()
    options = parser().parse_args(arguments)
    if options.mend and len(options.files) != 1:
        parser().error("--mend writes one workflow; give one.")
    schedules = None
    if options.comfyui:
        if host_schedules is None:
            parser().error("--comfyui needs the command pcm; python -m pcm_core.workflow_check has no ComfyUI.")
        schedules = host_schedules(options.comfyui)
    code, results = 0, dict[str, object]()
    for path in options.files:
        try:
            code = max(code, _one(path, options, schedules, results))
        except PCMError as error:
            sys.stderr.write(f"{path}: {error}\n")
            code = 2
    if options.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return code


def _one(path: Path, options: argparse.Namespace, schedules: Schedules | None, results: dict[str, object]) -> int:
    data = read_file(path)
    report = check(data, schedules)
    results[str(path)] = as_json(report)
    if not options.json:
        hint = "" if schedules or not report.skipped else "\n  (--comfyui PATH judges whatever a ComfyUI there knows)"
        sys.stdout.write(f"{path}\n{as_text(report)}{hint}\n")
    if options.mend:
        mended, left = apply_mends(data, [mend for found in report.findings for mend in found.mends])
        options.mend.write_text(json.dumps(mended, indent=2), encoding="utf-8", newline="\n")
        by_hand = len(left) + sum(not found.mends for found in report.findings)
        sys.stderr.write(f"Wrote {options.mend}; {by_hand} findings are left to you.\n")
    return int(report.wrong)
