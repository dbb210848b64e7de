"""A few words on the node that runs, under its widgets: what a log says too, where nobody reads logs."""

from __future__ import annotations

import sys

from comfy_execution.utils import get_executing_context


def show_on_node(text: str) -> None:
    """Replace the text under the widgets of the running node. Does nothing outside a server, in tests and scripts."""
    context = get_executing_context()
    server = sys.modules.get("server")  # imported by the running host; never by us, for it starts half of ComfyUI
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    send = getattr(instance, "send_progress_text", None)  # not every program that embeds the host has it
    if context is not None and send is not None:
        send(text, context.node_id)
