"""The frontend of the session's server, in headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from devtools.browser import READY, find_chromium
from devtools.server import Server

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


@pytest.fixture(scope="module")
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The frontend, ready for work; one page for all tests of a module, each of which loads its own workflow."""
    from playwright.sync_api import expect

    opened = browser.new_page(viewport={"width": 1600, "height": 900})
    opened.set_default_timeout(60_000)  # a busy machine may take its time
    opened.set_default_navigation_timeout(120_000)
    expect.set_options(timeout=60_000)
    opened.goto(server.url)
    opened.wait_for_function(READY)
    yield opened
    opened.close()
