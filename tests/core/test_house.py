"""The rules of the house that a reader relies on: sizes, who may import what, plain source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = sorted(path for room in ("pcm_core", "nodes") for path in (ROOT / room).rglob("*.py"))
COMMANDS = sorted(path for room in ("scripts", "devtools", "demo") for path in (ROOT / room).rglob("*.py"))
HOST = ROOT / "nodes" / "host"
# Of ComfyUI: what only nodes/host may import. comfy_api declares nodes, comfy_execution is asked by nodes/host too.
COMFYUI = {"comfy", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "server", "execution", "nodes"}
LIBRARIES = {"torch", "safetensors", "einops", "numpy"}
DIFFUSERS = {"diffusers_scheduler.py", "denoiser.py"}  # imported by those who have it


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything a module imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions except schemas, which are tables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "define_schema":
            yield node


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of lines of a function without its docstring."""
    total = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        total -= (first.end_lineno or 0) - first.lineno + 1
    return total


@pytest.mark.parametrize("path", MODULES + COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_its_functions_are(path: Path):
    text = path.read_text("utf-8")
    assert text.isascii(), "source is ASCII"
    assert len(text.splitlines()) <= 350
    long = [f"{node.name}: {lines(node)} lines" for node in functions(ast.parse(text)) if lines(node) > 40]
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_host_room_imports_comfyui(path: Path):
    found = set(imported(path))
    if HOST not in path.parents:
        assert not found & COMFYUI
    if ROOT / "pcm_core" in path.parents:
        foreign = found - set(sys.stdlib_module_names) - LIBRARIES
        assert foreign <= ({"diffusers"} if path.name in DIFFUSERS else set())


def test_relative_imports_only():
    for path in MODULES:
        assert not set(imported(path)) & {"pcm_core", "phased_consistency"}, path
