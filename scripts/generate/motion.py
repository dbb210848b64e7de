"""AnimateDiff's motion modules, put on a model by ComfyUI-AnimateDiff-Evolved: the host itself cannot load them."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

_LOADER, _KIND = "ADE_AnimateDiffLoaderGen1", "animatediff_models"


def with_motion(model: Any, motion: Path, comfyui: Path) -> Any:
    """The model with a motion module, as the node AnimateDiff Loader (Gen 1) puts it on with its defaults."""
    nodes, folders = importlib.import_module("nodes"), importlib.import_module("folder_paths")
    if _LOADER not in nodes.NODE_CLASS_MAPPINGS:
        found = sorted((comfyui / "custom_nodes").glob("*[Aa]nimate[Dd]iff-[Ee]volved*"))
        if not found or not asyncio.run(nodes.load_custom_node(str(found[0]), module_parent="custom_nodes")):
            sys.exit("--motion needs ComfyUI-AnimateDiff-Evolved in ComfyUI's custom_nodes. Install it there.")
    folders.add_model_folder_path(_KIND, str(motion.parent))
    loader: Any = nodes.NODE_CLASS_MAPPINGS[_LOADER]
    load: Any = getattr(loader(), loader.FUNCTION)
    return load(model=model, model_name=motion.name, beta_schedule="autoselect")[0]
