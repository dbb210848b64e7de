"""What the frontend's requests are answered with, whatever they hold: an object, and a sentence where it is wrong."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest
from aiohttp import web

from pcm_core.errors import PCMError
from phased_consistency.nodes.host import routes


def answered(monkeypatch: pytest.MonkeyPatch, text: str, work=routes._check) -> dict:
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(web=web))

    async def ask() -> web.Response:
        async def read() -> str:
            return text

        return await routes._answer(SimpleNamespace(loop=asyncio.get_running_loop()), work)(SimpleNamespace(text=read))

    return json.loads(asyncio.run(ask()).text)


@pytest.mark.parametrize("text", ["[1]", "null", '"text"', "3"])
def test_what_is_no_object_is_said(host, monkeypatch, text):
    assert answered(monkeypatch, text)["error"].startswith("The request is no object.")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_said(host, monkeypatch, text):
    assert answered(monkeypatch, text) == {"error": "The request is no JSON."}


def test_a_request_that_is_too_large_is_not_parsed(host, monkeypatch):
    monkeypatch.setattr(routes, "_LARGEST", 10)
    assert "no object" in answered(monkeypatch, json.dumps({"workflow": {}, "more": 1}))["error"]


def test_what_is_no_workflow_is_the_sentence_of_the_check(host, monkeypatch):
    assert "no workflow" in answered(monkeypatch, json.dumps({"workflow": [1]}))["error"]


def test_a_fault_of_ours_is_logged_and_said(host, monkeypatch, caplog):
    def fails(_: dict) -> dict:
        raise ZeroDivisionError

    assert answered(monkeypatch, "{}", fails) == {"error": "The check failed; the log of ComfyUI says why."}
    assert "ZeroDivisionError" in caplog.text

    def refuses(_: dict) -> dict:
        raise PCMError("Found.", "expected.", "Do.")

    assert answered(monkeypatch, "{}", refuses) == {"error": str(PCMError("Found.", "expected.", "Do."))}
