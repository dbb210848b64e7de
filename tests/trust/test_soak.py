"""Hundreds of prompts on one real server: every node, LoRAs switched, runs interrupted, failures, emptied caches.

The order is drawn from a seed, which is printed. 500 prompts in the long run, a short piece in the default one.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from recipes import BAD, GOOD, SLOW, WEIGHTS, digest, with_weights

from demo.client import Client, PromptError
from demo.quickstart import MODEL
from devtools.server import Server

SEED = 20261125
PACK = "custom_nodes.phased-consistency"
# An eighth of one demo LoRA per prompt. A model, its clone in memory or a LoRA kept at every prompt are 80 and more.
SLOPE = 10.0  # MB per 100 prompts
KINDS = {"good": 78, "bad": 10, "interrupt": 7, "free": 5}


@dataclass
class Soak:
    """One run; what it saw."""

    server: Server
    client: Client
    rng: random.Random
    digests: dict[str, str] = field(default_factory=dict)  # of what each recipe made, and of each model in memory
    counts: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)  # that were interrupted
    memory: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self, prompts: int) -> None:
        for name in GOOD:
            self.good([name])
        kinds = self.rng.sample(list(KINDS), len(KINDS))  # each once, also in a short run
        while self.sent < prompts or kinds:
            self.step(kinds.pop() if kinds else self.rng.choices(list(KINDS), list(KINDS.values()))[0])
        for name in GOOD:  # the models have been through everything, and nothing is loaded afresh
            self.good([name])

    @property
    def sent(self) -> int:
        return self.counts["good"] + self.counts["bad"] + self.counts["interrupt"]

    def step(self, kind: str) -> None:
        if kind == "good":
            self.good(self.rng.choices(list(GOOD), k=self.rng.randint(1, 3)))
        elif kind == "bad":
            self.bad(self.rng.choice(list(BAD)))
        elif kind == "interrupt":
            self.interrupt(self.rng.choice(list(SLOW)))
        else:
            print("free")
            self.counts["free"] += 1
            self.client.post("/free", {"unload_models": True, "free_memory": True})

    def text(self) -> str:
        """Blanks, so that the host does not answer from its cache."""
        return " " * self.sent

    def good(self, names: list[str]) -> None:
        """Queue all of them, then follow them."""
        print(f"good: {', '.join(names)}")
        queued = []
        for name in names:
            graph = with_weights(GOOD[name](self.text()))
            queued.append((name, graph[MODEL]["inputs"]["unet_name"], self.client.queue(graph)))
            self.counts["good"] += 1
        for name, model, prompt in queued:
            try:
                outputs = self.client.follow(prompt)
            except PromptError as error:
                self.fail(f"{name} failed: {error}")
                continue
            found = {name: digest(self.server.base, outputs), model: outputs[WEIGHTS]["weights"][0]}
            for what, value in found.items():
                if self.digests.setdefault(what, value) != value:
                    self.fail(f"{name}: other bits of {what} at prompt {self.sent}")
            self.remember()

    def bad(self, name: str) -> None:
        print(f"bad: {name}")
        recipe, words = BAD[name]
        graph = recipe(self.text())
        self.counts["bad"] += 1
        try:
            self.client.run(graph)
            self.fail(f"{name} was not refused")
        except PromptError as error:
            if not re.search(words, str(error)):
                self.fail(f"{name} said: {error}")
        self.remember()

    def interrupt(self, name: str) -> None:
        at = self.rng.randint(1, 40)
        print(f"interrupt: {name} at step {at}")
        prompt = self.client.queue(SLOW[name](self.text()))
        self.counts["interrupt"] += 1
        sent: list[int] = []

        def on_step(done: int, total: int) -> None:
            if done >= at and total > 4 and not sent:
                sent.append(done)
                self.client.post("/interrupt", {"prompt_id": prompt})

        try:
            self.client.follow(prompt, on_step)
        except PromptError as error:
            if "interrupted" in str(error):
                self.counts["interrupted"] += 1
                self.nodes[error.details["node_type"]] += 1
            else:
                self.fail(f"interrupted {name} said: {error}")
        self.remember()

    def fail(self, text: str) -> None:
        print(f"FAILED: {text}")
        self.failures.append(text)

    def remember(self) -> None:
        assert self.server.process is not None
        self.memory.append(psutil.Process(self.server.process.pid).memory_info().rss / 2**20)
        if len(self.memory) % 25 == 0:
            print(self.figures(), flush=True)

    def slope(self, share: float) -> float:
        """MB per 100 prompts of a line through the last share of the run."""
        last = np.array(self.memory[-max(2, int(share * len(self.memory))) :])
        return 100 * float(np.polyfit(np.arange(len(last)), last, 1)[0])

    def figures(self) -> str:
        minutes = (time.monotonic() - self.began) / 60
        return (
            f"{dict(self.counts)}, in {dict(self.nodes)}, {len(self.failures)} failures, {minutes:.1f} min; "
            f"resident {self.memory[0]:.0f} MB first, {max(self.memory):.0f} at most, {self.memory[-1]:.0f} last, "
            f"{self.slope(1 / 2):+.2f} MB per 100 prompts over the second half, {self.slope(1 / 4):+.2f} over a quarter"
        )


def files(base: Path) -> str:
    """A hash of the weights on the disk."""
    found = hashlib.sha256()
    for path in sorted((base / "models").rglob("demo_*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


@pytest.fixture
def soak(server: Server, client: Client, request: pytest.FixtureRequest) -> Iterator[Soak]:
    print(f"seed {SEED}")
    yield Soak(server, client, random.Random(SEED))


def check(soak: Soak, prompts: int) -> None:
    ours = {name for name, node in json.loads(soak.client.get("/object_info")).items() if node["python_module"] == PACK}
    used = {node["class_type"] for recipe in GOOD.values() for node in recipe("").values()}
    assert ours <= used, f"no recipe has {', '.join(sorted(ours - used))}"
    before = files(soak.server.base)
    soak.run(prompts)
    print(soak.figures())
    assert not soak.failures, "\n".join(soak.failures)
    assert files(soak.server.base) == before
    assert soak.counts["interrupted"] >= soak.counts["interrupt"] / 2, "the prompts to interrupt ended too early"
    while_sampling = soak.nodes["PCMSampler"] + soak.nodes["PCMDistillLora"]
    assert while_sampling >= soak.counts["interrupted"] / 2, f"interrupts came too late: {dict(soak.nodes)}"
    assert soak.server.process is not None and soak.server.process.poll() is None


def test_a_short_soak(soak: Soak) -> None:
    check(soak, 24)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_500_prompts(soak: Soak) -> None:
    check(soak, 500 - len(GOOD))  # with the last round of all recipes
    assert abs(soak.slope(1 / 2)) < SLOPE
