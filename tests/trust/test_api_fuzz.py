"""Every input of every node, set over the API of the real server to what nobody should send.

The cases come from ``/object_info``: wrong types, numbers out of range, NaN, huge integers, missing and circular links,
links to wrong sockets, unknown inputs and options. The host refuses what it checks itself; what it lets through ends in
a result or in one sentence of ours, and the server goes on. PCM_FUZZ_SEED chooses the cases of the default run; the
long one sends all of them, in another order every time.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import recipes
from websocket import WebSocketTimeoutException

from demo.client import Client, Graph, PromptError
from demo.quickstart import LORA, MODEL, PROMPT, SAMPLER
from devtools.server import Server

MODULE = "custom_nodes.phased-consistency"
# A graph that runs, and the node in it.
BASES: dict[str, tuple[Callable[[], Graph], str]] = {
    "PCMLoraLoader": (lambda: recipes.picture(""), LORA),
    "PCMSampler": (lambda: recipes.picture(""), SAMPLER),
    "PCMPhaseScheduler": (lambda: recipes.blocks(""), "20"),
    "SamplerPCM": (lambda: recipes.blocks(""), "21"),
    "PCMSettings": (lambda: recipes.settings(""), "40"),
    "PCMGuider": (lambda: recipes.blocks(""), "22"),
    "PCMPhasePlot": (lambda: recipes.blocks(""), "24"),
    "PCMVideoSampler": (lambda: recipes.video("", "demo_wan_pcm_2phase"), SAMPLER),
    "PCMCompare": (lambda: recipes.compare(""), recipes.OTHER),
    "PCMSaveImage": (lambda: recipes.saved(""), recipes.SAVE),
    "PCMDistillLora": (lambda: recipes.distil("", steps=1), "30"),
    "PCMSaveLora": (lambda: recipes.distil("", steps=1), "31"),
}
GROWN = {"models": ["models.model_b", "models.nobody"], "prompts": ["prompts.positive_2", "prompts.positive_99"]}
# Inputs that no schema declares. The host does not check their links, and one that leads nowhere ends its worker,
# whichever node it is on. Such links are not sent; the last test shows the host dying of them without our nodes.
UNDECLARED = {"models.nobody", "prompts.positive_99"}
DEADLY = {"link to nobody", "link to no output"}
# Their upper ends are allowed, and take hours or all of the memory.
DEAR = {"steps", "batch_size", "grad_accumulation", "rank"}
JUNK: dict[str, Any] = {
    "null": None,
    "true": True,
    "text": "x",
    "empty text": "",
    "long text": "7, " * 100_000,
    "digits": "9" * 6000,
    "control characters": "a\0b\x1b[31m\nc\u202e",
    "half a surrogate": "\ud800",
    "format string": "%s%n{0.__class__}{}$(id)`id`",
    "path": "../../../../etc/passwd",
    "2.7": 2.7,
    "-1": -1,
    "-0.5": -0.5,
    "1e308": 1e308,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
    "2^63": 2**63,
    "-2^64": -(2**64),
    "10^30": 10**30,
    "10^400": 10**400,
    "empty table": {},
    "table": {"samples": [1, 2], "weight": {}},
    "empty list": [],
    "list": [1, 2, 3],
    "wrapped list": {"__value__": [1, "a"]},
    "wrapped pairs": {"__value__": [[1, {}], ["a", {"pooled_output": None}]]},
    "deep": {"__value__": json.loads("[" * 200 + "]" * 200)},
    "link to nobody": ["nowhere", 0],
    "link to no output": [MODEL, 99],
    "link to output -1": [PROMPT, -1],
    "link to output a": [MODEL, "a"],
}
# The host's switch gives out anything: what it gets through a link is not checked by the host.
PASSED: dict[str, Any] = {
    "null": None, "text": "x", "table": {"samples": None}, "list": {"__value__": [1, 2]}, "-1": -1, "2.7": 2.7,
    "10^30": 10**30, "10^400": 10**400, "NaN": float("nan"), "a model": [MODEL, 0], "a text": [PROMPT, 0],
    "a VAE": [recipes.VAE, 0], "a latent": [recipes.LATENT, 0], "true": True,
    "digits": "9" * 6000, "empty list": {"__value__": []},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One change to one node's inputs."""

    node: str
    input: str
    what: str
    change: Callable[[Graph, str], object]

    def graph(self) -> Graph:
        make, node = BASES[self.node]
        graph = copy.deepcopy(make())
        self.change(graph, node)
        return graph

    def __str__(self) -> str:
        return f"{self.node}.{self.input} = {self.what}"


def put(name: str, value: Any) -> Callable[[Graph, str], object]:
    return lambda graph, node: graph[node]["inputs"].update({name: value})


def pass_on(name: str, value: Any) -> Callable[[Graph, str], object]:
    """Through the host's switch."""

    def change(graph: Graph, node: str) -> None:
        graph["70"] = recipes.node("ComfySwitchNode", switch=True, on_false=value, on_true=value)
        graph[node]["inputs"][name] = ["70", 0]

    return change


def sweep(info: dict[str, Any]) -> Iterator[Case]:
    """Every case there is, from the schemas that the server hands out."""
    for node in BASES:
        inputs = info[node]["input"]
        for name, (kind, *rest) in {**inputs["required"], **inputs.get("optional", {})}.items():
            for shown in GROWN.get(name, [name]):
                yield from cases_of(node, shown, kind, rest[0] if rest else {})
        yield Case(node, "unknown", "set", put("unknown", 1))
        yield Case(node, "unknown", "linked", put("unknown", [PROMPT, 0]))


def cases_of(node: str, name: str, kind: str, options: dict[str, Any]) -> Iterator[Case]:
    yield Case(node, name, "missing", lambda graph, own: graph[own]["inputs"].pop(name, None))
    yield Case(node, name, "link to itself", lambda graph, own: graph[own]["inputs"].update({name: [own, 0]}))
    for what, value in JUNK.items():
        if name not in UNDECLARED or what not in DEADLY:
            yield Case(node, name, what, put(name, value))
    for what, value in PASSED.items():
        yield Case(node, name, f"{what}, passed on", pass_on(name, value))
    for end, beyond in (("min", -1), ("max", 1)):
        if end in options:
            least = beyond if kind == "INT" else beyond * 1e-3
            yield Case(node, name, f"beyond {end}", put(name, options[end] + least))
            yield Case(node, name, f"beyond {end}, passed on", pass_on(name, options[end] + least))
            if end == "min" or name not in DEAR or node != "PCMDistillLora":
                yield Case(node, name, end, put(name, options[end]))
    if kind == "COMBO":
        for option in options["options"]:
            yield Case(node, name, f"{option}, passed on", pass_on(name, option))
            yield Case(node, name, f"{option} in capitals", put(name, str(option).upper()))


def drawn(cases: list[Case], per_node: int | None, seed: int) -> list[Case]:
    """So many cases of every node, or all, in an order of their own."""
    dice = random.Random(seed)
    chosen: list[Case] = []
    for node in BASES:
        own = [case for case in cases if case.node == node]
        chosen += own if per_node is None else dice.sample(own, min(per_node, len(own)))
    dice.shuffle(chosen)
    return chosen


def ends(client: Client, graph: Graph) -> tuple[str, str]:
    """How a prompt ended, and what is wrong with that; "" if nothing is."""
    try:
        client.run(graph)
    except PromptError as error:
        details = error.details
    else:
        return "result", ""
    if "exception_type" in details:
        return "our sentence", fault_of_a_run(details)
    faults = [fault for node in details.get("node_errors", {}).values() for fault in node["errors"]]
    ours = [fault for fault in faults if "phased-consistency" in "".join(fault["extra_info"].get("traceback", [])[-1:])]
    return "refused by the host", f"our validation raised: {ours[0]}" if ours else ""


def fault_of_a_run(details: dict[str, Any]) -> str:
    message, kind = details["exception_message"].strip(), details["exception_type"]
    if kind.endswith("DependencyCycleError"):
        return ""  # the host's own refusal, which blames whichever node waits
    if details["node_type"] not in BASES:
        return f"{details['node_type']} failed on what we made: {kind}: {message}"
    if not kind.endswith((".PCMError", ".Diverged")):
        return f"{kind}: {message}\n{''.join(details['traceback'][-2:])}"
    sound = "Expected: " in message and message.isprintable() and len(message) < 3500
    return "" if sound else f"not one sentence: {message[:500]!r}"


def fuzz(server: Server, client: Client, per_node: int | None, seed: int) -> Counter[str]:
    """Send the cases; the counts of how they ended."""
    seed = int(os.environ.get("PCM_FUZZ_SEED", seed))
    print(f"PCM_FUZZ_SEED={seed}")
    info = json.loads(client.get("/object_info"))
    assert {name for name, node in info.items() if node["python_module"] == MODULE} == set(BASES)
    found: Counter[str] = Counter()
    wrong: list[str] = []
    for number, case in enumerate(drawn(list(sweep(info)), per_node, seed)):
        try:
            how, fault = ends(client, case.graph())
        except WebSocketTimeoutException as error:
            raise AssertionError(f"no answer to {case}; see {server.log}") from error
        found[how] += 1
        if fault:
            wrong.append(f"{case}: {fault}")
        assert server.process is not None and server.process.poll() is None, f"the server ended after {case}"
        if number % 10 == 9:
            client.run(recipes.picture("", seed=seed + number))
    client.run(recipes.picture("", seed=seed))
    assert not wrong, f"PCM_FUZZ_SEED={seed}: {len(wrong)} of {found.total()}\n" + "\n".join(wrong)
    logging.info("%s", dict(found))
    return found


def test_every_base_graph_runs(client: Client) -> None:
    for make, _ in BASES.values():
        client.run(make())


@pytest.mark.timeout(300)
def test_some_bad_inputs(server: Server, client: Client) -> None:
    assert fuzz(server, client, per_node=7, seed=0).total() == 7 * len(BASES)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_bad_input(server: Server, client: Client) -> None:
    seed = random.SystemRandom().randrange(2**32)
    assert fuzz(server, client, per_node=None, seed=seed).total() >= 6000


@pytest.mark.long
@pytest.mark.parametrize("link", [["nowhere", 0], ["1", 99]], ids=str)
def test_the_host_dies_of_an_undeclared_link_to_nowhere(comfyui: Path, tmp_path: Path, link: list[Any]) -> None:
    """With nodes of its own. Where it does not any more, DEADLY can go, and its sentence in SECURITY.md."""
    (tmp_path / "custom_nodes").mkdir()
    image = recipes.node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    graph = {"1": image, "2": recipes.node("PreviewImage", images=["1", 0])}
    with Server(Path(sys.executable), comfyui, tmp_path) as server, Client(server.url, timeout=10) as client:
        client.run(graph)
        graph["2"]["inputs"]["unknown"] = link
        with pytest.raises(WebSocketTimeoutException):
            client.run(graph)
        assert "Exception in thread" in server.log.read_text(errors="replace")
