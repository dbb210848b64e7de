"""From a file or an object of JSON to a graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import PCMError
from .api_json import is_api, read_api
from .graph import Graph
from .shapes import fields, is_list
from .ui_json import read_ui

_LARGEST = 64_000_000


def read_workflow(data: Any) -> Graph:
    """One graph from the UI or the API form of a workflow.

    Raises:
        PCMError: if it is neither.
    """
    entries = fields(data)
    if "nodes" not in entries:
        entries = fields(entries.get("prompt")) or entries  # as it is posted to the server
    if is_list(entries.get("nodes")):
        return read_ui(entries)
    if is_api(entries):
        return read_api(entries)
    raise PCMError(
        f"This is {_kind(data)}, no workflow.", "a workflow of ComfyUI, saved or exported (API).", "Give another file."
    )


def read_file(path: str | Path) -> Any:
    """The JSON of a workflow file.

    Raises:
        PCMError: if it cannot be read, or is no JSON.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise PCMError(f"{path.name} is larger than 64 MB.", "a workflow.", "Give another file.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PCMError(f"{path} cannot be read ({error.strerror}).", "a file.", "Check the path.") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no text
        raise PCMError(f"{path.name} is no JSON ({error}).", "a workflow.", "Export it from ComfyUI again.") from error


def _kind(data: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return next((name for kind, name in names.items() if isinstance(data, kind)), "a number")
