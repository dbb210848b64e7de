"""Values that other nodes compute: worked out where that is pure, named where it is not."""

from __future__ import annotations

import time
from typing import Any

import pytest
from right_graphs import as_ui, build, right

from pcm_core.workflow_check import check
from pcm_core.workflow_check.arithmetic import formula
from pcm_core.workflow_check.read import read_workflow
from pcm_core.workflow_check.values import value_of

A, B = 6, 2
# A node that gives 12 of 6 and 2, or passes one of them on: (type, inputs, output).
COMPUTES: list[tuple[str, dict[str, Any], int]] = [
    ("ComfyMathExpression", {"expression": "a * b", "values.a": A, "values.b": B}, 1),
    ("ComfyMathExpression", {"expression": "12 if a > b else 4", "values.a": ["a", 0], "values.b": ["b", 0]}, 1),
    ("SimpleMath+", {"value": "a*b", "a": ["a", 0], "b": ["b", 0]}, 0),
    ("MathExpression|pysssh", {"expression": "a + b + 4", "a": ["a", 0], "b": ["b", 0]}, 0),
    ("SimpleCalculatorKJ", {"expression": "max(a, b) * 2", "a": ["a", 0], "b": ["b", 0]}, 1),
    ("CM_IntBinaryOperation", {"op": "Mul", "a": ["a", 0], "b": ["b", 0]}, 0),
    ("easy mathInt", {"a": 25, "b": ["b", 0], "operation": "divide"}, 0),
    ("Number Operation", {"number_a": ["a", 0], "number_b": ["b", 0], "operation": "multiplication"}, 0),
    ("ComfyNumberConvert", {"value": "12"}, 1),
    ("ComfySwitchNode", {"switch": ["yes", 0], "on_true": ["twelve", 0], "on_false": ["b", 0]}, 0),
    ("LazySwitchKJ", {"switch": False, "on_true": ["a", 0], "on_false": ["twelve", 0]}, 0),
    ("ImpactSwitch", {"select": 2, "input1": ["a", 0], "input2": ["twelve", 0]}, 0),
    ("Any Switch (rgthree)", {"any_01": ["gone", 0], "any_02": ["twelve", 0], "any_03": ["b", 0]}, 0),
    ("easy anythingIndexSwitch", {"index": ["b", 0], "value1": ["a", 0], "value2": ["twelve", 0]}, 0),
    ("INTConstant", {"value": 12}, 0),
    ("easy int", {"value": 12}, 0),
    ("Seed (rgthree)", {"seed": 12}, 0),
    ("JWInteger", {"value": 12}, 0),
    ("Int Literal", {"int": 12}, 0),
]
GIVEN = {
    "a": {"class_type": "PrimitiveInt", "inputs": {"value": A}},
    "b": {"class_type": "INTConstant", "inputs": {"value": B}},
    "yes": {"class_type": "ComfyNotNode", "inputs": {"value": False}},
    "twelve": {"class_type": "PrimitiveInt", "inputs": {"value": 12}},
}


@pytest.mark.parametrize(("kind", "inputs", "slot"), COMPUTES, ids=lambda value: str(value)[:40])
def test_what_common_nodes_compute_is_worked_out(kind: str, inputs: dict[str, Any], slot: int):
    prompt = build(right("pcm_sdxl_small")) | GIVEN | {"made": {"class_type": kind, "inputs": inputs}}
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["steps"] = ["made", slot]
    report = check(prompt)
    assert [(found.rule, found.facts["have"]) for found in report.findings] == [("steps", 12)] and not report.skipped


@pytest.mark.parametrize("kind", ["Some Math", "ComfyMathExpression", "FL_RandomNumber", "ImpactWildcardProcessor"])
def test_what_is_not_known_is_named_with_the_node_that_computes_it(kind: str):
    inputs = {"expression": "a ** b ** c ** __import__", "values.a": ["a", 0], "seed": 4}
    prompt = build(right("pcm_sdxl_small")) | GIVEN
    prompt["made"] = {"class_type": kind, "inputs": inputs, "_meta": {"title": "The count"}}
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    sampler["inputs"] |= {"steps": ["made", 0], "cfg": ["made", 0]}
    report = check(prompt)
    said = [note.sentence() for note in report.skipped]
    assert not report.findings and len(said) == 2
    assert "could not be judged because The count computes it" in said[0]


@pytest.mark.parametrize("text", [
    "", "a", "1 +", "(" * 400, "a.b", "a()", "__import__('os')", "9**9**9**9", "[1]", "'x' * 9", "lambda: 1", "1 / 0",
    "1e400", "(-8) ** 0.5", "10 ** 400", "a if", "x" * 1000, "\x00", "max()", "pow(1)", "int('7')",
])  # fmt: skip
def test_what_is_no_arithmetic_is_none(text: str):
    assert formula(text, {}) is None


def test_a_ladder_of_formulas_takes_no_time_and_a_loop_ends():
    """Every node uses the one before twice: told apart, that would be 2 ** 300 readings."""
    prompt: dict[str, Any] = build(right("pcm_sdxl_small"))
    for index in range(300):
        before = [f"m{index - 1}", 1]
        prompt[f"m{index}"] = {"class_type": "ComfyMathExpression", "inputs": {
            "expression": "a + b", "values.a": before, "values.b": before}}  # fmt: skip
    prompt["m0"]["inputs"] |= {"values.a": ["m299", 1]}
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["steps"] = ["m299", 1]
    started = time.process_time()
    report = check(prompt)
    assert time.process_time() - started < 1 and not report.findings and report.skipped


def test_saved_primitives_and_set_get_pairs_reach_the_value():
    ui = as_ui(build(right("pcm_sdxl_small", steps=20)), primitive=True)
    sampler = next(node for node in ui["nodes"] if node["type"] == "KSampler")
    slot = next(slot for slot in sampler["inputs"] if slot["name"] == "steps")
    link = next(link for link in ui["links"] if link[0] == slot["link"])
    primitive = next(node for node in ui["nodes"] if node["id"] == link[1])
    primitive |= {"type": "PrimitiveNode", "widgets_values": [20, "fixed"]}
    graph = read_workflow(ui)
    found = value_of(graph, graph.nodes[str(sampler["id"])], "steps")
    assert found.value == 20 and found.place and found.place.node == str(primitive["id"])
    link[1] = 901
    set_link = [900, primitive["id"], 0, 902, 0, "INT"]
    ui["links"].append(set_link)
    primitive["outputs"][0]["links"] = [900]
    ui["nodes"] += [
        {"id": 901, "type": "GetNode", "inputs": [], "outputs": [{"name": "INT", "type": "INT", "links": [link[0]]}],
         "widgets_values": ["n"]},
        {"id": 902, "type": "SetNode", "inputs": [{"name": "INT", "type": "INT", "link": 900}], "outputs": [],
         "widgets_values": ["n"]},
    ]  # fmt: skip
    assert [entry.rule for entry in check(ui).findings] == ["steps"]
