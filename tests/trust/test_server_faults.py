"""The server is killed, files go away under a queued prompt, two clients want one LoRA: what happens, and after."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from recipes import GOOD, SLOW, Recipe, digest, distil, picture
from safetensors import safe_open

from demo.client import Client, PromptError
from devtools.base import make_base
from devtools.server import Server

KNOWN = ("picture demo_pcm_4phase", "video 2 phases", "distil")
SAVE_LORA = "31"  # the node of recipes.distil


def run(server: Server, client: Client, recipe: Recipe, text: str = "") -> str:
    return digest(server.base, client.run(recipe(text)))


def kill_at(server: Server, recipe: Recipe, when: Callable[[dict], bool]) -> None:
    """Kill the server when it sends an event of a prompt."""
    with Client(server.url) as client:
        prompt = client.queue(recipe(" killed"))
        while True:
            message = client.socket.recv()
            if isinstance(message, str):
                event = json.loads(message)
                if event.get("data", {}).get("prompt_id") == prompt and when(event):
                    break
        assert server.process is not None
        server.signal_group(server.process, "SIGKILL")
        server.process.wait()


def whole(folder: Path) -> list[str]:
    """Names of the LoRAs of a folder, each of which is read to its end."""
    found = sorted(folder.rglob("*.safetensors"))
    for path in found:
        with safe_open(path, "pt") as file:
            assert all(file.get_tensor(key).isfinite().all() for key in file.keys())
    return [path.name for path in found]


MOMENTS = {
    "a step": (SLOW["slow picture"], lambda event: event["type"] == "progress" and event["data"]["value"] >= 2),
    "a step of distilling": (
        SLOW["slow distil"],
        lambda event: event["type"] == "progress" and event["data"]["max"] > 8,
    ),
    "saving a LoRA": (distil, lambda event: event["type"] == "executing" and event["data"]["node"] == SAVE_LORA),
}


@pytest.mark.parametrize(
    "moment",
    ["a step", *(pytest.param(name, marks=pytest.mark.long) for name in list(MOMENTS)[1:])],
)
def test_killed_and_started_again(server: Server, client: Client, comfyui: Path, tmp_path: Path, moment: str) -> None:
    """The next prompt works, nothing half-written is offered, and three processes agree on every bit."""
    expected = [run(server, client, GOOD[name], " kill") for name in KNOWN]
    make_base(tmp_path)
    with Server(Path(sys.executable), comfyui, tmp_path) as first:
        kill_at(first, *MOMENTS[moment])
    loras = tmp_path / "output" / "loras"
    loras.mkdir(exist_ok=True)
    (loras / "half.part").write_bytes(b"half of a file")
    before = whole(loras)
    with Server(Path(sys.executable), comfyui, tmp_path) as second, Client(second.url) as again:
        assert [run(second, again, GOOD[name], " kill") for name in KNOWN] == expected
        offered = again.get("/object_info/PCMLoraLoader").decode()
        assert "demo_pcm_4phase.safetensors" in offered and "half" not in offered
    assert len(whole(loras)) == len(before) + 1  # what the last recipe saved


@pytest.fixture
def lora(server: Server) -> Iterator[Path]:
    """A LoRA of its own in the server's folder."""
    path = server.base / "models" / "loras" / "swapped.safetensors"
    shutil.copyfile(path.with_name("demo_pcm_4phase.safetensors"), path)
    yield path
    path.unlink(missing_ok=True)


def change_while_queued(server: Server, client: Client, change: Callable[[], object], text: str) -> str:
    """Queue a picture with that LoRA, change the file while a prompt before it samples with it, and run it."""
    slow = client.queue(picture(text, "swapped", batch=48))
    queued = client.queue(picture(text, "swapped"))
    left = [change]
    client.follow(slow, lambda done, total: left.pop()() if left else None)
    assert not left, "the prompt before it ended without a step"
    return digest(server.base, client.follow(queued))


def test_a_lora_deleted_after_it_was_queued(server: Server, client: Client, lora: Path) -> None:
    with pytest.raises(
        PromptError, match=r'PCMLoraLoader: There is no LoRA "swapped\.safetensors"\. Expected'
    ) as error:
        change_while_queued(server, client, lora.unlink, " deleted")
    assert error.value.details["exception_type"].endswith("PCMError")
    assert run(server, client, GOOD["picture demo_pcm_4phase"], " deleted")


def test_a_lora_replaced_after_it_was_queued(server: Server, client: Client, lora: Path) -> None:
    """The prompt uses what is there when it runs, and never a cached model of the file before."""
    four, two = (run(server, client, GOOD[f"picture demo_pcm_{n}phase"], " replaced") for n in (4, 2))
    assert run(server, client, partial(picture, lora="swapped"), " first") == four != two
    other = lora.with_suffix(".new")
    shutil.copyfile(lora.with_name("demo_pcm_2phase.safetensors"), other)
    assert change_while_queued(server, client, partial(os.replace, other, lora), " replaced") == two
    half = lora.read_bytes()[:100_000]
    with pytest.raises(PromptError, match=r"PCMLoraLoader: .*swapped\.safetensors.*Expected"):
        change_while_queued(server, client, partial(lora.write_bytes, half), " cut")
    assert run(server, client, GOOD["picture demo_pcm_4phase"], " after") == four


def test_a_lora_replaced_before_it_is_trained_on(server: Server, client: Client, lora: Path) -> None:
    """Distill PCM LoRA goes on from the file as it is now, also where its name has not changed."""

    def train(text: str, **settings: object) -> tuple[str, Path]:
        """The digest, and the file that was saved."""
        graph = distil(text)
        graph["30"]["inputs"] |= settings
        outputs = client.run(graph)
        return digest(server.base, outputs), server.base / "output" / outputs[SAVE_LORA]["text"][0]

    _, first = train(" replaced")
    _, second = train(" replaced", seed=1)
    shutil.copyfile(first, lora)
    before, _ = train("", existing_lora="swapped.safetensors")
    shutil.copyfile(second, lora)
    after, _ = train("", existing_lora="swapped.safetensors")
    assert after != before
    assert after == train(" afresh", existing_lora="swapped.safetensors")[0]


def test_two_clients_race_on_one_lora(server: Server, lora: Path) -> None:
    """Sampling with it and distilling to one prefix at the same time: every bit as alone, and every file whole."""
    folder = server.base / "output" / "loras"
    before, found, errors = set(folder.rglob("*.safetensors")), [], []

    def one(number: int) -> None:
        try:
            with Client(server.url) as client:
                for turn in range(3):
                    text = " " * (1 + turn) + "\t" * (1 + number)
                    queued = [client.queue(recipe(text)) for recipe in (partial(picture, lora="swapped"), distil)]
                    found.append(tuple(digest(server.base, client.follow(prompt)) for prompt in queued))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == 6 and len(set(found)) == 1
    assert len(set(folder.rglob("*.safetensors")) - before) == 6
    whole(folder)
