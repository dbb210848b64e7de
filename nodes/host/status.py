"""What the running node shows below its widgets: a short text, the same as in the log, and its steps as a bar."""

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


def _server() -> Any:
    server = sys.modules.get("server")  # imported by the running host; never by us, for it starts half of ComfyUI
    return getattr(getattr(server, "PromptServer", None), "instance", None)
