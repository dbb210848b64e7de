"""Take screenshots in the real frontend: every node for its help page, every workflow for the docs and its card.

``COMFYUI_PATH=... python -m devtools.generate.screenshots`` writes ``web/docs/images/<node id>.png``, the whole graphs
``docs/images/<stem>.webp`` and the cards of the template browser ``workflows/<stem>.jpg``. Empty placeholders stand for
the files that the workflows name, so that none is marked as missing; no image is generated.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from devtools.base import make_base
from devtools.server import Server
from pcm_core.profiles import profile_from_name

from .cards import NODES_ON_CARD, draw_card
from .frontend import open_frontend, palette, picture_of
from .host_nodes import ROOT
from .workflow_builder import PACK
from .workflow_files import SDXL_SMALL, all_models
from .workflows import FOLDER

IMAGES = ROOT / "web" / "docs" / "images"
GRAPHS = ROOT / "docs" / "images"
SIZE = (2560, 1600)  # large, because the canvas omits text when zoomed far out
WIDTH = 1280  # of the screenshot of a whole graph
LARGEST_ON_CARD = 6.0
# Only the canvas and the HTML widgets on it.
STYLE = """body * { visibility: hidden !important }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important }"""
# Show the nodes, or only those of a pack, as large as fits into a size, or with "cut" into its width; returns the
# size of the screenshot.
FIT = """([pack, margin, largest, wide, high, cut]) => {
    const nodes = window.app.graph._nodes.filter(n => !pack || n.properties.cnr_id === pack);
    const view = window.app.canvas.ds;
    const left = Math.min(...nodes.map(n => n.pos[0])) - margin;
    const top = Math.min(...nodes.map(n => n.pos[1])) - margin - 30;
    const width = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + margin - left;
    const height = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + margin - top;
    view.scale = Math.min(wide / width, cut ? largest : high / height, largest);
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
# Values that show more than the default.
SHOWN = {"PCMLoraLoader": {"lora_name": SDXL_SMALL.name}, "PCMSettings": {"file_name": SDXL_SMALL.name}}


def stand_in_files(base: Path) -> None:
    """Create empty files with the names of the released ones, and a grey image."""
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


def fitted(page: Page, margin: int, largest: float = 10) -> Image.Image:
    """The nodes, filling ``SIZE`` in one direction unless that enlarges them more than ``largest`` times."""
    return _shown(page, ["", margin, largest, *SIZE, False], SIZE)


def on_card(page: Page) -> Image.Image:
    """The pack's nodes, filling the width of a card; tall ones are cut off."""
    return _shown(page, [PACK, 30, LARGEST_ON_CARD, *NODES_ON_CARD, True], NODES_ON_CARD)


def _shown(page: Page, fit: list[Any], size: tuple[int, int]) -> Image.Image:
    page.wait_for_timeout(1000)
    width, height = page.evaluate(FIT, fit)
    page.wait_for_timeout(1000)
    return picture_of(page, (0, 0, min(width, size[0]), min(height, size[1])))


def photograph_node(page: Page, name: str) -> Path:
    page.evaluate(ONE_NODE, [name, SHOWN.get(name, {})])
    path = IMAGES / f"{name}.png"
    palette(fitted(page, 24, 1.5)).save(path, optimize=True)
    return path


def photograph_workflow(page: Page, workflow: Path) -> tuple[Path, Path]:
    """The whole graph, and the card with our nodes on it."""
    page.evaluate("workflow => window.app.loadGraphData(workflow)", json.loads(workflow.read_text("utf-8")))
    whole = fitted(page, 40)
    whole = whole.resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)
    graph = GRAPHS / f"{workflow.stem.replace(' ', '-')}.webp"
    whole.save(graph, quality=80, method=6)
    card = workflow.with_suffix(".jpg")
    draw_card(workflow.stem, steps_of(workflow), on_card(page)).save(card, quality=85, optimize=True)
    return graph, card


def steps_of(workflow: Path) -> int:
    """The step count of the first few-step file of a workflow; 0 if it names none."""
    nodes = json.loads(workflow.read_text("utf-8"))["nodes"]
    names = [model["name"] for node in nodes for model in node["properties"].get("models", [])]
    profiles = [profile for profile in map(profile_from_name, names) if profile is not None]
    return profiles[0].steps if profiles else 0


def main() -> None:
    comfyui = Path(os.environ["COMFYUI_PATH"])
    for folder in (IMAGES, GRAPHS):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        make_base(base)
        stand_in_files(base)
        with Server(Path(sys.executable), comfyui, base, log=base / "server.log") as server, sync_playwright() as play:
            page = open_frontend(play, server.url, SIZE)
            page.add_style_tag(content=STYLE)
            for name in our_nodes(server.url):
                print(photograph_node(page, name))
            for workflow in sorted(FOLDER.glob("*.json")):
                print(*photograph_workflow(page, workflow))


if __name__ == "__main__":
    main()
