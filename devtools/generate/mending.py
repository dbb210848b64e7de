"""Film a wrong workflow being mended in the real frontend, and photograph the panel, for README.md.

``COMFYUI_PATH=... python -m devtools.generate.mending`` writes ``workflow-check.webp`` (the panel) and ``mending.webp``
(animated) into ``docs/images/check``. The workflow is the quick start with the stock loader and sampler at 20 steps and
cfg 7; every click is a click of the mouse.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from devtools.base import WORKFLOW, make_base
from devtools.server import Server

from .frontend import open_frontend, picture_of
from .host_nodes import ROOT

IMAGES = ROOT / "docs" / "images" / "check"
SIZE = (1280, 720)
SHOWN = (960, 540)  # of the film
LORA, SAMPLER = 2, 6
DONE = "() => window.app.graph._nodes.find(node => node.type === 'SaveImage')?.imgs?.length > 0"


def wrong_workflow() -> dict[str, Any]:
    """The quick start with LoraLoaderModelOnly and KSampler, set as one might for the model without its LoRA."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] not in ("PreviewAny", "MarkdownNote")]
    ids = {node["id"] for node in workflow["nodes"]}
    workflow["links"] = [link for link in workflow["links"] if {link[1], link[3]} <= ids]
    changes = {
        LORA: ("LoraLoaderModelOnly", ["demo_pcm_4phase.safetensors", 1.0]),
        SAMPLER: ("KSampler", [1, "fixed", 20, 7.0, "euler", "simple", 1.0]),
    }
    for node in workflow["nodes"]:
        if node["id"] in changes:
            node["type"], node["widgets_values"] = changes[node["id"]]
            node["outputs"], node["properties"] = node["outputs"][:1], {}
            node["inputs"] = [slot for slot in node["inputs"] if slot.get("link") is not None]
            node.pop("title", None)
    return workflow


def film(page: Page) -> list[tuple[Image.Image, int]]:
    """Frames and how long each is shown, in milliseconds."""
    frames: list[tuple[Image.Image, int]] = []

    def keep(milliseconds: int) -> None:
        page.wait_for_timeout(900)
        frames.append((picture_of(page).resize(SHOWN, Image.Resampling.LANCZOS), milliseconds))

    page.evaluate("workflow => window.app.loadGraphData(workflow)", wrong_workflow())
    tab = page.locator(".phased-consistency-check-tab-button")
    tab.locator(".sidebar-icon-badge").wait_for()
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function(DONE)
    keep(2200)
    tab.click()
    page.locator(".pcm-finding").first.wait_for()
    keep(2600)
    picture_of(page).save(IMAGES / "workflow-check.webp", quality=80, method=6)
    page.get_by_role("button", name="Set these values").hover()
    keep(900)
    page.get_by_role("button", name="Set these values").click()
    page.get_by_text("Sampled as its authors mean it.").wait_for()
    keep(1600)
    before = page.evaluate("() => window.app.graph._nodes.find(node => node.type === 'SaveImage').imgs[0].src")
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function(
        "before => window.app.graph._nodes.find(node => node.type === 'SaveImage').imgs?.[0]?.src !== before",
        arg=before,
    )
    keep(3000)
    return frames


def main() -> None:
    comfyui = Path(os.environ["COMFYUI_PATH"])
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        make_base(base)
        with Server(Path(sys.executable), comfyui, base, log=base / "server.log") as server, sync_playwright() as play:
            (first, _), *rest = frames = film(open_frontend(play, server.url, SIZE))
    first.save(
        IMAGES / "mending.webp", save_all=True, append_images=[image for image, _ in rest], loop=0,
        duration=[milliseconds for _, milliseconds in frames], quality=70, method=6,
    )  # fmt: skip
    print(IMAGES / "mending.webp", IMAGES / "workflow-check.webp")


if __name__ == "__main__":
    main()
