"""The nodes of a ComfyUI checkout with the pack in it, as ``/object_info`` describes them, without a server.

COMFYUI_PATH names the checkout.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
Info = dict[str, Any]


def describe(node: Any) -> Info:
    """Inputs, outputs and names of a node class of either API version."""
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {
        "input": inputs,
        "input_order": {kind: list(names) for kind, names in inputs.items()},
        "output": list(node.RETURN_TYPES),
        "output_name": list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)),
        "category": node.CATEGORY,
    }


def describe_all(nodes: dict[str, Any]) -> dict[str, Info]:
    """``describe`` by node id, with the displayed title and whether the node is ours."""
    titles = sys.modules["nodes"].NODE_DISPLAY_NAME_MAPPINGS
    return {
        name: {**describe(node), "display_name": titles.get(name, name), "ours": is_ours(node)}
        for name, node in nodes.items()
    }


def is_ours(node: Any) -> bool:
    """Whether this pack declares the node."""
    module = sys.modules[node.__module__]
    return ROOT / "nodes" in Path(module.__file__ or "/").resolve().parents


def load() -> dict[str, Any]:
    """Node classes by id: the host's core and extra nodes, and ours."""
    nodes = boot()
    loading = nodes.load_custom_node(str(ROOT), set(nodes.NODE_CLASS_MAPPINGS), module_parent="custom_nodes")
    if not asyncio.run(loading):
        sys.exit("The pack did not load; see the messages above.")
    return nodes.NODE_CLASS_MAPPINGS


def boot() -> Any:
    """The host's ``nodes`` module with its core and extra nodes, before any pack is loaded."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        sys.exit("COMFYUI_PATH is not set. Point it at a ComfyUI checkout, for instance one that dev.py made in .host.")
    here = (ROOT, Path(comfyui).resolve())
    sys.path[:] = [comfyui, *(entry for entry in sys.path if Path(entry).resolve() not in here), str(ROOT)]
    importlib.import_module("comfy.cli_args").args.cpu = True  # before comfy.model_management
    importlib.import_module("utils.extra_config")  # before nodes, which puts <host>/comfy and its utils.py first
    nodes = importlib.import_module("nodes")
    asyncio.run(_load_extras(nodes, Path(comfyui)))
    return nodes


async def _load_extras(nodes: Any, comfyui: Path) -> None:
    await nodes.init_public_apis()
    for path in sorted((comfyui / "comfy_extras").glob("nodes_*.py")):
        if path.stem == "nodes_replacements":  # declares no nodes and needs a running server
            continue
        await nodes.load_custom_node(str(path), module_parent="comfy_extras")
