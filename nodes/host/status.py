"""A short text below the widgets of the running node: the same as in the log, which few people read."""

from __future__ import annotations

import sys

from comfy_execution.utils import get_executing_context


def show_on_node(text: str) -> None:
    """Replace the text below the widgets of the running node. Does nothing without a server (tests and scripts)."""
    context = get_executing_context()
    server = sys.modules.get("server")  # imported by the running host; never by us, for it starts half of ComfyUI
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    send = getattr(instance, "send_progress_text", None)  # not every program that embeds the host has it
    if context is not None and send is not None:
        send(text, context.node_id)
