"""What the pack imports when the host starts: its five dependencies and what the host itself is made of, no more."""

from __future__ import annotations

import asyncio
import builtins
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parent.parent.parent
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview"}
HEAVY = {"matplotlib", "scipy", "transformers", "diffusers"}


def start_up(pack: Path) -> set[str]:
    """Top-level names that any module of a fresh copy of the pack asks for, loaded already or not."""
    for name in ("nodes", "pcm_core"):
        shutil.copytree(PACK / name, pack / name)
    shutil.copy(PACK / "__init__.py", pack)
    asked: set[str] = set()
    real = builtins.__import__

    def watch(name: str, module: Any = None, scope: Any = None, members: Any = (), level: int = 0) -> Any:
        if level == 0 and module is not None and str(module.get("__name__")).split(".")[0] == "fresh_pack":
            asked.add(name.split(".")[0])
        return real(name, module, scope, members, level)

    spec = importlib.util.spec_from_file_location(
        "fresh_pack", pack / "__init__.py", submodule_search_locations=[str(pack)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["fresh_pack"] = fresh = importlib.util.module_from_spec(spec)
    builtins.__import__ = watch
    try:
        spec.loader.exec_module(fresh)
        extension = asyncio.run(fresh.comfy_entrypoint())
        asyncio.run(extension.on_load())
        assert len(asyncio.run(extension.get_node_list())) >= 10
    finally:
        builtins.__import__ = real
        for name in [name for name in sys.modules if name.split(".")[0] == "fresh_pack"]:
            del sys.modules[name]
    return asked - set(sys.stdlib_module_names)


def test_start_up_imports_its_dependencies_and_the_host(host: Any, tmp_path: Path) -> None:
    asked = start_up(tmp_path / "pack")
    assert not asked & HEAVY
    assert asked == HOST | {"torch", "safetensors", "numpy", "PIL"}  # einops comes with the trainer
