"""A small client of ComfyUI's API: queue a prompt, follow it over the websocket, fetch what it made."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import websocket

Graph = dict[str, dict[str, Any]]
Step = Callable[[int, int], None]


class PromptError(Exception):
    """The host rejected a prompt or failed while running it. ``details`` is its response."""

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


class Client:
    """One websocket and one client id. Use it as a context manager."""

    def __init__(self, url: str, timeout: float = 120.0) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self.id = uuid.uuid4().hex
        self.socket = websocket.WebSocket()

    def __enter__(self) -> Client:
        self.socket.connect(f"ws{self.url.removeprefix('http')}/ws?clientId={self.id}", timeout=self.timeout)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def get(self, path: str, **query: str) -> bytes:
        address = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=self.timeout) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.loads(answer.read() or b"{}")

    def run(self, graph: Graph, on_step: Step | None = None) -> dict[str, Any]:
        """Run an API graph and return its outputs by node id. ``on_step(done, total)`` reports sampler progress.

        Raises:
            PromptError: if any part of the graph was rejected, or a node raised an error; carries the node's message.
        """
        return self.follow(self.queue(graph), on_step)

    def follow(self, prompt_id: str, on_step: Step | None = None) -> dict[str, Any]:
        """Wait for a queued prompt to finish, as ``run`` does. Follow several prompts in the order they were queued."""
        while True:
            message = self.socket.recv()
            if not isinstance(message, str):
                continue  # a preview image
            event = json.loads(message)
            kind, data = event["type"], event.get("data", {})
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "progress" and on_step is not None:
                on_step(data["value"], data["max"])
            elif kind in ("execution_error", "execution_interrupted"):
                raise PromptError(f"{data.get('node_type')}: {data.get('exception_message', kind).strip()}", data)
            elif kind == "executing" and data["node"] is None:  # sent once the history is written
                return json.loads(self.get(f"/history/{prompt_id}"))[prompt_id]["outputs"]

    def queue(self, graph: Graph) -> str:
        """Queue an API graph and return its prompt id."""
        try:
            answer = self.post("/prompt", {"prompt": graph, "client_id": self.id})
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
        if answer.get("error") or answer.get("node_errors"):
            raise PromptError(rejection(answer), answer)
        return answer["prompt_id"]

    def pictures(self, outputs: dict[str, Any]) -> list[bytes]:
        """The files of every image that the outputs name, as PNG bytes."""
        files = [file for output in outputs.values() for file in output.get("images", [])]
        return [
            self.get("/view", filename=file["filename"], subfolder=file["subfolder"], type=file["type"])
            for file in files
        ]


def rejection(answer: dict[str, Any]) -> str:
    """One line that names every node and input the host rejected."""
    faults = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "; ".join(faults) or f"{answer['error']['message']} {answer['error'].get('details', '')}".strip()
