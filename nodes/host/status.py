"""The running node: what it shows below its widgets, a short text and its steps as a bar, and the prompt it is in."""

from __future__ import annotations

import sys
from typing import Any

from comfy_execution.utils import get_executing_context


def show_on_node(text: str) -> None:
    """Replace the text below the widgets of the running node. Does nothing without a server (tests and scripts)."""
    context = get_executing_context()
    send = getattr(_server(), "send_progress_text", None)  # not every program that embeds the host has it
    if context is not None and send is not None:
        send(text, context.node_id)


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


def _server() -> Any:
    server = sys.modules.get("server")  # imported by the running host; never by us, for it starts half of ComfyUI
    return getattr(getattr(server, "PromptServer", None), "instance", None)
