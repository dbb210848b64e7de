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

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST = 64_000_000


def read_workflow(data: Any) -> Graph:
    """One graph from the UI or the API form of a workflow.

    Raises:
        PCMError: if it is neither.
    """
    entries = fields(unwrapped(data)[0])
    if is_list(entries.get("nodes")):
        return read_ui(entries)
    if is_api(entries):
        return read_api(entries)
    raise PCMError(
        f"This is {_kind(data)}, no workflow.", "a workflow of ComfyUI, saved or exported (API).", "Give another file."
    )


def unwrapped(data: Any) -> tuple[Any, str]:
    """The workflow inside what a picture holds or what is posted to the server, and the entry it lies in.

    Pictures hold both forms, often as text: the UI form goes first.
    """
    entries = fields(data)
    if is_list(entries.get("nodes")):
        return data, ""
    for name in ("workflow", "prompt"):
        inner = entries.get(name)
        if isinstance(inner, str):
            try:
                inner = json.loads(inner) if len(inner) <= _LARGEST else None
            except (ValueError, RecursionError):
                continue
        if is_list(fields(inner).get("nodes")) or is_api(fields(inner)):
            return inner, name
    return data, ""


def read_file(path: str | Path) -> Any:
    """The JSON of a workflow file, or what a PNG picture of ComfyUI holds of one.

    Raises:
        PCMError: if it cannot be read, or is no JSON.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise PCMError(f"{path.name} is larger than 64 MB.", "a workflow.", "Give another file.")
        content = path.read_bytes()
        return _in_picture(content) if content.startswith(_PNG) else json.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise PCMError(f"{path} cannot be read ({error.strerror}).", "a file.", "Check the path.") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no text
        raise PCMError(f"{path.name} is no JSON ({error}).", "a workflow.", "Export it from ComfyUI again.") from error


def _in_picture(content: bytes) -> dict[str, str]:
    """The texts of a PNG file by their keywords: ComfyUI writes ``workflow`` and ``prompt``, as tEXt."""
    found: dict[str, str] = {}
    at = len(_PNG)
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        keyword, _, text = data.partition(b"\0")
        if kind == b"tEXt":
            found[keyword.decode("latin-1")] = text.decode("latin-1")
        elif kind == b"iTXt" and text[:1] == b"\0":  # not compressed; language and translated keyword come first
            found[keyword.decode("latin-1")] = text[2:].split(b"\0", 2)[-1].decode("utf-8")
        at += 12 + size
    return found


def _kind(data: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return next((name for kind, name in names.items() if isinstance(data, kind)), "a number")
