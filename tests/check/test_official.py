"""The check on workflows that others and we publish: every file found, nothing called wrong that is not."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from official import workflows
from reviewed import REASONS, reason

from pcm_core.profiles import profile_from_name
from pcm_core.workflow_check import check
from pcm_core.workflow_check.panel import answer
from pcm_core.workflow_check.schedules import ClosedForm

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = sorted([*(ROOT / "workflows").rglob("*.json"), *(ROOT / "demo" / "workflows").rglob("*.json")])
FILE = re.compile(r"[^/\\]+\.(safetensors|sft|ckpt|gguf)$")


def names_in(value: Any) -> set[str]:
    """Every name of a model file anywhere in widget values, found without knowing any node."""
    if isinstance(value, str):
        match = FILE.search(value.strip())
        return {match[0]} if match and len(value) < 300 else set()
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(names_in, value)) if isinstance(value, list) else set()


def few_step_names(workflow: dict[str, Any]) -> set[str]:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    nodes = [node for graph in graphs for node in graph["nodes"]]
    # Text encoders and audio VAEs read the same checkpoints for something else; a patch is no few-step file.
    named = [node for node in nodes if not re.search("Note|Markdown|TextEncoder|VAE|Text|Patch", node["type"])]
    kinds = [("lora" if "Lora" in node["type"] else "checkpoint", node) for node in named]
    return {
        name for kind, node in kinds for name in names_in(node.get("widgets_values")) if profile_from_name(name, kind)
    }


def test_every_few_step_file_of_an_official_workflow_is_found():
    missed: dict[str, set[str]] = {}
    count = 0
    for name, workflow in workflows():
        expected = few_step_names(workflow)
        count += len(expected)
        if lost := expected - {file.title for file in check(workflow).files}:
            missed[name] = lost
    assert not missed and count > 100, missed


def test_nothing_on_an_official_workflow_is_wrong_but_what_was_reviewed():
    seen, new = set[str](), list[str]()
    for name, workflow in workflows():
        for found in check(workflow).findings:
            if found.level == "wrong":
                text = reason(name, found.rule, found.file)
                seen.add(text)
                if not text:
                    new.append(f"{name}: {found.rule} {found.file} at {found.node} {dict(found.facts)}")
    assert not new, "\n".join(new)
    assert not set(REASONS.values()) - seen, "reviewed, and nobody finds it any more"


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_own_workflows_are_clean(path: Path):
    report = check(json.loads(path.read_text("utf-8")))
    assert not report.findings and not report.skipped


def test_the_largest_official_workflow_takes_less_than_50_ms():
    """Of the processor: a busy machine lets everything wait."""
    _, workflow = max(workflows(), key=lambda entry: len(json.dumps(entry[1])))
    check(workflow)
    times = list[float]()
    for _ in range(5):
        start = time.process_time()
        answer({"workflow": workflow}, ClosedForm())
        times.append(time.process_time() - start)
    assert min(times) < 0.05, times
