"""Find Chromium for the browser tests, install it on Debian or Ubuntu if needed, and tell when a page is ready."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .errors import DevError, last_line
from .paths import LOGS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
# The nodes are registered and the frontend has loaded its first workflow: until then it shows a spinner.
READY = """() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types.PCMSampler
    && window.app.vueAppReady && window.app.extensionManager?.spinner === false)"""
# A message in a corner, by the frontend before 1.58 and since; what is wrong is told by its colour.
TOAST = ".p-toast-message, ol > li[data-state]"
ERROR_TOAST = ".p-toast-message-error, ol > li[data-state]:has(.text-destructive)"
# Wait two frames: then the canvas has been drawn and the mouse finds the nodes in place.
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def find_chromium() -> str | None:
    """The path of an installed Chromium, Chrome or Edge. The variable CHROMIUM overrides the search."""
    chosen = os.environ.get("CHROMIUM")
    found = [shutil.which(name) for name in ((chosen,) if chosen else NAMES)]
    found += [place for place in PLACES if not chosen and Path(place).exists()]
    return next((path for path in found if path), None)


def ensure_chromium() -> None:
    """Install Chromium with apt-get if that works without questions; else say that the browser tests are skipped.

    Raises:
        DevError: if there is no browser and CI is set, where nobody would notice skipped tests.
    """
    if find_chromium():
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print("Installing Chromium with apt-get for the browser tests")
        apt_get("update")
        apt_get("install", "--yes", "--no-install-recommends", "chromium")
    elif os.environ.get("CI", "").lower() in ("1", "true"):
        raise DevError("The browser tests need Chromium and CI is set; install it, or set CHROMIUM to its path.")
    else:
        print("No Chromium found: the browser tests are skipped. Install Chromium or Chrome, or set CHROMIUM.")


def apt_get(*arguments: str) -> None:
    LOGS.mkdir(exist_ok=True)
    log = LOGS / "apt.log"
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with log.open("ab") as out:
        code = subprocess.run(
            ["apt-get", *arguments], stdout=out, stderr=subprocess.STDOUT, env=quiet, check=False
        ).returncode
    if code:
        raise DevError(f"apt-get {arguments[0]} failed: {last_line(log, 'E:')} (log: {log}); install it yourself.")
