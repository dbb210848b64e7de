"""Open a wrong workflow in the real frontend, see the badge, mend it both ways, undo, run: the right picture."""

from __future__ import annotations

import copy
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from devtools.base import WORKFLOW, make_base
from devtools.browser import DRAWN, READY
from devtools.paths import FRONTENDS
from devtools.server import Server

pytestmark = pytest.mark.browser

LORA, SAMPLER = 2, 6
ROOT = Path(__file__).resolve().parent.parent.parent
STATE = """() => (window.app.rootGraph ?? window.app.graph).serialize().nodes
    .map(node => [node.id, node.type, node.mode, node.widgets_values]).sort()"""
BADGE = ":has(> .pi-gauge) > .sidebar-icon-badge"
RENDERERS = {"canvas": False, "vue": True}


def wrong_workflow() -> dict[str, Any]:
    """The quick start with the stock loader and sampler, as somebody might set them who knows the teacher."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] not in ("PreviewAny", "MarkdownNote")]
    ids = {node["id"] for node in workflow["nodes"]}
    workflow["links"] = [link for link in workflow["links"] if {link[1], link[3]} <= ids]
    by_id = {node["id"]: node for node in workflow["nodes"]}
    loader, sampler = by_id[LORA], by_id[SAMPLER]
    loader |= {"type": "LoraLoaderModelOnly", "widgets_values": ["demo_pcm_4phase.safetensors", 1.0]}
    loader["outputs"] = loader["outputs"][:1]
    sampler |= {"type": "KSampler", "widgets_values": [1, "fixed", 20, 7.0, "euler", "simple", 1.0]}
    sampler["outputs"] = sampler["outputs"][:1]
    for node in (loader, sampler):
        node["inputs"] = [slot for slot in node["inputs"] if slot.get("link") is not None]
        node["properties"] = {}
    return workflow


def right_workflow() -> dict[str, Any]:
    workflow = copy.deepcopy(wrong_workflow())
    node = next(node for node in workflow["nodes"] if node["id"] == SAMPLER)
    node["widgets_values"][2:4] = [4, 1.0]
    return workflow


def load(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.evaluate(DRAWN)


def picture(page: Page) -> bytes:
    """Run, and the bytes of the picture."""
    page.evaluate("""() => { window.ended = null; for (const kind of ["execution_success", "execution_error"])
        window.app.api.addEventListener(kind, () => { window.ended = kind }, {once: true}) }""")
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    page.wait_for_function("() => window.ended")
    assert page.evaluate("() => window.ended") == "execution_success"
    found = page.evaluate("""async () => {
        const node = (window.app.rootGraph ?? window.app.graph)._nodes.find(node => node.type === "SaveImage");
        const image = window.app.nodeOutputs[node.id].images[0];
        const url = `/view?filename=${image.filename}&type=${image.type}&subfolder=${image.subfolder}`;
        const pixels = await createImageBitmap(await (await fetch(url)).blob());
        const canvas = new OffscreenCanvas(pixels.width, pixels.height).getContext("2d");
        canvas.drawImage(pixels, 0, 0);
        return Array.from(canvas.getImageData(0, 0, pixels.width, pixels.height).data);
    }""")
    return bytes(found)


def close_panel(page: Page) -> None:
    page.evaluate("() => { window.app.extensionManager.sidebarTab.activeSidebarTabId = null }")
    expect(page.locator(".pcm-panel")).to_have_count(0)


def undo(page: Page) -> None:
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Undo')")


DISTILLED = "sd3.5_large_turbo.safetensors"


def distilled_checkpoint(base: Path) -> None:
    """The demo's model under the name of a distilled one: four steps at cfg 1, which is how its file is sampled."""
    folder = base / "models" / "diffusion_models"
    shutil.copy(folder / "demo_sd3.safetensors", folder / DISTILLED)


def open_page(browser: Any, url: str) -> Page:
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(url, timeout=180_000)
    page.wait_for_function(READY, timeout=180_000)  # a busy machine may take its time
    return page


@pytest.fixture(scope="module", params=["own", pytest.param("newest", marks=pytest.mark.long),
                                        pytest.param("oldest", marks=pytest.mark.long)])  # fmt: skip
def checked_page(request: Any, browser: Any, server: Server, tmp_path_factory: Any) -> Iterator[Page]:
    """The page on the host's own frontend, the newest and the oldest that is supported."""
    if request.param == "own":
        distilled_checkpoint(server.base)
        yield open_page(browser, server.url)
        return
    base = tmp_path_factory.mktemp("frontend")
    make_base(base)
    distilled_checkpoint(base)
    folder = FRONTENDS / request.param / "comfyui_frontend_package" / "static"
    assert folder.exists(), f"no frontend in {folder}: run dev.py test once, which installs it"
    with Server(Path(sys.executable), server.host, base, log=base / "server.log", frontend=folder) as other:
        yield open_page(browser, other.url)


@pytest.fixture(params=RENDERERS)
def page(request: Any, checked_page: Page) -> Iterator[Page]:
    """The page with one of the two renderers."""
    name = "Comfy.VueNodes.Enabled"
    checked_page.evaluate("([name, on]) => window.app.extensionManager.setting.set(name, on)",
                          [name, RENDERERS[request.param]])  # fmt: skip
    close_panel(checked_page)
    yield checked_page
    assert not checked_page.errors
    checked_page.evaluate("name => window.app.extensionManager.setting.set(name, false)", name)


def test_a_wrong_workflow_is_mended_both_ways_in_one_step_of_undo(page: Page) -> None:
    load(page, right_workflow())
    right = picture(page)
    expect(page.locator(BADGE)).to_have_count(0)
    for words in ("Set these values", "Use PCM nodes"):
        close_panel(page)
        load(page, wrong_workflow())
        badge = page.locator(BADGE)
        expect(badge).to_have_text("2")
        before = page.evaluate(STATE)
        badge.click()
        panel = page.locator(".pcm-panel")
        expect(panel.locator(".pcm-finding")).to_have_count(2)
        panel.get_by_role("button", name=words).click()
        expect(panel).to_contain_text("Sampled as its authors mean it.")
        undo(page)
        expect(panel.locator(".pcm-finding")).to_have_count(2)
        assert page.evaluate(STATE) == before, words
        panel.get_by_role("button", name=words).click()
        expect(panel).to_contain_text("Sampled as its authors mean it.")
        types = {kind for _, kind, *_ in page.evaluate(STATE)}
        assert ("PCMSampler" in types) == (words == "Use PCM nodes") and ("KSampler" in types) != (
            "PCMSampler" in types
        )
        assert picture(page) == right, words


sys.path.append(str(ROOT / "tests" / "check"))
from right_graphs import as_ui  # noqa: E402
from sampler_graphs import KINDS, demo, in_subgraph  # noqa: E402

LOADERS = ("UNETLoader", "LoraLoaderModelOnly", "SaveImage", "VAELoader", "VAEDecode")
PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "one graph": as_ui,
    "subgraph": lambda prompt: in_subgraph(as_ui(prompt), ("SaveImage",)),
    "loader outside": lambda prompt: in_subgraph(as_ui(prompt), LOADERS, "seed"),
}
# Types of our nodes, in subgraphs too.
OURS = """() => {
    const found = [];
    const look = graph => graph._nodes.forEach(node => {
        found.push(node.type);
        if (node.subgraph) look(node.subgraph);
    });
    look(window.app.rootGraph ?? window.app.graph);
    return found.filter(type => type.includes("PCM") && type !== "PCMDemoPrompt").sort();
}"""


def furthest(picture: bytes, other: bytes) -> int:
    """The largest difference of two pictures, of 255."""
    return max(abs(a - b) for a, b in zip(picture, other, strict=True))


@pytest.mark.parametrize("place", [pytest.param(name, marks=[] if name == "loader outside" else pytest.mark.long)
                                   for name in PLACES])  # fmt: skip
def test_every_stock_sampler_is_exchanged_undone_and_makes_the_right_picture(
    request: Any, page: Page, place: str
) -> None:
    """With the whole prompt of the quick start: the picture of four right steps, whatever sampled it before."""
    load(page, PLACES[place](demo("KSampler")))
    right = picture(page)
    for kind in KINDS:
        close_panel(page)
        load(page, PLACES[place](demo(kind, 20, 7.0)))
        before = page.evaluate(STATE)
        page.locator(BADGE).click()
        panel = page.locator(".pcm-panel")
        expect(panel.locator(".pcm-finding").first).to_be_visible()
        use = panel.get_by_role("button", name="Use PCM nodes")
        use.click()
        expect(panel).to_contain_text("Sampled as its authors mean it.")
        undo(page)
        expect(panel.locator(".pcm-finding").first).to_be_visible()
        assert page.evaluate(STATE) == before and not page.evaluate(OURS), kind
        use.click()
        expect(panel).to_contain_text("Sampled as its authors mean it.")
        ours = page.evaluate(OURS)
        assert "PCMLoraLoader" in ours and ("SamplerPCM" in ours) == (kind == "SplitSigmas"), (kind, ours)
        off = furthest(picture(page), right)
        request.node.user_properties.append((f"{place}, {kind}", off))
        assert off <= (0 if kind not in ("halves", "SplitSigmas") else 1), kind


def test_a_distilled_checkpoint_keeps_its_loader(page: Page) -> None:
    load(page, as_ui(demo("CFGGuider", file="", base=DISTILLED)))
    right = picture(page)
    load(page, as_ui(demo("CFGGuider", 20, 7.0, file="", base=DISTILLED)))
    page.evaluate("() => window.app.extensionManager.command.execute('PhasedConsistency.CheckFewStepSettings')")
    panel = page.locator(".pcm-panel")
    panel.get_by_role("button", name="Use PCM nodes").click()
    expect(panel).to_contain_text("Sampled as its authors mean it.")
    assert page.evaluate(OURS) == ["PCMSampler"]
    assert picture(page) == right


def test_where_our_nodes_cannot_the_button_says_why(page: Page) -> None:
    prompt = demo("KSamplerAdvanced", 20)
    next(node for node in prompt.values() if node["class_type"] == "KSamplerAdvanced")["inputs"]["start_at_step"] = 5
    load(page, as_ui(prompt))
    page.locator(BADGE).click()
    panel = page.locator(".pcm-panel")
    expect(panel).to_contain_text("KSamplerAdvanced takes steps 5 to 20 of 20")
    expect(panel.get_by_role("button", name="Use PCM nodes")).to_be_disabled()


def test_one_value_alone_can_be_set(page: Page) -> None:
    load(page, wrong_workflow())
    page.locator(BADGE).click()
    panel = page.locator(".pcm-panel")
    panel.locator(".pcm-finding", has_text="20 steps").get_by_role("button", name="Set this value").click()
    expect(panel.locator(".pcm-finding")).to_have_count(1)
    expect(panel.locator(".pcm-finding")).to_contain_text("cfg 7")


def test_hostile_names_are_text(page: Page) -> None:
    workflow = wrong_workflow()
    hostile = '<img src=x onerror="window.hacked = true"><script>window.hacked = true</script>'
    next(node for node in workflow["nodes"] if node["id"] == SAMPLER)["title"] = hostile
    load(page, workflow)
    page.locator(BADGE).click()
    expect(page.locator(".pcm-panel")).to_contain_text("<img src=x")
    assert page.evaluate("() => window.hacked") is None
    assert page.locator(".pcm-panel img, .pcm-panel script").count() == 0


def test_a_workflow_without_few_step_files_shows_no_badge(page: Page) -> None:
    load(page, wrong_workflow())
    expect(page.locator(BADGE)).to_have_count(1)
    load(page, {"version": 0.4, "nodes": [], "links": []})
    expect(page.locator(BADGE)).to_have_count(0)


def test_the_setting_turns_the_badge_off(page: Page) -> None:
    page.evaluate("() => window.app.extensionManager.setting.set('PhasedConsistency.CheckOnOpen', false)")
    try:
        load(page, wrong_workflow())
        page.wait_for_timeout(1500)
        assert page.locator(BADGE).count() == 0
        page.evaluate("() => window.app.extensionManager.command.execute('PhasedConsistency.CheckFewStepSettings')")
        expect(page.locator(".pcm-panel .pcm-finding")).to_have_count(2)
    finally:
        page.evaluate("() => window.app.extensionManager.setting.set('PhasedConsistency.CheckOnOpen', true)")


def test_in_chinese_the_panel_speaks_chinese(page: Page) -> None:
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    try:
        load(page, wrong_workflow())
        page.locator(BADGE).click()
        panel = page.locator(".pcm-panel")
        expect(panel).to_contain_text("少步设置")
        expect(panel).to_contain_text("运行 20 步")
    finally:
        page.evaluate("() => window.app.extensionManager.setting.set('Comfy.Locale', 'en')")


BAR = "canvas.pcm-bar"
SET = """([name, value]) => {
    const node = window.app.graph._nodes.find(node => node.type === "PCMSampler");
    node.widgets.find(widget => widget.name === name).value = value;
}"""
# Types steps one after the other and measures until the bar shows each, in milliseconds.
TYPE_STEPS = """async values => {
    const node = window.app.graph._nodes.find(node => node.type === "PCMSampler");
    const widget = node.widgets.find(widget => widget.name === "steps"), times = [];
    const shown = () => document.querySelector("canvas.pcm-bar").dataset.steps;
    for (const value of values) {
        const start = performance.now();
        widget.value = value;
        while (shown() !== String(value) && performance.now() - start < 5000) await new Promise(requestAnimationFrame);
        times.push(performance.now() - start);
    }
    return times;
}"""


def test_the_bar_follows_typing_and_is_not_stored(request: Any, page: Page) -> None:
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    load(page, workflow)
    bar = page.locator(BAR)
    expect(bar).to_have_attribute("data-steps", "4")
    tries = [page.evaluate(TYPE_STEPS, [2, 3, 1, 4, 2, 3]) for _ in range(3)]  # on a machine that may be busy
    request.node.user_properties.append(("milliseconds", tries))
    assert min(statistics.median(times) for times in tries) < 100, tries
    page.evaluate(SET, ["steps", 0])
    page.evaluate(SET, ["start_step", 1])
    page.evaluate(SET, ["end_step", 3])
    expect(bar).to_have_attribute("data-words", "4 steps, only steps 2 to 3, 4 phases, cfg 1")
    page.evaluate(SET, ["start_step", 0])
    page.evaluate(SET, ["end_step", 10000])
    page.evaluate(SET, ["steps", 8])
    expect(bar).to_have_attribute("title", "8 steps were asked of a 4-phase model; ran its 4 phase jumps.")
    page.evaluate(SET, ["cfg", "1, 2, nonsense"])
    expect(bar).to_have_attribute("data-steps", "")
    before = next(node for node in workflow["nodes"] if node["type"] == "PCMSampler")["widgets_values"]
    stored = page.evaluate("() => window.app.graph.serialize().nodes.find(n => n.type === 'PCMSampler').widgets_values")
    assert len(stored) == len(before)
    sent = page.evaluate("async () => Object.values((await window.app.graphToPrompt()).output)"
                         ".find(node => node.class_type === 'PCMSampler').inputs")  # fmt: skip
    assert "pcm_bar" not in sent
    assert bar.evaluate("canvas => canvas.clientHeight") == 38


def test_after_a_run_the_bar_is_what_ran(page: Page) -> None:
    load(page, json.loads(WORKFLOW.read_text("utf-8")))
    expect(page.locator(BAR)).to_have_attribute("data-steps", "4")
    page.evaluate("() => window.app.api.addEventListener('pcm.bar', event => { window.ran = event.detail })")
    page.evaluate(SET, ["seed", random.randrange(2**32)])  # or the host keeps what an earlier test made
    picture(page)
    ran = page.evaluate("() => window.ran")
    assert ran["node"] == str(SAMPLER) and ran["bar"]["levels"] == [1, 0.9, 0.75, 0.5, 0]
