"""Photograph the pack in the real frontend: every node for its help page, every workflow for the template browser.

``COMFYUI_PATH=... python -m scripts.make_screenshots`` writes ``web/docs/images/<node id>.png`` and
``workflows/<stem>.jpg``. The files that the workflows name are empty stand-ins here, so that nothing is marked as
missing; no picture is generated.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from devtools.base import make_base
from devtools.server import Server

from .frontend import open_frontend, palette, picture_of
from .host_nodes import ROOT
from .make_workflows import FOLDER
from .workflow_files import SDXL_SMALL, all_models

IMAGES = ROOT / "web" / "docs" / "images"
SIZE = (2560, 1600)  # large, because the canvas leaves text out when zoomed far out
WIDTH = 1280
MARGIN = 40
# Only the canvas and the widgets that lie on it as HTML.
STYLE = """body * { visibility: hidden !important }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important }"""
FIT = """([margin, largest]) => {
    const nodes = window.app.graph._nodes, view = window.app.canvas.ds;
    const left = Math.min(...nodes.map(n => n.pos[0])) - margin;
    const top = Math.min(...nodes.map(n => n.pos[1])) - margin - 30;
    const width = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + margin - left;
    const height = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + margin - top;
    view.scale = Math.min(innerWidth / width, innerHeight / height, largest);
    view.offset = [-left, -top];
    window.app.canvas.setDirty(true, true);
    return [width * view.scale, height * view.scale];
}"""
ONE_NODE = """([id, values]) => {
    for (const old of [...window.app.graph._nodes]) window.app.graph.remove(old);  // clear() would give their ids,
    const node = window.LiteGraph.createNode(id);  // and with them their widgets' values, to the next node
    window.app.graph.add(node);
    node.pos = [0, 0];
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
    node.setSize([Math.max(node.size[0], 340), node.size[1]]);
}"""
SHOWN = {"PCMLoraLoader": {"lora_name": SDXL_SMALL.name}}  # values that tell more than the default


def stand_in_files(base: Path) -> None:
    """Empty files under the names of the released ones, and a grey picture."""
    for model in all_models():
        path = base / "models" / model.directory / model.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Image.new("RGB", (512, 512), "#5a6270").save(base / "input" / "example.png")
    (base / "input" / "my_pictures").mkdir(exist_ok=True)


def our_nodes(url: str) -> list[str]:
    """Ids of the pack's nodes, as the running host lists them."""
    with urllib.request.urlopen(f"{url}/object_info") as answer:
        infos = json.loads(answer.read())
    return sorted(name for name, info in infos.items() if info["python_module"] == "custom_nodes.phased-consistency")


def fitted(page: Page, margin: int, largest: float) -> Image.Image:
    """The whole graph, filling the window unless that magnifies it more than ``largest`` times."""
    page.wait_for_timeout(1000)
    width, height = page.evaluate(FIT, [margin, largest])
    page.wait_for_timeout(1000)
    return picture_of(page, (0, 0, min(width, SIZE[0]), min(height, SIZE[1])))


def photograph_node(page: Page, name: str) -> Path:
    page.evaluate(ONE_NODE, [name, SHOWN.get(name, {})])
    path = IMAGES / f"{name}.png"
    palette(fitted(page, 24, 1.5)).save(path, optimize=True)
    return path


def photograph_workflow(page: Page, workflow: Path) -> Path:
    page.evaluate("workflow => window.app.loadGraphData(workflow)", json.loads(workflow.read_text("utf-8")))
    picture = fitted(page, MARGIN, 10)
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    path = workflow.with_suffix(".jpg")
    picture.save(path, quality=82, optimize=True)
    return path


def main() -> None:
    comfyui = Path(os.environ["COMFYUI_PATH"])
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_base(base)
        stand_in_files(base)
        with Server(Path(sys.executable), comfyui, base, log=base / "server.log") as server, sync_playwright() as play:
            page = open_frontend(play, server.url, SIZE)
            page.add_style_tag(content=STYLE)
            for name in our_nodes(server.url):
                print(photograph_node(page, name))
            for workflow in sorted(FOLDER.glob("*.json")):
                print(photograph_workflow(page, workflow))


if __name__ == "__main__":
    main()
