"""One real ComfyUI with ours and every pack of ``--packs DIR`` in it, and the record of what was tried.

A pack's Python requirements can lie in ``DIR/site-packages`` (``pip install --target``); they are found there first.
The run leaves ``.logs/neighbours.json``, from which ``python -m devtools.neighbours_page`` writes the page.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

from packs import PACKS, Pack, find_packs  # noqa: E402  needs the path above

if TYPE_CHECKING:
    from graphs import Bench

# Pictures and films of a pack's own gallery, and its history.
LEFT_OUT = shutil.ignore_patterns(".git", "example_workflows", "*.gif", "*.mp4", "__pycache__")


@dataclass(frozen=True)
class Neighbours:
    """The running server and the packs in it."""

    server: Any
    packs: dict[str, Pack]
    nodes: dict[str, Any]  # the host's object_info

    def log(self) -> str:
        from devtools.errors import COLOUR_CODE

        return COLOUR_CODE.sub("", self.server.log.read_text("utf-8", errors="replace"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pack(name): runs a graph with that pack")


@pytest.fixture(scope="session")
def neighbours(request: pytest.FixtureRequest, comfyui: Path, tmp_path_factory: Any) -> Iterator[Neighbours]:
    """A server with copies of all packs that were found: they may write into their own folders."""
    from graphs import add_files

    from demo.client import Client
    from devtools.base import link_folder, make_base
    from devtools.server import Server

    given = request.config.getoption("--packs")
    if not given:
        pytest.skip("--packs DIR is not given: these tests need other packs")
    folder = Path(given).expanduser().resolve()
    packs = find_packs(folder)
    if not packs:
        pytest.fail(f"{folder} holds none of {', '.join(PACKS)}.")
    base = tmp_path_factory.mktemp("neighbours")
    make_base(base)
    add_files(base)
    link_folder(base / "custom_nodes" / "stand_ins", HERE / "stand_ins")
    for pack in packs.values():
        shutil.copytree(pack.folder, base / "custom_nodes" / pack.folder.name, ignore=LEFT_OUT)
    with pytest.MonkeyPatch.context() as patch:
        if (folder / "site-packages").is_dir():
            patch.setenv("PYTHONPATH", str(folder / "site-packages"), prepend=os.pathsep)
        with Server(Path(sys.executable), comfyui, base) as server:
            with Client(server.url) as client:
                nodes = json.loads(client.get("/object_info"))
            yield Neighbours(server, packs, nodes)


@pytest.fixture
def bench(request: pytest.FixtureRequest, neighbours: Neighbours) -> Iterator[Bench]:
    """What a test runs its graphs on; skips by name if its pack is absent."""
    from graphs import Bench

    from demo.client import Client

    (name,) = next(request.node.iter_markers("pack")).args
    if name not in neighbours.packs:
        pytest.skip(f"{name} is not among the given packs")
    assert PACKS[name] in neighbours.nodes, f"ComfyUI could not import {name}: see {neighbours.server.log}"
    with Client(neighbours.server.url) as client:
        yield Bench(client, neighbours.server.base, neighbours.log)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """Keep what became of each graph: passed, failed with its first line, or skipped and why."""
    outcome: Any = yield
    report = outcome.get_result()
    mark = next(item.iter_markers("pack"), None)
    if mark is None or not (report.when == "call" or report.outcome != "passed"):
        return
    text = report.outcome
    if report.outcome == "skipped":
        text = f"not tried: {report.longrepr[2].removeprefix('Skipped: ')}"
    elif report.outcome == "failed":
        text = f"failed: {str(call.excinfo.value).splitlines()[0][:160]}"
    doc = (getattr(item.obj, "__doc__", None) or item.name).strip().splitlines()[0]  # pyright: ignore
    results(item.config)[item.nodeid] = {"pack": mark.args[0], "graph": doc, "result": text}


def results(config: pytest.Config) -> dict[str, dict[str, str]]:
    """The results of this session by test."""
    return config.stash.setdefault(_RESULTS, {})


_RESULTS: pytest.StashKey[dict[str, dict[str, str]]] = pytest.StashKey()


def pytest_sessionfinish(session: pytest.Session) -> None:
    from devtools.paths import LOGS, commit

    given = session.config.getoption("--packs")
    if not given or not (found := results(session.config)):
        return
    packs = find_packs(Path(given).expanduser().resolve())
    page = {
        "day": date.today().isoformat(),
        "ours": commit(),
        "comfyui": Path(os.environ.get("COMFYUI_PATH", "")).name,
        "packs": {name: packs[name].commit if name in packs else "absent" for name in PACKS},
        "results": list(found.values()),
    }
    LOGS.mkdir(exist_ok=True)
    (LOGS / "neighbours.json").write_text(json.dumps(page, indent=1), encoding="utf-8")


Record = Callable[[str], None]
