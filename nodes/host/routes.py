"""What the frontend asks the pack: to check the workflow on the canvas."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...pcm_core.errors import PCMError
from ...pcm_core.profiles import PCMProfile, profile_from_metadata
from ...pcm_core.safetensors_file import read_header

if TYPE_CHECKING:
    from ...pcm_core.workflow_check.files import Kind

_LARGEST = 64_000_000


def add_routes() -> None:
    """Register the routes with the running server; does nothing outside one, in tests and scripts."""
    server = sys.modules.get("server")  # imported by the running host; never by us, for it starts half of ComfyUI
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    routes: Any = getattr(instance, "routes", None)
    if routes is not None:  # not every program that embeds the host has them
        routes.post("/pcm/check")(_answer(instance, _check))
        routes.post("/pcm/bar")(_answer(instance, _bar))


def _check(asked: dict[str, Any]) -> dict[str, Any]:
    # Imported when somebody asks: the host starts without it.
    from ...pcm_core.workflow_check.panel import answer
    from .schedules import HostSchedules

    return answer(asked, HostSchedules(), _profile)


def _bar(asked: dict[str, Any]) -> dict[str, Any]:
    from ...pcm_core.workflow_check.panel import bar_answer
    from .schedules import HostSchedules

    return bar_answer(asked, HostSchedules(), _profile)


def _profile(name: str, kind: Kind) -> PCMProfile | None:
    """What a LoRA on the disk says of itself, else what its name says; nothing larger than a header is read."""
    from ...pcm_core.workflow_check.files import profile_by_name
    from .lora import lora_path

    told = None
    if kind == "lora":
        try:
            told = profile_from_metadata(read_header(lora_path(name)).metadata)
        except (PCMError, OSError):
            pass  # not here, or broken: loading it will say so
    return told or profile_by_name(name, kind)


def _answer(server: Any, work: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    """A handler of aiohttp's server that works beside the server's loop, and says in one sentence what is wrong."""

    async def handler(request: Any) -> Any:
        web = sys.modules["server"].web  # aiohttp, as the running server has it

        try:
            text = await request.text()
            asked = json.loads(text) if len(text) <= _LARGEST else None
            if not isinstance(asked, dict):
                raise PCMError("The request is no object.", "a workflow to check.", "Reload the page.")
            found = await server.loop.run_in_executor(None, work, asked)
        except PCMError as error:
            return web.json_response({"error": str(error)})
        except (ValueError, RecursionError):
            return web.json_response({"error": "The request is no JSON."})
        except Exception:
            logging.exception("PCM workflow check")
            return web.json_response({"error": "The check failed; the log of ComfyUI says why."})
        return web.json_response(found)

    return handler
