"""The pack as one importable package, ``phased_consistency``, whatever name ComfyUI gives its folder.

ComfyUI imports a custom node folder under a name made of its path, so ``pcm_core`` would exist twice in a process that
also imports it by itself: two ``PCMError`` classes, two caches. After ``install`` there is one of each module:
``phased_consistency.nodes.sampler`` and ComfyUI's own copy are the same object, and so are ``pcm_core`` and theirs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAME = "phased_consistency"
# The module name ComfyUI makes of the folder (nodes.py, load_custom_node).
HOST_NAME = str(ROOT).replace(".", "_x_")


class _Alias(Loader):
    """Stands for a module that has another name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # importlib has put the alias there


class _OnePack(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == NAME:
            return importlib.util.spec_from_file_location(
                NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
            )
        for package in (NAME, HOST_NAME):
            if fullname.startswith(f"{package}."):
                rest = fullname.removeprefix(f"{package}.")
                name = rest if rest.split(".")[0] == "pcm_core" else f"{NAME}.{rest}"
                return None if name == fullname else ModuleSpec(fullname, _Alias(name))
        return None


def install() -> None:
    """Make ``phased_consistency`` importable; a second call changes nothing. ``pcm_core`` must be importable."""
    if not any(isinstance(finder, _OnePack) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OnePack())
