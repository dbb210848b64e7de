"""Do the steps of docs/first_picture.md in the real frontend with the demo's models, and take its screenshots.

``COMFYUI_PATH=... python -m devtools.generate.walkthrough`` writes ``docs/images/walk/*.webp``. Every click is a real
mouse click, and the page describes what this run shows.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from devtools.base import make_base
from devtools.server import Server

from .frontend import open_frontend, picture_of
from .host_nodes import ROOT

WALK = ROOT / "docs" / "images" / "walk"
SIZE = (1440, 810)
PACK = "phased-consistency"
DONE = """count => {
    const node = window.app.graph._nodes.find(node => node.type === "SaveImage");
    return (window.finished ?? 0) >= count && node.imgs?.length > 0;
}"""
COUNT = (
    "() => window.app.api.addEventListener('execution_success', () => { window.finished = (window.finished ?? 0) + 1 })"
)
# The centre of a widget's row in window pixels, to click on.
ROW = """([kind, name]) => {
    const node = window.app.graph._nodes.find(node => node.type === kind), view = window.app.canvas.ds;
    const widget = node.widgets.find(widget => widget.name === name);
    return [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10].map(
        (at, axis) => (at + view.offset[axis]) * view.scale);
}"""
TITLE = """kind => {
    const node = window.app.graph._nodes.find(node => node.type === kind), view = window.app.canvas.ds;
    return [node.pos[0] + 60, node.pos[1] - 15].map((at, axis) => (at + view.offset[axis]) * view.scale);
}"""


def keep(page: Page, name: str) -> None:
    page.wait_for_timeout(800)
    path = WALK / f"{name}.webp"
    picture_of(page).save(path, quality=75, method=6)
    print(path)


def run(page: Page, count: int) -> None:
    """Click Run, wait for the ``count``th image and until its notification has gone."""
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function(DONE, arg=count, timeout=60_000)
    page.wait_for_timeout(6000)


def open_quick_start(page: Page) -> None:
    page.get_by_role("button", name="Workflows").first.click()
    page.get_by_text("PCM quick start").first.click()
    page.get_by_role("button", name="Workflows").first.click()
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'PCMSampler')")
    page.wait_for_timeout(1500)


def type_steps(page: Page, steps: int) -> None:
    """Double-click the widget, then type, as for any number widget."""
    page.mouse.dblclick(*page.evaluate(ROW, ["PCMSampler", "steps"]))
    page.keyboard.press("Control+A")
    page.keyboard.type(str(steps))
    page.keyboard.press("Enter")


def pick_next_lora(page: Page) -> None:
    """Click the right arrow of the list: from demo_pcm_4phase to demo_pcm_8phase."""
    x, y = page.evaluate(ROW, ["PCMLoraLoader", "lora_name"])
    half, scale = page.evaluate("""() => {
        const node = window.app.graph._nodes.find(node => node.type === "PCMLoraLoader");
        return [node.size[0] / 2, window.app.canvas.ds.scale];
    }""")
    page.mouse.click(x + (half - 25) * scale, y)


def walk(page: Page) -> None:
    page.evaluate(COUNT)
    open_quick_start(page)
    run(page, 1)
    keep(page, "1-first-run")
    type_steps(page, 8)
    run(page, 2)
    keep(page, "2-eight-steps")
    type_steps(page, 0)
    pick_next_lora(page)
    run(page, 3)
    page.get_by_text("8 steps, 8 phases").first.wait_for()
    page.mouse.click(*page.evaluate(TITLE, "PCMSampler"))
    page.get_by_test_id("info-button").click()
    page.locator(".node-help-content img").first.wait_for()
    keep(page, "3-help")
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text(PACK, exact=True).first.click()
    page.get_by_test_id("template-workflow-Compare steps").locator("img").first.wait_for()
    page.wait_for_timeout(1500)
    keep(page, "4-templates")
    page.get_by_test_id("template-workflow-SDXL text to image").click()
    page.get_by_role("button", name="View details").click()
    keep(page, "5-files")


def main() -> None:
    comfyui = Path(os.environ["COMFYUI_PATH"])
    WALK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        make_base(base)
        with Server(Path(sys.executable), comfyui, base, log=base / "server.log") as server, sync_playwright() as play:
            walk(open_frontend(play, server.url, SIZE))


if __name__ == "__main__":
    main()
