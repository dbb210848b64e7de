"""What people do in the frontend: browse templates, drag a file in, read the help, watch a run, read it in Chinese."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from demo.quickstart import SAMPLER
from devtools.base import WORKFLOW
from devtools.browser import DRAWN, ERROR_TOAST, READY

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent.parent
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
PACK = "phased-consistency"
# The size of a picture once it is loaded; looked up at every poll, for the frontend may draw it anew.
LOADED = """([selector, index]) => {
    const image = document.querySelectorAll(selector)[index];
    return image?.complete && image.naturalWidth > 0 && [image.naturalWidth, image.naturalHeight];
}"""
OURS = """() => Object.values(window.LiteGraph.registered_node_types)
    .filter(node => node.nodeData?.python_module === "custom_nodes.phased-consistency")
    .map(node => [node.type, node.title])"""
# A drop as the browser sends it: the file, the position, and the three events in their order.
DROP = """([name, text]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([text], name, {type: "application/json"}));
    const options = {dataTransfer, bubbles: true, cancelable: true, clientX: 600, clientY: 400};
    const canvas = document.querySelector("#graph-canvas");
    for (const kind of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(kind, options));
}"""
WATCH = """() => {
    window.seen = [];
    const kinds = ["b_preview_with_metadata", "progress", "execution_success", "execution_error"];
    for (const kind of kinds) window.app.api.addEventListener(kind, event => {
        const detail = event.detail ?? {};
        window.seen.push([kind, String(detail.displayNodeId ?? detail.node ?? ""), detail.blob?.size ?? 0]);
    });
}"""


def load(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)


def set_setting(page: Page, name: str, value: Any) -> None:
    page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])


@pytest.fixture
def setting(page: Page) -> Iterator[Any]:
    """Change a setting of the frontend; the old value comes back after the test."""
    before: dict[str, Any] = {}

    def change(name: str, value: Any) -> None:
        before[name] = page.evaluate("name => window.app.extensionManager.setting.get(name)", name)
        set_setting(page, name, value)

    yield change
    for name, value in before.items():
        set_setting(page, name, value)


def click_title(page: Page, kind: str) -> None:
    """A click of the mouse on the title of the first node of a kind."""
    page.evaluate("() => { window.app.canvas.ds.scale = 1; window.app.canvas.ds.offset = [0, 0] }")
    for _ in range(10):  # a graph that was just opened is fitted to the window a few frames later
        page.evaluate("""kind => {
            const node = window.app.graph._nodes.find(node => node.type === kind), view = window.app.canvas.ds;
            view.scale = 1;
            view.offset = [300 - node.pos[0], 200 - node.pos[1]];
            window.app.canvas.setDirty(true, true);
        }""", kind)  # fmt: skip
        page.evaluate(DRAWN)
        page.mouse.click(370, 185)
        if page.evaluate("kind => Object.values(window.app.canvas.selected_nodes).some(n => n.type === kind)", kind):
            return
        page.wait_for_timeout(500)  # two clicks in a row would be a double click
    raise AssertionError(f"no click selects {kind}")


def test_the_template_browser_shows_every_workflow_and_opens_one(page: Page) -> None:
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text(PACK, exact=True).first.click()
    for path in TEMPLATES:
        card = page.get_by_test_id(f"template-workflow-{path.stem}")
        card.scroll_into_view_if_needed()
        picture = f'[data-testid="template-workflow-{path.stem}"] img'
        size = page.wait_for_function(LOADED, arg=[picture, 0]).json_value()
        assert size == [512, 512], f"{path.stem}: not our card but the frontend's stand-in for a missing one"
    page.get_by_test_id("template-workflow-SD3 text to image").click()
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'EmptySD3LatentImage')")
    expect(page.get_by_test_id("template-workflows-content")).to_have_count(0)  # it fades before it goes


def test_a_workflow_file_dropped_on_the_canvas_is_loaded(page: Page) -> None:
    path = ROOT / "workflows" / "Building blocks.json"
    page.evaluate(DROP, [path.name, path.read_text("utf-8")])
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'PCMGuider')")
    shown = page.evaluate("() => window.app.graph._nodes.map(node => node.type)")
    assert sorted(shown) == sorted(node["type"] for node in json.loads(path.read_text("utf-8"))["nodes"])


@pytest.mark.parametrize("path", HELP, ids=lambda path: path.stem)
def test_the_help_of_a_node_is_our_page_with_its_pictures(page: Page, path: Path) -> None:
    load(page, {"version": 0.4, "nodes": [], "links": []})
    page.evaluate("id => { window.app.graph.add(window.LiteGraph.createNode(id)) }", path.stem)
    click_title(page, path.stem)
    panel = page.locator(".node-help-content")
    info = page.get_by_test_id("info-button")
    expect(panel.or_(info).first).to_be_visible()
    if not panel.count():  # once open, the panel stays and follows the selection
        info.click()
    title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
    panel.locator("h1", has_text=title).wait_for()
    pictures = panel.locator("img")
    expect(pictures).to_have_count(path.read_text("utf-8").count("!["))
    for index in range(pictures.count()):
        page.wait_for_function(LOADED, arg=[".node-help-content img", index])
    assert pictures.first.get_attribute("src") == f"/extensions/{PACK}/docs/images/{path.stem}.png"


def test_a_run_shows_previews_and_ends(page: Page, setting: Any) -> None:
    setting("Comfy.Execution.PreviewMethod", "latent2rgb")
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    load(page, workflow)
    page.evaluate("id => { window.app.graph.getNodeById(id).widgets.find(w => w.name === 'seed').value = 77 }", SAMPLER)
    page.evaluate(WATCH)
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function("() => window.seen.some(([kind]) => kind.startsWith('execution'))")
    seen = page.evaluate("() => window.seen")
    assert seen[-1][0] == "execution_success", seen
    previews = [size for kind, node, size in seen if kind == "b_preview_with_metadata" and node == SAMPLER]
    assert len(previews) == 4 and min(previews) > 0, seen
    page.wait_for_timeout(500)  # what went wrong is shown by now
    assert not page.locator(ERROR_TOAST).all_inner_texts()


def test_the_node_says_what_became_of_the_steps(page: Page) -> None:
    """Asking a model of four phases for eight steps changes nothing in the picture; the reason must not be in a log."""
    load(page, json.loads(WORKFLOW.read_text("utf-8")))
    for steps, words in ((8, "8 steps were asked of a 4-phase model"), (0, "4 steps, 4 phases")):
        page.evaluate("""([id, steps]) => {
            const widgets = window.app.graph.getNodeById(id).widgets;
            widgets.find(w => w.name === 'steps').value = steps;
            widgets.find(w => w.name === 'seed').value = 80 + steps;
        }""", [SAMPLER, steps])  # fmt: skip
        page.evaluate(WATCH)
        page.get_by_test_id("queue-button").first.click()
        page.wait_for_function("() => window.seen.some(([kind]) => kind.startsWith('execution'))")
        page.wait_for_timeout(500)  # when newer frontends have taken their own text away
        page.get_by_text(words).first.wait_for()
        assert page.get_by_text(words).count() == 1, "said twice"
    stored = page.evaluate("id => window.app.graph.getNodeById(id).serialize().widgets_values", SAMPLER)
    before = next(node for node in json.loads(WORKFLOW.read_text("utf-8"))["nodes"] if node["id"] == int(SAMPLER))
    assert len(stored) == len(before["widgets_values"]), "what it says is no value of the node"


def test_by_name_the_stock_node_says_it(page: Page) -> None:
    """Sampler ``pcm`` in KSampler at its own cfg of 8: what the LoRA wants stands on that very node, and stays."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    node = next(node for node in workflow["nodes"] if node["id"] == int(SAMPLER))
    node |= {"type": "KSampler", "widgets_values": [90, "fixed", 4, 8.0, "pcm", "pcm", 1.0], "properties": {}}
    node["inputs"] = [slot for slot in node["inputs"] if slot.get("link") is not None]
    node["outputs"] = node["outputs"][:1]
    load(page, workflow)
    page.evaluate(WATCH)
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function("() => window.seen.some(([kind]) => kind.startsWith('execution'))")
    page.wait_for_timeout(500)
    page.get_by_text("cfg").filter(has_text="8").first.wait_for()
    shown = page.evaluate("""id => window.app.graph.getNodeById(id).widgets
        .filter(widget => ["$$node-text-preview", "pcm_said"].includes(widget.name)).length""", SAMPLER)  # fmt: skip
    assert shown == 1


def test_the_node_library_holds_the_nodes_and_the_blueprint(page: Page) -> None:
    panel = page.locator(".side-bar-panel")
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    try:
        panel.locator("input").first.fill("PCM")
        for name in ("PCM text to image", "PCM Sampler", "PCM Compare", "Load PCM LoRA"):
            panel.get_by_text(name, exact=True).wait_for()
    finally:
        page.evaluate("() => { window.app.extensionManager.sidebarTab.activeSidebarTabId = null }")
    expect(panel.locator("input")).to_have_count(0)


def test_people_who_search_by_other_names_find_the_node(page: Page) -> None:
    load(page, {"version": 0.4, "nodes": [], "links": []})
    page.evaluate(DRAWN)
    page.mouse.dblclick(700, 600)
    dialog = page.get_by_role("dialog")
    try:
        for words, node in (("few step", "PCM Sampler"), ("tcd", "SamplerPCM"), ("xy plot", "PCM Compare")):
            found = dialog.get_by_text(node, exact=True)
            dialog.locator("input").first.fill("no node is called this")
            expect(found).to_have_count(0)  # the search before may have found it too
            dialog.locator("input").first.fill(words)
            found.first.wait_for()
    finally:
        page.keyboard.press("Escape")


def test_in_chinese_the_nodes_have_chinese_names(page: Page, setting: Any) -> None:
    chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    setting("Comfy.Locale", "zh")
    page.reload()
    page.wait_for_function(READY)
    shown = dict(page.evaluate(OURS))
    assert shown == {name: texts["display_name"] for name, texts in chinese.items()}
    assert all(not title.isascii() for title in shown.values())
    labels = page.evaluate(
        "() => window.LiteGraph.createNode('PCMSampler').widgets.map(widget => [widget.name, widget.label])"
    )
    inputs = chinese["PCMSampler"]["inputs"]
    assert dict(labels)["steps"] == inputs["steps"]["name"] and not inputs["steps"]["name"].isascii(), labels
