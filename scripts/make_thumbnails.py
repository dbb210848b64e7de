"""Photograph every shipped workflow in the real frontend, for the template browser: ``workflows/<stem>.jpg``.

``COMFYUI_PATH=... python -m scripts.make_thumbnails``. The files that the workflows name are empty stand-ins here, so
that nothing is marked as missing; no picture is generated.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from devtools.base import make_base
from devtools.browser import find_chromium
from devtools.server import Server

from .make_workflows import FOLDER
from .workflow_files import all_models

SIZE = (2560, 1600)  # large, because the canvas leaves text out when zoomed far out
WIDTH = 1280
MARGIN = 40
# Only the canvas and the widgets that lie on it as HTML.
STYLE = """body * { visibility: hidden !important }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important }"""
FIT = """margin => {
    const nodes = window.app.graph._nodes, view = window.app.canvas.ds;
    const left = Math.min(...nodes.map(n => n.pos[0])) - margin;
    const top = Math.min(...nodes.map(n => n.pos[1])) - margin - 30;
    const width = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + margin - left;
    const height = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + margin - top;
    view.scale = Math.min(innerWidth / width, innerHeight / height);
    view.offset = [-left, -top];
    window.app.canvas.setDirty(true, true);
    return [width * view.scale, height * view.scale];
}"""


def stand_in_files(base: Path) -> None:
    """Empty files under the names of the released ones, and a grey picture."""
    for model in all_models():
        path = base / "models" / model.directory / model.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Image.new("RGB", (512, 512), "#5a6270").save(base / "input" / "example.png")
    (base / "input" / "my_pictures").mkdir(exist_ok=True)


def open_frontend(playwright: Any, url: str) -> Page:
    chromium = find_chromium()
    if chromium is None:
        sys.exit("No Chromium found; install it or set CHROMIUM to its path.")
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
    page.goto(url)
    ready = "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types.PCMSampler)"
    page.wait_for_function(ready, timeout=120_000)
    page.evaluate("() => { window.app.canvas.show_info = false }")
    page.add_style_tag(content=STYLE)
    return page


def photograph(page: Page, workflow: Path) -> None:
    page.evaluate("workflow => window.app.loadGraphData(workflow)", json.loads(workflow.read_text("utf-8")))
    page.wait_for_timeout(1000)
    width, height = page.evaluate(FIT, MARGIN)
    page.wait_for_timeout(1000)
    clip = {"x": 0, "y": 0, "width": min(width, SIZE[0]), "height": min(height, SIZE[1])}
    picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.save(workflow.with_suffix(".jpg"), quality=82, optimize=True)


def main() -> None:
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_base(base)
        stand_in_files(base)
        with Server(Path(sys.executable), comfyui, base, log=base / "server.log") as server, sync_playwright() as play:
            page = open_frontend(play, server.url)
            for workflow in sorted(FOLDER.glob("*.json")):
                photograph(page, workflow)
                print(workflow.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
