"""Other people's workflows and files in the real frontend: HTML and script in their texts are shown and never run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page

from demo.quickstart import LORA, REPORT
from devtools.base import WORKFLOW

if TYPE_CHECKING:
    from conftest import Look

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(os.name == "nt", reason="Windows has no file names with <"),
]

ROOT = Path(__file__).resolve().parent.parent.parent
PAYLOADS = (
    "<img src=x onerror=\"window.pwned = 'img'\">",
    "<script>window.pwned = 'script'</script>",
    "<svg onload=\"window.pwned = 'svg'\"></svg>",
    "[click](javascript:window.pwned='link')",
    '"><iframe srcdoc="<script>parent.pwned = \'frame\'</script>"></iframe>',
    "{{constructor.constructor('window.pwned = 1')()}}",
)
HOSTILE = " ".join(PAYLOADS)
FILE = "<img src=x onerror=window.pwned=1> pcm_4phase.safetensors"
WAIT = 1000


@pytest.fixture
def watched(page: Page, look: Look) -> Iterator[Page]:
    """The page, which must neither run what it shows nor open a dialog; the hostile files go again."""
    dialogs: list[str] = []

    def note(dialog: Any) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    try:
        page.evaluate("() => { delete window.pwned; window.ended = [] }")
        page.evaluate("""() => { for (const kind of ["execution_success", "execution_error"])
            window.app.api.addEventListener(kind, event => window.ended.push([kind, event.detail])) }""")
        yield page
        page.wait_for_timeout(WAIT)
        assert page.evaluate("() => window.pwned ?? null") is None
        assert not dialogs
    finally:
        page.remove_listener("dialog", note)
        (look.server.base / "models" / "loras" / FILE).unlink(missing_ok=True)


def lora(look: Look, *, whole: bool) -> None:
    folder = look.server.base / "models" / "loras"
    content = (folder / "demo_pcm_4phase.safetensors").read_bytes()
    (folder / FILE).write_bytes(content if whole else content[:5000])


def run(page: Page) -> tuple[str, dict[str, Any]]:
    """Load the quick start with the hostile file, press Run; how it ended."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.evaluate("""([id, file]) => {
        const widgets = window.app.graph.getNodeById(id).widgets;
        widgets.find(w => w.name === "lora_name").value = file }""", [LORA, FILE])  # fmt: skip
    page.evaluate("() => window.app.refreshComboInNodes?.()")
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function("() => window.ended.length > 0")
    return tuple(page.evaluate("() => window.ended[0]"))


def test_the_watch_sees_what_runs(page: Page) -> None:
    """The same text, put into the page as HTML, does run."""
    for payload in (PAYLOADS[0], PAYLOADS[4]):
        page.evaluate("() => { delete window.pwned }")
        page.evaluate("""html => { const box = document.createElement("div"); box.id = "trap";
            document.body.append(box); box.innerHTML = html }""", payload)  # fmt: skip
        page.wait_for_function("() => Boolean(window.pwned)")
        page.evaluate("() => document.querySelectorAll('#trap').forEach(box => box.remove())")


def test_a_hostile_workflow_is_text(watched: Page) -> None:
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    for node in workflow["nodes"]:
        node["title"] = HOSTILE
        node["properties"] = {**node.get("properties", {}), "note": HOSTILE, "Node name for S&R": HOSTILE}
        values = node.get("widgets_values", [])
        node["widgets_values"] = [HOSTILE if isinstance(value, str) else value for value in values]
    size = {"pos": [0, 0], "size": [300, 200], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": []}
    for number, kind in enumerate(("Note", "MarkdownNote", "PCMVideoSampler", HOSTILE), 900):
        node = {"id": number, "type": kind, **size, "properties": {}, "title": HOSTILE, "widgets_values": [HOSTILE]}
        workflow["nodes"].append(node)
    workflow["groups"] = [{"title": HOSTILE, "bounding": [0, 0, 500, 500], "color": "#3f789e", "flags": {}}]
    workflow["extra"] = {"info": {"name": HOSTILE, "description": HOSTILE}}
    watched.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    titles = watched.evaluate("() => window.app.graph._nodes.map(node => node.title)")
    assert titles.count(HOSTILE) >= len(PAYLOADS), titles
    watched.evaluate("() => window.app.canvas.selectItems?.(window.app.graph._nodes)")  # the panel shows titles
    watched.wait_for_timeout(WAIT)
    watched.keyboard.press("Escape")


def test_a_hostile_file_name_in_the_report_is_text(watched: Page, look: Look) -> None:
    lora(look, whole=True)
    kind, detail = run(watched)
    assert kind == "execution_success", detail
    watched.wait_for_function("""([id, text]) =>
        window.app.graph.getNodeById(id).widgets.some(w => String(w.value).includes(text))""",
        arg=[REPORT, f"file: {FILE}"])  # fmt: skip


def test_a_hostile_file_name_in_an_error_is_text(watched: Page, look: Look) -> None:
    lora(look, whole=False)
    kind, detail = run(watched)
    assert kind == "execution_error" and FILE in detail["exception_message"], detail
    watched.get_by_role("button", name="View details").first.click()
    watched.get_by_text("onerror=window.pwned=1").first.wait_for()
    watched.keyboard.press("Escape")
