"""The running node: the text and the bar that it shows, the prompt it is in, and what pictures keep of it."""

from __future__ import annotations

import sys
from typing import Any

from comfy_execution.utils import get_executing_context

_PICTURES_KEY = "phased_consistency"


def show_on_node(text: str) -> None:
    """Replace the text below the widgets of the running node. Does nothing without a server (tests and scripts)."""
    context = get_executing_context()
    show, send = (getattr(_server(), name, None) for name in ("send_progress_text", "send_sync"))
    if context is not None and show is not None:  # not every program that embeds the host has it
        show(text, context.node_id)
    if context is not None and send is not None:  # newer frontends take the text away when the run ends: web/js/said.js
        send("pcm.said", {"node": context.node_id, "text": text})


def show_bar(bar: dict[str, Any]) -> None:
    """Draw the steps that run in the bar of the running node. Does nothing outside a server."""
    context = get_executing_context()
    send = getattr(_server(), "send_sync", None)
    if context is not None and send is not None:
        send("pcm.bar", {"node": context.node_id, "bar": bar})


def running_prompt() -> tuple[dict[str, Any], str] | None:
    """The API prompt that runs now, and the id of its running node; ``None`` outside a server (tests and scripts)."""
    context = get_executing_context()
    running = getattr(getattr(_server(), "prompt_queue", None), "currently_running", None)
    if context is None or not isinstance(running, dict):
        return None
    items = [item for item in list(running.values()) if isinstance(item, (tuple, list)) and len(item) > 2]
    prompts = [item[2] for item in items if item[1] == context.prompt_id and isinstance(item[2], dict)]
    return (prompts[0], context.node_id) if prompts else None


def note_in_pictures(hidden: Any, run: dict[str, Any]) -> None:
    """Put what the running node ran beside the workflow, for every picture that is saved later in this prompt.

    The host keeps a dictionary for that, which it writes into PNG, WebP and video files; a prompt that came without a
    workflow has none.

    Args:
        hidden: the node's hidden inputs, with EXTRA_PNGINFO.
        run: of types that JSON has.
    """
    beside, context = getattr(hidden, "extra_pnginfo", None), get_executing_context()
    if not isinstance(beside, dict) or context is None:
        return
    if not isinstance(beside.get(_PICTURES_KEY), dict):
        beside[_PICTURES_KEY] = {}
    beside[_PICTURES_KEY].setdefault(str(context.node_id), []).append(run)


def _server() -> Any:
    server = sys.modules.get("server")  # imported by the running host; never by us, for it starts half of ComfyUI
    return getattr(getattr(server, "PromptServer", None), "instance", None)
