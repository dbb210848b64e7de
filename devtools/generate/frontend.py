"""The real frontend in headless Chromium, for the screenshot scripts."""

from __future__ import annotations

import io
import sys
from typing import Any

from PIL import Image
from playwright.sync_api import Page

from devtools.browser import READY, find_chromium


def open_frontend(playwright: Any, url: str, size: tuple[int, int], scale: float = 1) -> Page:
    """A page of ``size`` CSS pixels, each ``scale`` screenshot pixels wide, with the frontend ready."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("No Chromium found; install it or set CHROMIUM to its path.")
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, device_scale_factor=scale)
    page.goto(url)
    page.wait_for_function(READY, timeout=120_000)
    page.evaluate("() => { window.app.canvas.show_info = false }")  # the frame rate in a corner
    return page


def picture_of(page: Page, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """A screenshot of the page, or of a box (left, top, width, height) in CSS pixels."""
    if box is None:
        shot = page.screenshot()
    else:
        shot = page.screenshot(clip={"x": box[0], "y": box[1], "width": box[2], "height": box[3]})
    return Image.open(io.BytesIO(shot)).convert("RGB")


def palette(picture: Image.Image, colours: int = 128) -> Image.Image:
    """A screenshot reduced to few colours without dithering, for small and sharp PNG files."""
    return picture.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
