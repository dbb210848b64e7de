"""Mistakes seeded into right workflows: found, named as what they are, and mended."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from mistakes import Case, cases
from official import workflows
from right_graphs import LORA_LOADERS, RIGHT, SAMPLERS, as_ui, build, build_pair

from pcm_core.workflow_check import apply_mends, check

CASES = list(cases())
FORMS = {"api": lambda prompt: prompt, "ui": as_ui, "primitive": lambda prompt: as_ui(prompt, primitive=True)}
# What a mend puts in or takes out; every other mend gives back the very workflow that was right.
REBUILT = ("shift missing", "two few-step files", "LoRA after the branch", "two shift nodes")


@pytest.mark.parametrize("form", FORMS)
def test_right_workflows_are_clean(form: str):
    for right in RIGHT:
        for loader in LORA_LOADERS:
            for sampler in SAMPLERS:
                report = check(FORMS[form](build(right, loader, sampler)))
                assert (len(report.files), len(report.runs)) == (1, 1), (right.file, loader, sampler)
                assert not report.findings, (right.file, loader, sampler, report.findings)
    for loader in LORA_LOADERS:
        assert not check(FORMS[form](build_pair(loader))).findings


def problem(case: Case, form: str) -> str:
    """What went wrong with one case; empty if it was found and mended."""
    workflow = FORMS[form](case.wrong)
    report = check(workflow)
    if not any(found.rule in case.rules and found.level != "note" for found in report.findings):
        return f"missed: {case.name} {[found.rule for found in report.findings]}"
    mended, left = apply_mends(workflow, [mend for found in report.findings for mend in found.mends])
    if left or check(mended).findings:
        return f"not mended: {case.name} {left} {check(mended).findings}"
    if form == "api" and case.kind not in REBUILT and mended != case.right:
        return f"mended to something else: {case.name}"
    return ""


@pytest.mark.parametrize("form", FORMS)
def test_seeded_mistakes_are_found_and_mended(form: str):
    problems = [text for case in CASES if (text := problem(case, form))]
    assert len(CASES) >= 300
    assert len(problems) <= 0.05 * len(CASES), "\n".join(problems)


def test_a_missing_shift_and_a_stray_lora_are_mended_to_what_was_right():
    """The mends that put something in: the sampler gets what it had, by way of a new node or link."""
    for case in CASES:
        if case.kind not in REBUILT:
            continue
        mended, _ = apply_mends(case.wrong, [mend for found in check(case.wrong).findings for mend in found.mends])
        if case.kind == "shift missing":
            shifts = {node["inputs"]["shift"] for node in mended.values() if "shift" in node["inputs"]}
            assert shifts == {node["inputs"]["shift"] for node in case.right.values() if "shift" in node["inputs"]}
        if case.kind == "LoRA after the branch":
            assert mended == case.right, case.name


# Widgets of stock nodes by their place in the file, written down here a second time: (place, wrong value, rules).
SEEDS: dict[str, list[tuple[int, Any, tuple[str, ...]]]] = {
    "KSampler": [
        (2, 40, ("steps",)), (3, 7.0, ("cfg", "cfg_range")), (5, "karras", ("scheduler", "scheduler_name")),
        (4, "dpmpp_sde", ("sampler_fixed", "sampler_renoised", "sampler_ancestral")),
    ],
    "KSamplerAdvanced": [(3, 40, ("steps",)), (4, 7.0, ("cfg",)), (6, "karras", ("scheduler", "scheduler_name"))],
    "CFGGuider": [(0, 7.0, ("cfg", "cfg_range"))],
    "BasicScheduler": [(0, "karras", ("scheduler", "scheduler_name")), (1, 40, ("steps",))],
    "ModelSamplingSD3": [(0, 20.0, ("shift",))],
    "ModelSamplingAuraFlow": [(0, 9.0, ("shift",))],
    "LoraLoaderModelOnly": [(1, 8.0, ("strength",))],
}  # fmt: skip


def template_cases() -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """Official workflows with one widget changed, at nodes on the way of a few-step file."""
    for name, workflow in workflows():
        report = check(workflow)
        if report.findings or not report.runs:
            continue
        run = report.runs[0]
        if len(run.files) != 1 or (run.files[0].profile.shift is None and "shift" in name):
            continue
        near = {run.node.id, run.model_node, *(node.id for node in (run.sigmas.node,) if node)}
        near |= {node.id for node in (*run.models, *run.sigmas.models)}
        for path in sorted(near - {""}):
            yield from _seed(name, workflow, path, run.files[0].node.id, run.files[0].profile.shift is not None)


def _seed(name: str, workflow: dict[str, Any], path: str, lora: str, shifted: bool) -> Iterator[Any]:
    changed = copy.deepcopy(workflow)
    subgraphs = {graph["id"]: graph for graph in changed.get("definitions", {}).get("subgraphs", [])}
    graph, node = changed, {}
    for part in path.split(":"):
        graph = subgraphs[node["type"]] if node else changed
        node = next(entry for entry in graph["nodes"] if str(entry["id"]) == part)
    for place, value, rules in SEEDS.get(node["type"], []):
        linked = {slot["name"] for slot in node["inputs"] if slot.get("link") is not None and slot.get("widget")}
        kind = rules[0].removesuffix("_fixed")
        widget = {"sampler": "sampler_name", "strength": "strength_model"}.get(kind, kind)
        if widget in linked or (kind == "shift" and not shifted) or (kind == "strength" and path != lora):
            continue
        before = node["widgets_values"][place]
        node["widgets_values"][place] = value
        yield f"{name} {path} {node['type']} {place}", copy.deepcopy(changed), rules
        node["widgets_values"][place] = before


def test_mistakes_seeded_into_official_workflows_are_found_and_mended():
    missed, total = list[str](), Counter[str]()
    for name, workflow, rules in template_cases():
        total[rules[0]] += 1
        report = check(workflow)
        mended, left = apply_mends(workflow, [mend for found in report.findings for mend in found.mends])
        found = any(entry.rule in rules and entry.level != "note" for entry in report.findings)
        if not found or left or check(mended).findings:
            missed.append(f"{name} {rules}: {[entry.rule for entry in report.findings]} {left}")
    assert sum(total.values()) > 100, total
    assert len(missed) <= 0.05 * sum(total.values()), f"{len(missed)} of {total}\n" + "\n".join(missed)
