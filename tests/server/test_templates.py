"""The shipped workflows as people meet them: in the template browser, on the canvas, in the node library."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from demo.client import Client
from devtools.browser import DRAWN, TOAST

ROOT = Path(__file__).resolve().parent.parent.parent
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
BLUEPRINT = ROOT / "subgraphs" / "PCM text to image.json"
PACK = "phased-consistency"
TITLE_BAR = 30
# Rectangles as they are drawn, the title bar above included, and the size that the widgets need.
RECTANGLES = """() => window.app.graph._nodes.map(node => ({
    name: node.title, box: [node.pos[0], node.pos[1], node.size[0], node.size[1]], needs: [...node.computeSize()],
    text: node.type === "MarkdownNote"}))"""


BLUEPRINTS = """() => {
    const root = [...document.querySelectorAll("*")].find(element => element.__vue_app__);
    const stores = root.__vue_app__.config.globalProperties.$pinia._s;
    const all = [...stores.values()], store = all.find(s => "subgraphBlueprints" in s);  // until 1.57
    const since = () => [...all.find(s => "blueprintNodeDefsByName" in s).blueprintNodeDefsByName.values()];
    return (store ? store.subgraphBlueprints : since()).map(node => node.display_name);
}"""


# Of our nodes in the Vue renderer: the height below the last widget, in pixels of the graph. A badge with the name of
# the pack and the button for advanced inputs stand there.
EMPTY = """() => window.app.graph._nodes.filter(node => /^(PCM|SamplerPCM)/.test(node.type)).map(node => {
    const body = document.querySelector(`[data-node-id="${node.id}"]`), scale = window.app.canvas.ds.scale;
    const inside = [...body.querySelectorAll("input, textarea, canvas, button, [role=combobox], .lg-slot, img")]
        .map(element => element.getBoundingClientRect()).filter(box => box.height > 2);
    const shown = inside.filter(box => box.bottom < body.getBoundingClientRect().bottom - 20 * scale);
    const last = Math.max(body.getBoundingClientRect().top, ...shown.map(box => box.bottom));
    return [node.type, (body.getBoundingClientRect().bottom - last) / scale];
})"""
FOOT = 90
ROOM = {"PCMDistillLora": 310, "PCMCompare": 310, "PCMPhasePlot": 310}  # for the picture that comes


def load(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.evaluate(DRAWN)


def toasts(page: Page) -> list[str]:
    return page.locator(TOAST).all_inner_texts()


def overlap(a: list[float], b: list[float]) -> bool:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    return ax < bx + bw and bx < ax + aw and ay - TITLE_BAR < by + bh and by - TITLE_BAR < ay + ah


def test_the_host_lists_and_serves_every_template_with_its_picture(client: Client) -> None:
    listed = json.loads(client.get("/workflow_templates"))[PACK]
    assert sorted(listed) == [path.stem for path in TEMPLATES]
    for path in TEMPLATES:
        where = f"/api/workflow_templates/{PACK}/{urllib.parse.quote(path.stem)}"
        assert json.loads(client.get(f"{where}.json")) == json.loads(path.read_text("utf-8"))
        assert client.get(f"{where}.jpg")[:3] == b"\xff\xd8\xff", "a JPEG"


@pytest.mark.browser
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_canvas_and_the_api_form_are_one_graph(page: Page, path: Path) -> None:
    load(page, json.loads(path.read_text("utf-8")))
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    expected = json.loads((path.parent / "api" / path.name).read_text("utf-8"))
    assert {node: queued[node]["inputs"] for node in queued} == {node: expected[node]["inputs"] for node in expected}


@pytest.mark.browser
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_nothing_overlaps_and_every_widget_has_room(page: Page, look: Any, path: Path) -> None:
    load(page, json.loads(path.read_text("utf-8")))
    if look.renderer == "vue":
        page.wait_for_timeout(300)  # until the elements have their size
        for kind, height in page.evaluate(EMPTY):
            assert height < FOOT + ROOM.get(kind, 0), f"{kind} has {height:.0f} pixels below its last widget"
    drawn = page.evaluate(RECTANGLES)
    for i, one in enumerate(drawn):
        assert one["text"] or one["box"][3] >= one["needs"][1] - 1, one
        for other in drawn[i + 1 :]:
            assert not overlap(one["box"], other["box"]), (one, other)


@pytest.mark.browser
def test_the_frontends_own_schema_takes_every_template(page: Page) -> None:
    """Off by default for people, because other packs' workflows fail it."""
    switch = "on => window.app.extensionManager.setting.set('Comfy.Validation.Workflows', on)"
    page.evaluate(switch, True)
    try:
        for path in TEMPLATES:
            load(page, json.loads(path.read_text("utf-8")))
            assert not toasts(page), path.stem
        load(page, {"version": 0.4, "nodes": [{"id": "no number", "type": 5}], "links": []})
        expect(page.locator(TOAST).first).to_be_visible()  # else the schema refuses nothing
        page.wait_for_timeout(300)
        assert len(toasts(page)) == 1, "a template's came late"  # they stay until they are closed
    finally:
        page.evaluate(switch, False)


@pytest.mark.browser
def test_the_blueprint_is_in_the_node_library(page: Page) -> None:
    page.wait_for_function(f"name => ({BLUEPRINTS})().includes(name)", arg=BLUEPRINT.stem)


@pytest.mark.browser
def test_the_blueprint_makes_a_picture_from_its_widgets(page: Page) -> None:
    load(page, json.loads(BLUEPRINT.read_text("utf-8")))
    (outer,) = page.evaluate("() => window.app.graph._nodes.map(node => node.widgets.map(widget => widget.name))")
    assert [name for name in outer if name != "control_after_generate"] == [
        "ckpt_name", "lora_name", "text", "width", "height", "seed", "steps", "cfg",
    ]  # fmt: skip
    page.evaluate("() => { window.app.graph._nodes[0].widgets.find(w => w.name === 'text').value = 'a lighthouse' }")
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    kinds = sorted(node["class_type"] for node in queued.values())
    assert kinds == ["CLIPTextEncode", "CLIPTextEncode", "CheckpointLoaderSimple", "EmptyLatentImage", "PCMLoraLoader",
                     "PCMSampler", "VAEDecode"]  # fmt: skip
    assert "a lighthouse" in [node["inputs"].get("text") for node in queued.values()]
