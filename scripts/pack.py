"""The pack as one importable package, ``phased_consistency``, independent of the name of its folder in ComfyUI.

ComfyUI imports a custom node folder under a name made of its path. A process that also imports ``pcm_core`` directly
would have it twice: two ``PCMError`` classes, two caches. After ``install`` every module exists once:
``phased_consistency.nodes.sampler`` is the module that ComfyUI imported, and ``pcm_core`` is the pack's.
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
# The module name that ComfyUI gives the folder (nodes.py, load_custom_node).
HOST_NAME = str(ROOT).replace(".", "_x_")


class _Alias(Loader):
    """Loads a module under another name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # importlib has set the alias's spec


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
    """Make ``phased_consistency`` importable; needs ``pcm_core`` to be importable. A second call does nothing."""
    if not any(isinstance(finder, _OnePack) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OnePack())
