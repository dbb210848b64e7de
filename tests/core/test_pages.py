"""The pages that say what was tried: other packs, and frontends."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from devtools import frontend_table, neighbours_page

REPORT = {
    "day": "2026-01-02", "ours": "commit abc", "comfyui": "0.30.0",
    "packs": {"GGUF": "795e45156e of 2025-12-18", "KJNodes": "absent"},
    "results": [{"pack": "GGUF", "graph": "a | b.", "result": "passed"},
                {"pack": "KJNodes", "graph": "c", "result": "not tried: KJNodes is not among the given packs"}],
}  # fmt: skip
BROWSER = """<testsuites><testsuite name="commit abc123">
<testcase classname="tests.server.test_frontend" name="test_a[own-canvas]"/>
<testcase classname="tests.server.test_frontend" name="test_b[own-canvas-SD3 text]"><failure message="no"/></testcase>
<testcase classname="tests.server.test_workflow_check" name="test_c[vue-newest]"/>
<testcase classname="tests.host.test_a" name="test_c[own-canvas]"/>
</testsuite></testsuites>"""


def test_packs_their_commits_and_their_graphs() -> None:
    text = neighbours_page.page(REPORT)
    assert "| GGUF | 795e45156e of 2025-12-18 |" in text and "| KJNodes | absent |" in text
    assert "| GGUF | a \\| b | passed |" in text and "| KJNodes | c | not tried: KJNodes" in text
    assert "on 2026-01-02" in text and "on commit abc and ComfyUI 0.30.0" in text


def test_without_a_run_there_is_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_page, "PAGE", tmp_path / "page.md")
    with pytest.raises(SystemExit, match="tests/neighbours --packs DIR"):
        neighbours_page.main(tmp_path / "none.json")
    (tmp_path / "some.json").write_text(json.dumps(REPORT), encoding="utf-8")
    neighbours_page.main(tmp_path / "some.json")
    assert (tmp_path / "page.md").read_text("utf-8") == neighbours_page.page(REPORT)


def test_frontends_are_counted_by_renderer(tmp_path: Path) -> None:
    report = tmp_path / "browser.xml"
    report.write_text(BROWSER, encoding="utf-8")
    text = frontend_table.section(report, date(2026, 1, 2))
    assert "(of the host) | canvas | 1 failed, 1 passed |" in text
    assert "| 1.58.1 (newest) | vue | 1 passed |" in text
    assert "comfy-kitchen" in text and "comfy-aimdo" in text and "commit abc123" in text
    page = frontend_table.put_into("# Hosts\n\n| a |\n", text)
    assert page == frontend_table.put_into(page, text) and page.startswith("# Hosts\n\n| a |\n\n## Frontends")
