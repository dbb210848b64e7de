"""The pack as the Comfy Registry publishes it: what is in the archive, what its page says, what other people's checkers
say about it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from devtools import host

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDED = ("__init__.py", "nodes/sampler.py", "pcm_core/profiles/methods.json", "web/docs/PCMSampler.md",
          "web/docs/images/PCMSampler.png", "locales/zh/nodeDefs.json", "workflows/SDXL text to image.jpg",
          "subgraphs/PCM text to image.json", "pyproject.toml", "LICENSE", "README.md")  # fmt: skip
# What talks to others, starts programs or installs, the formats that run code when they are read, and the ways around
# a list such as this one.
BARRED = {"asyncio", "builtins", "code", "codeop", "ctypes", "ensurepip", "ftplib", "http", "imaplib", "importlib",
          "marshal", "multiprocessing", "pickle", "poplib", "pty", "runpy", "shelve", "smtplib", "socket",
          "socketserver", "ssl", "subprocess", "telnetlib", "urllib", "venv", "webbrowser", "xmlrpc",
          "zipimport"}  # fmt: skip
RUNS_CODE = re.compile(
    r"eval|exec|compile|__import__|(importlib\.)?import_module|os\.(system|popen|exec\w*|spawn\w*|startfile)|"
    r"torch\.(load|jit\.load|hub\..*|package\..*|ops\.load_library|utils\.cpp_extension\..*)|(np|numpy)\.load"
)
OTHERS = {"torch", "safetensors", "einops", "numpy", "PIL", "typing_extensions"}
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "latent_preview", "nodes", "server"}
# What comfy-test's linter may say. Optional mixed precision of the trainer, on the device of its input and off unless
# asked for, and the memory plan that runs the same; the rule is about sampling code, which must leave the dtype to the
# host.
KNOWN = [("pcm_core/distill/loop.py", "torch.amp.autocast"), ("pcm_core/distill/memory.py", "torch.amp.autocast")]


@pytest.fixture(scope="module")
def comfyui() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set")
    return Path(path).resolve()


def git(*arguments: str, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what goes into the archive: the tracked files that .comfyignore leaves."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("install") / "custom_nodes" / "phased-consistency"
    left_out = set(git("ls-files", "-z", "-c", "-i", "--exclude-from=.comfyignore").split("\0"))
    for name in sorted(set(git("ls-files", "-z").split("\0")) - left_out - {""}):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def sources(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder).as_posix(), ast.parse(path.read_text("utf-8"))


def test_the_archive_has_what_people_need_and_nothing_of_the_workshop(published: Path) -> None:
    for name in NEEDED:
        assert (published / name).exists(), name
    top = {path.name for path in published.iterdir()}
    assert not top & {"demo", "tests", "benchmarks", "scripts", "docs", "devtools", "dev.py", ".github", ".ci"}
    assert sum(path.stat().st_size for path in published.rglob("*") if path.is_file()) < 4_000_000
    assert not [path for path in published.rglob("*") if path.suffix in (".safetensors", ".pt", ".ckpt", ".bin")]


def test_it_imports_nothing_that_talks_or_installs_and_runs_no_text(published: Path) -> None:
    """The registry's standards, and the promises of SECURITY.md."""
    allowed = (set(sys.stdlib_module_names) - BARRED) | OTHERS | HOST
    for name, tree in sources(published):
        here = allowed | ({"diffusers"} if name == "pcm_core/diffusers_scheduler.py" else set())
        for node in ast.walk(tree):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            assert {module.split(".")[0] for module in modules} <= here, f"{name}:{node.lineno} imports {modules}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert not RUNS_CODE.fullmatch(called), f"{name}:{node.lineno} calls {called}"


def test_the_host_reads_the_page_of_the_registry(comfyui: Path, published: Path) -> None:
    """By the host's own parser, in a process of its own: its package would shadow others."""
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from comfy_config.config_parser import extract_node_configuration\n"
        "print(extract_node_configuration(sys.argv[2]).model_dump_json())\n"
    )
    command = [sys.executable, "-c", script, str(comfyui), str(published)]
    read: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    project, comfy = read["project"], read["tool_comfy"]
    assert project["name"] == comfy["publisher_id"] == "phased-consistency"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"]) and project["license"]
    assert project["supported_os"] == ["OS Independent"] and 20 < len(project["description"]) < 200
    assert project["supported_comfyui_version"] == f">={host.OLDEST}"
    assert all(project["urls"][name].startswith("https://") for name in ("repository", "documentation", "issues"))
    assert comfy["display_name"] == "Phased Consistency"
    banner = re.search(r'^Banner = "(.+)"', (published / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert banner, "the host's parser leaves it out"
    for address, shape in ((comfy["icon"], (400, 400)), (banner[1], (2100, 900))):
        assert Image.open(ROOT / address.split("/main/")[1]).size == shape, "square, and 21:9"


def test_the_workflows_of_github_run_what_the_developers_page_says() -> None:
    """Text, not YAML: no parser of it is among our requirements."""
    ci, publish = ((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8") for name in ("ci", "publish"))
    assert "bash .ci/run" in ci and "python dev.py test" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert "Comfy-Org/publish-node-action@v1" in publish and "paths: [pyproject.toml]" in publish
    assert "github.repository_owner ==" in publish and "secrets.REGISTRY_ACCESS_TOKEN" in publish
    for text in (ci, publish):
        assert all(re.search(r"@v\d", line) for line in text.splitlines() if "uses:" in line), "pin the actions"


def test_comfy_test_finds_nothing_but_what_is_known(published: Path) -> None:
    """Its linter: files that Windows can print, nothing that goes around the host's devices and dtypes."""
    command = [Path(sys.executable).parent / "comfy-test", "lint", "--json", str(published)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    results = json.loads(done.stdout)["results"]
    assert results["javascript"]["passed"]
    details: str = results["syntax"]["details"] or ""
    found = re.findall(r"^(\S+\.py):\n((?:  Line .+\n?)+)", details, re.MULTILINE)
    what = {(name, said) for name, lines in found for said in re.findall(r"Line \d+: (\S+)", lines)}
    assert what == set(KNOWN), details


@pytest.mark.long
@pytest.mark.timeout(900)
def test_comfy_import_guard_finds_every_symbol_and_call_in_every_supported_host(
    published: Path, tmp_path: Path
) -> None:
    """It reads ComfyUI from git, so the pinned hosts become the commits of a repository, tagged as ComfyUI tags."""
    clone = tmp_path / "cache" / "ComfyUI"
    clone.mkdir(parents=True)
    git("init", "-q", cwd=clone)
    own = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for version in host.SDISTS:
        source = host.pinned_host(version)
        for old in clone.iterdir():
            if old.name != ".git":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        without = shutil.ignore_patterns("__pycache__", "models", "input", "output", "custom_nodes", "web")
        shutil.copytree(source, clone, ignore=without, dirs_exist_ok=True)
        git("add", "--all", "--force", cwd=clone)
        git(*own, "commit", "-qm", version, cwd=clone)
        git("tag", f"v{version}", cwd=clone)
    git("update-ref", "refs/remotes/origin/master", "HEAD", cwd=clone)
    guard = [str(Path(sys.executable).parent / "comfy-import-guard")]
    options = ["--offline", "--no-update", "--cache-dir", str(clone.parent), "--quiet"]
    for version in host.SDISTS:
        check = [*guard, "check", *options, "--strict", "--comfy-dir", str(published.parent.parent)]
        done = subprocess.run([*check, "--target", f"v{version}"], check=False, capture_output=True, text=True)
        assert done.returncode == 0 and "1 safe" in done.stdout, done.stdout + done.stderr
    derive = [*guard, "derive-requires", *options, str(published)]
    derived = subprocess.run(derive, check=True, capture_output=True, text=True).stdout
    assert f'requires-comfyui = ">={host.OLDEST}"' in derived, derived
