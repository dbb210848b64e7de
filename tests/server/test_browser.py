"""The shipped workflows in the real frontend, in headless Chromium: every node resolves, and Run makes a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error, Page

from demo.quickstart import SAVE
from demo.quickstart import WORKFLOW as API_WORKFLOW
from demo.quickstart_video import WORKFLOW as VIDEO_API_WORKFLOW
from devtools.base import VIDEO_WORKFLOW, WORKFLOW

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent.parent
ARTIFACTS = ROOT / "artifacts"
SHIPPED = [WORKFLOW, VIDEO_WORKFLOW, *sorted((ROOT / "workflows").glob("*.json"))]


def load(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)


def screenshot(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=str(ARTIFACTS / f"{name}.png"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_node_of_a_shipped_workflow_resolves(page: Page, path: Path) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    load(page, workflow)
    inner = [node for graph in workflow.get("definitions", {}).get("subgraphs", []) for node in graph["nodes"]]
    types = {node["type"] for node in workflow["nodes"] + inner}
    known = page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)")
    assert types <= set(known), f"not registered: {types - set(known)}"
    screenshot(page, path.stem.replace(" ", "-"))


@pytest.mark.parametrize(
    ("ui", "api"), [(WORKFLOW, API_WORKFLOW), (VIDEO_WORKFLOW, VIDEO_API_WORKFLOW)], ids=["pictures", "video"]
)
def test_the_browser_would_queue_the_api_form(page: Page, ui: Path, api: Path) -> None:
    """Both forms of a quick start are one graph: every widget of the UI form is in its place."""
    load(page, json.loads(ui.read_text("utf-8")))
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    expected = json.loads(api.read_text("utf-8"))
    assert {node: queued[node]["inputs"] for node in queued} == {node: expected[node]["inputs"] for node in expected}


def test_run_makes_a_picture(page: Page) -> None:
    load(page, json.loads(WORKFLOW.read_text("utf-8")))
    try:
        page.get_by_test_id("queue-button").first.click()
        page.wait_for_function("id => window.app.graph.getNodeById(id).imgs?.length === 1", arg=SAVE)
        page.wait_for_timeout(500)  # let the canvas draw what it has
    except Error as error:
        pytest.fail(f"{error.message}\nOn the page: {page.inner_text('body')[:2000]}")
    finally:
        screenshot(page, "run")
    image = page.evaluate("id => { const i = window.app.graph.getNodeById(id).imgs[0];"
                          "return [i.naturalWidth, i.naturalHeight] }", SAVE)  # fmt: skip
    assert image == [64, 64]


def test_run_makes_a_clip(page: Page) -> None:
    load(page, json.loads(VIDEO_WORKFLOW.read_text("utf-8")))
    try:
        page.get_by_test_id("queue-button").first.click()
        page.wait_for_function("id => window.app.nodeOutputs[id]?.images?.length === 1", arg=SAVE)
    except Error as error:
        pytest.fail(f"{error.message}\nOn the page: {page.inner_text('body')[:2000]}")
    finally:
        screenshot(page, "run-video")
    output = page.evaluate("id => window.app.nodeOutputs[id]", SAVE)
    assert output["images"][0]["filename"].endswith(".webp")
    assert output["animated"] == [True]
