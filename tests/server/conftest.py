"""One real ComfyUI server for the session, with both packs, the demo weights and some files nobody should load."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from demo.client import Client
from devtools.base import make_base
from devtools.browser import find_chromium
from devtools.server import Server

HERE = Path(__file__).resolve().parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents and "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set: server tests need a ComfyUI checkout")
    return Path(path).resolve()


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("base")
    make_base(base)
    bad_loras(base / "models" / "loras")
    with Server(Path(sys.executable), comfyui, base) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as connected:
        yield connected


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. Not for the session: its event loop would be in the way of tests that run one themselves."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("No Chromium found; install it or set CHROMIUM to its path.")
        pytest.skip("no Chromium found; install it or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The frontend, ready for work; one page for all tests of a module, each of which loads its own workflow."""
    opened = browser.new_page(viewport={"width": 1600, "height": 900})
    opened.goto(server.url)
    opened.wait_for_function(
        "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types.PCMSampler)", timeout=60_000
    )
    yield opened
    opened.close()


def bad_loras(folder: Path) -> None:
    """A file cut off in the middle, one that is no safetensors at all, and a LoRA of Stable Diffusion 1.5."""
    whole = (folder / "demo_pcm_4phase.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "not_safetensors.safetensors").write_bytes(b"<html>Not found</html>")
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{module}.lora_down.weight": torch.ones(4, 320), f"{module}.lora_up.weight": torch.ones(320, 4)}
    save_file(tensors, folder / "pcm_sd15_smallcfg_4step_converted.safetensors")
