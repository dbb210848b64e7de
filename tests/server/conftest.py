"""The frontend of the session's server, in headless Chromium."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devtools.base import make_base
from devtools.browser import READY, find_chromium
from devtools.paths import FRONTENDS
from devtools.server import Server

RENDERER = "on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


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


@dataclass(frozen=True)
class Look:
    """A ComfyUI, the frontend it serves and the renderer of nodes in it."""

    server: Server
    frontend: str
    renderer: str


def _looks() -> list[Any]:
    """The host's own frontend as it starts; with ``--long`` the newest one too, and both with both renderers."""
    others = [("own", "vue"), ("newest", "canvas"), ("newest", "vue")]
    return [pytest.param(("own", "canvas"), id="own-canvas"),
            *(pytest.param(look, id="-".join(look), marks=pytest.mark.long) for look in others)]  # fmt: skip


@pytest.fixture(scope="module", params=_looks())
def look(request: pytest.FixtureRequest, server: Server, tmp_path_factory: Any) -> Iterator[Look]:
    frontend, renderer = request.param
    if frontend == "own":
        yield Look(server, frontend, renderer)
        return
    base = tmp_path_factory.mktemp("frontend")
    make_base(base)
    folder = FRONTENDS / frontend / "comfyui_frontend_package" / "static"
    assert folder.exists(), f"no frontend in {folder}: run dev.py test once, which installs it"
    with Server(Path(sys.executable), server.host, base, log=base / "server.log", frontend=folder) as other:
        yield Look(other, frontend, renderer)


@pytest.fixture(scope="module")
def page(browser: Any, look: Look) -> Iterator[Any]:
    """The frontend, ready for work; one page for all tests of a module, each of which loads its own workflow."""
    from playwright.sync_api import expect

    opened = browser.new_page(viewport={"width": 1600, "height": 900})
    opened.set_default_timeout(60_000)  # a busy machine may take its time
    opened.set_default_navigation_timeout(120_000)
    expect.set_options(timeout=60_000)
    opened.goto(look.server.url)
    opened.wait_for_function(READY)
    opened.evaluate(RENDERER, look.renderer == "vue")
    yield opened
    opened.evaluate(RENDERER, False)
    opened.close()
