"""Files that are no workflows, and workflows that are broken: findings or one sentence, never another exception."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from official import workflows
from right_graphs import RIGHT, as_ui, build, build_pair
from sampler_graphs import KINDS, demo, in_subgraph

from pcm_core.errors import PCMError
from pcm_core.workflow_check import apply_mends, check, read_file, sentences
from pcm_core.workflow_check.check import check_graph
from pcm_core.workflow_check.panel import answer, bar_answer
from pcm_core.workflow_check.pcm_nodes import Exchanges
from pcm_core.workflow_check.read import read_workflow
from pcm_core.workflow_check.schedules import ClosedForm

HOSTILE = "<img src=x onerror=alert(1)>\u202e\n{0.__class__}{family}"
JUNK: list[Any] = [
    None, True, -1, 1e400, float("nan"), "", HOSTILE, [], {}, [[]], {"0": 1}, 2**70, "-10", -10, [None], "auto",
]  # fmt: skip


@pytest.mark.parametrize("data", [None, 1, 2.5, "text", [], {}, [1], {"nodes": 3}, {"a": 1}, {"prompt": []}, True])
def test_what_is_no_workflow_is_refused_in_one_sentence(data: Any):
    with pytest.raises(PCMError, match="no workflow"):
        check(data)
    with pytest.raises(PCMError, match="no workflow"):
        apply_mends(data, [])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'"' + b"a" * 1000])
def test_what_is_no_json_is_refused_in_one_sentence(tmp_path: Path, content: bytes):
    path = tmp_path / "workflow.json"
    path.write_bytes(content)
    with pytest.raises(PCMError, match=r"is no JSON|is a text, no workflow"):
        check(read_file(path))
    with pytest.raises(PCMError, match="cannot be read"):
        read_file(tmp_path / "none.json")


def test_what_is_too_large_is_not_read(tmp_path: Path):
    path = tmp_path / "workflow.json"
    with path.open("wb") as file:
        file.truncate(64_000_001)
    with pytest.raises(PCMError, match="larger than 64 MB"):
        read_file(path)


@pytest.mark.parametrize("value", ["half", [1], None, True])
def test_a_bar_is_not_drawn_from_a_widget_of_another_kind(value: Any):
    graph = {"1": {"class_type": "PCMSampler", "inputs": {"denoise": value}}}
    answered = bar_answer({"workflow": graph, "nodes": ["1"]}, ClosedForm())
    assert answered["bars"]["1"] == {"error": "denoise is no value of its kind."}


def damaged(value: Any, lot: random.Random, rate: float) -> Any:
    """A copy with some of its values replaced by junk, and some entries left out."""
    if lot.random() < rate:
        return copy.deepcopy(lot.choice(JUNK))
    if isinstance(value, dict):
        return {key: damaged(entry, lot, rate) for key, entry in value.items() if lot.random() > rate / 4}
    if isinstance(value, list):
        return [damaged(entry, lot, rate) for entry in value if lot.random() > rate / 4]
    return value


def survives(data: Any) -> None:
    """Check it, say everything there is to say, and apply every mend."""
    try:
        report = check(data)
    except PCMError:
        return
    for found in report.findings:
        assert all(sentences(found, "en")) and all(sentences(found, "zh"))
    apply_mends(data, [mend for found in report.findings for mend in found.mends])


def test_damaged_workflows_never_raise():
    lot = random.Random(7)
    whole = [build(right, sampler=s) for right in RIGHT[::3] for s in ("KSampler", "SamplerCustomAdvanced")]
    whole += [as_ui(prompt) for prompt in [*whole, build_pair()]]
    official = dict(workflows())
    whole += [official[name] for name in sorted(official)[::12]]
    for workflow in whole:
        for rate in (0.002, 0.02, 0.1):
            for _ in range(6):
                survives(damaged(workflow, lot, rate))


def test_hostile_names_are_quoted_as_they_are():
    prompt = build(RIGHT[0])
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    sampler["inputs"] |= {"steps": 20, "scheduler": HOSTILE, "sampler_name": HOSTILE}
    sampler["_meta"]["title"] = HOSTILE
    report = check(prompt)
    assert [found.rule for found in report.findings] == ["steps"] and report.findings[0].title == HOSTILE
    assert len(report.skipped) == 1


def loop(length: int) -> dict[str, Any]:
    """LoRA loaders that feed each other in a ring, and a sampler at it."""
    prompt = {
        str(index): {"class_type": "LoraLoaderModelOnly", "inputs": {
            "model": [str((index + 1) % length), 0], "strength_model": 1.0,
            "lora_name": "pcm_sdxl_smallcfg_4step_converted.safetensors"}}
        for index in range(length)
    }  # fmt: skip
    sampler = {"model": ["0", 0], "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    return prompt | {"s": {"class_type": "KSampler", "inputs": sampler}}


def test_loops_end():
    survives(loop(3))
    ring = {"version": 0.4, "nodes": [
        {"id": n, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": n}],
         "outputs": [{"type": "MODEL", "links": [n + 1]}]} for n in (1, 2)
    ], "links": [[1, 2, 0, 1, 0, "MODEL"], [2, 1, 0, 2, 0, "MODEL"]]}  # fmt: skip
    ring["nodes"].append(
        {"id": 3, "type": "KSampler", "inputs": [{"name": "model", "type": "MODEL", "link": 3}],
         "widgets_values": [1, "fixed", 20, 8, "euler", "simple", 1]}
    )  # fmt: skip
    ring["links"].append([3, 1, 0, 3, 0, "MODEL"])
    survives(ring)


def test_a_subgraph_inside_itself_ends():
    inner: dict[str, Any] = {"id": "a", "inputs": [], "outputs": [], "links": []}
    inner["nodes"] = [{"id": 1, "type": "a"}, {"id": 2, "type": "a"}]
    started = time.process_time()
    report = check(
        {"version": 1, "nodes": [{"id": 1, "type": "a"}], "links": [], "definitions": {"subgraphs": [inner]}}
    )
    assert not report.findings and time.process_time() - started < 5


@pytest.mark.parametrize("chained", [True, False])
def test_5000_nodes(chained: bool):
    prompt = loop(5000) if chained else {}
    for index in range(0 if chained else 250):
        prompt |= {f"{index}x{name}": node for name, node in json.loads(
            json.dumps(build(RIGHT[index % len(RIGHT)])).replace('["', f'["{index}x')
        ).items()}  # fmt: skip
    started = time.process_time()
    survives(prompt)
    assert time.process_time() - started < 5


def test_5000_nodes_in_the_panel():
    """What our nodes could do is worked out for every file, each of which shares the sampler with all others."""
    started = time.process_time()
    found = answer({"workflow": loop(5000)}, ClosedForm())
    assert time.process_time() - started < 10
    assert len(found["files"]) == 5000 and "on one model" in found["files"][7]["pcm_reason"]


def test_damaged_workflows_never_raise_in_the_panel():
    """Check, bars, our nodes in the place of others, and that applied."""
    lot = random.Random(11)
    whole = [demo(kind, 20, 7.0, "pcm_deterministic_4step_shift3.safetensors") for kind in KINDS]
    whole += [in_subgraph(as_ui(prompt), ("UNETLoader", "LoraLoaderModelOnly"), "seed") for prompt in whole]
    for workflow in whole:
        for rate in (0.005, 0.03):
            for _ in range(3):
                in_panel(damaged(workflow, lot, rate))


def in_panel(data: Any) -> None:
    try:
        found = answer({"workflow": data}, ClosedForm())
        graph = read_workflow(data)
    except PCMError:
        return
    json.dumps(found, allow_nan=True)
    bar_answer({"workflow": data, "nodes": list(graph.nodes)}, ClosedForm())
    report = check_graph(graph, ClosedForm())
    for file in report.files:
        apply_mends(data, Exchanges(graph, report, ClosedForm()).of(file).steps)
