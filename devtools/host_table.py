"""Which tests ran on which ComfyUI: writes docs/hosts.md from the reports of ``dev.py test --long`` in .logs.

python -m devtools.host_table
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import date
from pathlib import Path

from .frontend_table import HEADING, put_into
from .host import SDISTS
from .paths import LOGS, ROOT

PAGE = ROOT / "docs" / "hosts.md"
HEAD = """# Which tests ran on which ComfyUI

Written by `python -m devtools.host_table` on {date}, from the reports that `python dev.py test --long`, or a part of
it, left on {commit}. Every figure counts tests in `tests/host`: the real ComfyUI in one process, tiny models through
its own loaders. Server, browser and slow tests run on the newest version only.
"""


def report_path(version: str, folder: Path = LOGS) -> Path:
    """The path of the JUnit report of a host's run."""
    return folder / f"tests-{version}.xml"


def commit_of(report: Path) -> str:
    """The commit that ``dev.py`` recorded in a JUnit report."""
    suite = ElementTree.parse(report).find("testsuite")
    return "no commit" if suite is None else suite.get("name", "no commit")


def outcomes(report: Path) -> dict[tuple[str, str], str]:
    """(file, test) of every host test in a JUnit report, mapped to "passed", "failed" or the reason of the skip."""
    found: dict[tuple[str, str], str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "")
        if not module.startswith("tests.host."):
            continue
        skipped = case.find("skipped")
        failed = case.find("failure") is not None or case.find("error") is not None
        result = "failed" if failed else "passed" if skipped is None else skipped.get("message", "skipped")
        _, _, file, *classes = module.split(".")
        found[f"{file}.py", "::".join([*classes, case.get("name", "")])] = result
    return found


def page(reports: dict[str, dict[tuple[str, str], str]], today: date, commit: str) -> str:
    """The page: a row per test file, a column per host, and the skipped tests of each host."""
    files = sorted({file for report in reports.values() for file, _ in report})
    rows = [["file", *reports], ["---"] * (len(reports) + 1)]
    rows += [[file, *(_cell(report, file) for report in reports.values())] for file in files]
    rows.append(["all", *(_cell(report) for report in reports.values())])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    skips = Counter(
        (version, why)
        for version, report in reports.items()
        for why in report.values()
        if why not in ("passed", "failed")
    )
    reasons = "\n".join(f"- {version}: {count} x {why}" for (version, why), count in skips.items())
    return f"{HEAD.format(date=today.isoformat(), commit=commit)}\n{table}\n" + (
        f"\nSkipped:\n\n{reasons}\n" if skips else ""
    )


def _cell(report: dict[tuple[str, str], str], file: str | None = None) -> str:
    counts = Counter(
        result if result in ("passed", "failed") else "skipped"
        for (where, _), result in report.items()
        if file in (None, where)
    )
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "not run"


def main() -> None:
    paths = {version: report_path(version) for version in SDISTS if report_path(version).exists()}
    commits = {version: commit_of(path) for version, path in paths.items()}
    known = {commit for commit in commits.values() if commit.startswith("commit ")}
    if len(known) != 1 or len(set(commits.values())) != 1:
        found = ", ".join(f"{version} on {commit}" for version, commit in commits.items()) or "none"
        raise SystemExit(f"Expected reports of one commit, found {found}. Run python dev.py test --long.")
    reports = {version: outcomes(path) for version, path in paths.items()}
    text, beside = page(reports, date.today(), next(iter(commits.values()))), HEADING
    if PAGE.exists() and beside in (before := PAGE.read_text("utf-8")):
        text = put_into(text, beside + before.partition(beside)[2])
    PAGE.write_text(text, encoding="utf-8", newline="\n")
    print(f"{PAGE.name}: {', '.join(reports)}")


if __name__ == "__main__":
    main()
