"""PCM Settings in a workflow: what it names is what the sampler is judged by, and the shift it sets counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pcm_core.workflow_check.check import Report, check
from pcm_core.workflow_check.node_bars import node_bar
from pcm_core.workflow_check.read import read_workflow
from pcm_core.workflow_check.schedules import ClosedForm

LORA = "Qwen-Image-Lightning-4steps-V1.0.safetensors"
SAMPLER = {"seed": 1, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def prompt(settings: dict[str, Any], lora: str = LORA, model: str = "qwen_image_bf16.sft", **sampler: Any) -> Any:
    """UNETLoader, Power Lora Loader, PCM Settings, KSampler."""
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": model, "weight_dtype": "default"}},
        "2": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
            "model": ["1", 0], "lora_1": {"on": True, "lora": lora, "strength": 1.0}}},
        "3": {"class_type": "PCMSettings", "inputs": {"model": ["2", 0], "method": "auto", **settings}},
        "4": {"class_type": "KSampler", "inputs": {"model": ["3", 0], **SAMPLER, **sampler}},
    }  # fmt: skip


def rules(report: Report) -> set[tuple[str, str]]:
    return {(found.rule, found.level) for found in report.findings}


@pytest.mark.parametrize("settings", [{"file_name": LORA}, {"method": "Qwen-Image-Lightning 4 steps"}])
def test_the_shift_it_sets_is_seen(settings: dict[str, Any]):
    assert rules(check(prompt(settings))) == set()
    without = copy.deepcopy(prompt(settings))
    without["4"]["inputs"]["model"] = ["2", 0]
    assert {rule for rule, _ in rules(check(without))} == {"shift_missing", "unused"}


def test_the_sampler_is_judged_by_it():
    unnamed = prompt({"method": "Qwen-Image-Lightning 8 steps"}, lora="my_own.safetensors", steps=20, cfg=4.0)
    assert rules(check(unnamed)) == {("steps", "wrong"), ("cfg", "wrong")}


def test_another_method_than_the_lora_is_two():
    assert ("two_files", "wrong") in rules(check(prompt({"method": "Qwen-Image-Lightning 8 steps"}, steps=8)))


def test_the_strength_of_the_lora_is_still_judged():
    weak = prompt({"file_name": LORA})
    weak["2"]["inputs"]["lora_1"]["strength"] = 0.1
    assert rules(check(weak)) == {("strength", "wrong")}


def test_auto_sets_the_shift_of_the_checkpoint():
    sampler: dict[str, Any] = {"steps": 16, "sampler_name": "lcm", "scheduler": "normal"}
    given = prompt({}, "my_style.safetensors", "hidream_i1_fast_fp8.safetensors", **sampler)
    assert rules(check(given)) == set()


@pytest.mark.parametrize(
    ("sampler", "settings", "steps"),
    [({}, {"file_name": LORA}, 4), ({"method": "Qwen-Image-Lightning 8 steps"}, {"file_name": LORA}, 8),
     ({"method": "none", "steps": 5}, {"file_name": LORA}, 5)],
)  # fmt: skip
def test_the_bar_of_a_sampler_behind_it(sampler: dict[str, Any], settings: dict[str, Any], steps: int):
    given = prompt(settings)
    given["4"] = {"class_type": "PCMSampler", "inputs": {"model": ["3", 0], "steps": 0, "cfg": "auto", **sampler}}
    graph = read_workflow(given)
    bar = node_bar(graph, graph.nodes["4"], ClosedForm())
    assert len(bar.levels) == steps + 1
    if steps == 4:
        assert bar.levels[1] == pytest.approx(0.9, abs=1e-3)
