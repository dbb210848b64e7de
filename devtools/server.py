"""Start the real ComfyUI server, wait until it is ready, and always stop it.

It runs on the CPU, which every machine has and where a seed always gives the same image. With PCM_DEVICE=cuda the host
chooses the device.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from .base import PACKS
from .errors import COLOUR_CODE, DevError, last_line
from .paths import LOGS

START_TIMEOUT = 300.0
STARTS = 4  # attempts to start the host on a free port
NEW_PROCESS_GROUP = 0x200  # Windows only, where subprocess has a name for it
BAD_IMPORT = re.compile(r"IMPORT FAILED|Cannot import|Error while calling comfy_entrypoint")
PORT_TAKEN = re.compile(r"already in use|Errno 10048")


def on_cpu() -> bool:
    """Whether the host must not use a GPU."""
    return os.environ.get("PCM_DEVICE", "cpu") == "cpu"


class PortTakenError(DevError):
    """Another process uses the port."""


def free_port() -> int:
    """A loopback port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raise PortTakenError if another process listens on the port."""
    with socket.socket() as probe:
        if os.name != "nt":  # as the host does it: a port in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise PortTakenError(f"Port {port} cannot be used ({error}); choose another with --port.") from error


class Server:
    """The host as a context manager. ``url`` responds between ``__enter__`` and ``__exit__``.

    Without a port a free one is chosen; if another process takes it first, the host starts again on another.

    Raises:
        DevError: from ``__enter__``, if the port is taken, the host exits early, is not ready after five minutes, or
            could not import one of our packs. The message names the log.
    """

    def __init__(
        self,
        python: Path,
        host: Path,
        base: Path,
        *,
        port: int | None = None,
        log: Path | None = None,
        frontend: Path | None = None,
    ):
        self.python, self.host, self.base = python, host, base
        self.frontend = frontend  # the static folder of another frontend than the host's own
        self.any_port = not port
        self.port = port or free_port()
        self.log = log or LOGS / f"comfyui-{time.strftime('%Y%m%d-%H%M%S')}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        for _ in range(STARTS - 1 if self.any_port else 0):
            try:
                return self.start()
            except PortTakenError:
                self.port = free_port()
        return self.start()

    def start(self) -> Server:
        check_port(self.port)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            str(self.python), str(self.host / "main.py"), *(["--cpu"] if on_cpu() else []),
            "--base-directory", str(self.base),
            "--disable-api-nodes", "--database-url", "sqlite:///:memory:",
            "--listen", "127.0.0.1", "--port", str(self.port),
            *(["--front-end-root", str(self.frontend)] if self.frontend else []),
        ]  # fmt: skip
        environment = os.environ | {"PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=os.name != "nt",
                creationflags=NEW_PROCESS_GROUP if os.name == "nt" else 0,
            )
        try:
            self.wait_until_ready()
            self.check_packs()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                line = last_line(self.log, "Error", "error")
                taken = PORT_TAKEN.search(self.log.read_text("utf-8", errors="replace"))
                kind = PortTakenError if taken else DevError
                raise kind(f"ComfyUI ended with exit code {code} while starting: {line} (log: {self.log})")
            if self.answers():
                return
            time.sleep(0.25)
        raise DevError(f"ComfyUI did not answer at {self.url} within {START_TIMEOUT:.0f} s (log: {self.log}).")

    def answers(self) -> bool:
        """Whether our host responds, and not another process that took the port."""
        try:
            with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as answer:
                return str(self.base) in json.load(answer)["system"].get("argv", [str(self.base)])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
            return False

    def check_packs(self) -> None:
        """Read the log for import errors: the host also starts if a pack fails to import."""
        ours = [os.path.join("custom_nodes", name) for name in PACKS]
        for line in COLOUR_CODE.sub("", self.log.read_text("utf-8", errors="replace")).splitlines():
            if BAD_IMPORT.search(line) and any(name in line for name in ours):
                raise DevError(f"ComfyUI could not import our pack: {line.strip()} (log: {self.log})")

    def stop(self) -> None:
        """Send SIGTERM to the whole group, SIGKILL after ten seconds; harmless if it has already exited."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            self.signal_group(process, "SIGTERM")
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.signal_group(process, "SIGKILL")
                process.wait(timeout=10)

    @staticmethod
    def signal_group(process: subprocess.Popen[bytes], name: str) -> None:
        if os.name == "nt":
            process.kill()
        else:
            try:
                os.killpg(process.pid, getattr(signal, name))
            except ProcessLookupError:
                pass
