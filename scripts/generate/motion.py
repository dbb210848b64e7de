"""AnimateDiff's motion modules, put on a model by ComfyUI-AnimateDiff-Evolved: the host itself cannot load them."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

_LOADER, _KIND = "ADE_AnimateDiffLoaderGen1", "animatediff_models"
_LINEAR, _TIMESTEPS = "sqrt_linear (AnimateDiff)", 1000


def with_motion(model: Any, motion: Path, comfyui: Path) -> Any:
    """The model with a motion module, as the node AnimateDiff Loader (Gen 1) puts it on with its defaults.

    For AnimateLCM's modules the node selects a table of 50 sigmas, with which no step can be planned. They get
    AnimateDiff's own betas, which are also those of AnimateLCM's authors (inference-t2v.yaml).
    """
    nodes, folders = importlib.import_module("nodes"), importlib.import_module("folder_paths")
    if _LOADER not in nodes.NODE_CLASS_MAPPINGS:
        found = sorted((comfyui / "custom_nodes").glob("*[Aa]nimate[Dd]iff-[Ee]volved*"))
        if not found or not asyncio.run(nodes.load_custom_node(str(found[0]), module_parent="custom_nodes")):
            sys.exit("--motion needs ComfyUI-AnimateDiff-Evolved in ComfyUI's custom_nodes. Install it there.")
    folders.add_model_folder_path(_KIND, str(motion.parent))
    loader: Any = nodes.NODE_CLASS_MAPPINGS[_LOADER]
    load: Any = getattr(loader(), loader.FUNCTION)
    found = load(model=model, model_name=motion.name, beta_schedule="autoselect")[0]
    if len(found.get_model_object("model_sampling").sigmas) < _TIMESTEPS:
        found = load(model=model, model_name=motion.name, beta_schedule=_LINEAR)[0]
    return found
