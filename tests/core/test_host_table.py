"""The table of tests that ran on each ComfyUI version."""

from datetime import date
from pathlib import Path

import pytest

from devtools import host_table
from devtools.host_table import commit_of, outcomes, page

REPORT = """<testsuites><testsuite name="commit abc123">
<testcase classname="tests.host.test_a" name="one"/>
<testcase classname="tests.host.test_a" name="two"><failure message="no"/></testcase>
<testcase classname="tests.host.test_b" name="one[x]"><skipped message="no such node here"/></testcase>
<testcase classname="tests.host.test_b.TestKind" name="one[x]"/>
<testcase classname="tests.core.test_c" name="one"/>
</testsuite></testsuites>"""


def test_passes_failures_and_skips_are_told_apart(tmp_path: Path) -> None:
    report = tmp_path / "tests-1.xml"
    report.write_text(REPORT)
    found = outcomes(report)
    assert found == {
        ("test_a.py", "one"): "passed",
        ("test_a.py", "two"): "failed",
        ("test_b.py", "one[x]"): "no such node here",
        ("test_b.py", "TestKind::one[x]"): "passed",
    }
    text = page({"1": found, "2": {("test_a.py", "one"): "passed"}}, date(2026, 1, 2), commit_of(report))
    assert "| test_a.py | 1 failed, 1 passed | 1 passed |" in text
    assert "| test_b.py | 1 passed, 1 skipped | not run |" in text
    assert "- 1: 1 x no such node here" in text
    assert "on 2026-01-02" in text and "commit abc123" in text


def test_reports_of_different_commits_make_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {version: tmp_path / f"{version}.xml" for version in host_table.SDISTS}
    monkeypatch.setattr(host_table, "report_path", paths.__getitem__)
    monkeypatch.setattr(host_table, "PAGE", tmp_path / "hosts.md")
    with pytest.raises(SystemExit, match="found none"):
        host_table.main()
    for number, path in enumerate(list(paths.values())[:2]):
        path.write_text(REPORT.replace("abc123", f"number{number}"))
    with pytest.raises(SystemExit, match=r"one commit.*on commit number0.*on commit number1"):
        host_table.main()
    assert not (tmp_path / "hosts.md").exists()
