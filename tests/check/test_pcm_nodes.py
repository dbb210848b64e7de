""" "Use PCM nodes": whatever samples a few-step file becomes our nodes, or one sentence says why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from official import workflows
from right_graphs import LORA_LOADERS, RIGHT, SAMPLERS, as_ui, build, build_pair
from sampler_graphs import KINDS, OUTER, demo, in_subgraph

from pcm_core.workflow_check import apply_mends, check
from pcm_core.workflow_check.check import check_graph
from pcm_core.workflow_check.exchange import Exchange, NoExchangeError
from pcm_core.workflow_check.graph import Port
from pcm_core.workflow_check.panel import answer
from pcm_core.workflow_check.pcm_loaders import loader_steps
from pcm_core.workflow_check.pcm_nodes import Exchanges
from pcm_core.workflow_check.read import read_workflow
from pcm_core.workflow_check.schedules import ClosedForm
from pcm_core.workflow_check.values import source_node, value_of

FILE = "pcm_deterministic_4step_shift3.safetensors"
BASE = "sd3_medium.safetensors"
REFUSED = (
    "ours", "unused", "two_files", "part", "sigmas", "more_than_a_sampler", "shared", "own_models",
    "no_negative", "unsupported", "subgraphs", "nothing",
)  # fmt: skip
Form = Callable[[Any], dict[str, Any]]
LOADERS = ("UNETLoader", "LoraLoaderModelOnly", "SaveImage", "VAELoader", "VAEDecode")
FORMS: dict[str, Form] = {
    "api": lambda prompt: prompt,
    "ui": as_ui,
    "subgraph": lambda prompt: in_subgraph(as_ui(prompt)),
    "loader outside": lambda prompt: in_subgraph(as_ui(prompt), LOADERS),
    "promoted seed": lambda prompt: in_subgraph(as_ui(prompt), ("SaveImage", "PCMDemoPrompt"), "seed"),
    "subgraph in a subgraph": lambda prompt: in_subgraph(
        in_subgraph(as_ui(prompt), ("SaveImage", "UNETLoader"), "seed"), ("SaveImage",), "seed", OUTER
    ),
    "parts outside": lambda prompt: in_subgraph(as_ui(prompt), ("KSamplerSelect", "CFGGuider", "BasicGuider")),
}


def exchange(workflow: Any, index: int = 0) -> Exchange:
    graph = read_workflow(workflow)
    report = check_graph(graph, ClosedForm())
    return Exchanges(graph, report, ClosedForm()).of(report.files[index])


def exchanged(workflow: Any, index: int = 0) -> Any:
    """The workflow with our nodes, whose links are whole."""
    found = exchange(workflow, index)
    assert not found.reason, found.reason.sentence()
    result, left = apply_mends(workflow, found.steps)
    assert not left
    if "nodes" in result:
        for graph in [result, *result.get("definitions", {}).get("subgraphs", [])]:
            links_are_whole(graph)
    return result


def links_are_whole(graph: dict[str, Any]) -> None:
    """Every link is known at both its ends, and every end has a link."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    ends = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    starts = [link for node in nodes.values() for slot in node["outputs"] for link in slot["links"]]
    starts += [link for slot in graph.get("inputs", []) for link in slot["linkIds"]]
    ends += [link for slot in graph.get("outputs", []) for link in slot["linkIds"]]
    numbers = [link[0] if isinstance(link, list) else link["id"] for link in graph["links"]]
    assert sorted(ends) == sorted(starts) == sorted(numbers)
    for link in graph["links"]:
        number, origin, slot, target, entry, _ = link if isinstance(link, list) else link.values()
        assert origin == -10 or number in nodes[origin]["outputs"][slot]["links"]
        assert target == -20 or nodes[target]["inputs"][entry]["link"] == number


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_stock_sampler_becomes_ours_with_its_prompts_and_seed(kind: str, form: str):
    wrong = FORMS[form](demo(kind, 20, 7.0, FILE, BASE))
    before = copy.deepcopy(wrong)
    assert check(wrong).findings and wrong == before
    result = exchanged(wrong)
    report = check(result)
    assert not report.findings and not report.skipped
    assert report.files[0].node.type == "PCMLoraLoader"
    graph = read_workflow(result)
    for run in report.runs:
        words = graph.nodes[run.model_node or run.node.id]
        name = "positive" if "positive" in words.inputs else "conditioning"
        source = source_node(graph, words, name)
        assert source is not None and "a red circle on blue" in source.values.values()
        seeded = source_node(graph, run.node, "noise") or run.node
        if seeded.type != "DisableNoise" and run.node.values.get("add_noise") is not False:
            assert (value_of(graph, seeded, "seed").number or value_of(graph, seeded, "noise_seed").number) == 1
    if kind != "SplitSigmas" and form != "parts outside":
        assert {run.node.type for run in report.runs} == {"PCMSampler"}
        assert not {"KSamplerSelect", "BasicScheduler", "CFGGuider", "RandomNoise"} & {
            n.type for n in graph.nodes.values()
        }


@pytest.mark.parametrize("form", ["api", "ui"])
@pytest.mark.parametrize("loader", LORA_LOADERS)
def test_every_loader_and_file(loader: str, form: str):
    for right in RIGHT:
        for sampler in SAMPLERS:
            report = check(exchanged(FORMS[form](build(right, loader, sampler))))
            assert not report.findings and report.runs[0].ours, (right.file, sampler)
    report = check(exchanged(FORMS[form](build_pair(loader))))
    assert not report.findings
    assert [run.node.type for run in report.runs] == ["PCMVideoSampler"] and report.runs[0].second


def test_what_is_right_stays():
    """Steps and cfg that the file can be sampled with, a strength, denoise, what becomes of the seed."""
    prompt = demo("KSampler", 6, 1.5, "dmd2_sdxl_4step_lora_fp16.safetensors", "sd_xl_base_1.0.safetensors")
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    sampler["inputs"] |= {"denoise": 0.6, "sampler_name": "lcm", "cfg": 1.0}
    next(node for node in prompt.values() if "strength_model" in node["inputs"])["inputs"]["strength_model"] = 0.8
    made = {node["type"]: node["widgets_values"] for node in exchanged(as_ui(prompt))["nodes"]}
    assert made["PCMSampler"][:5] == [1, "randomize", 6, "auto", 0.6]
    assert made["PCMLoraLoader"][1] == 0.8


def test_a_pair_of_experts_keeps_its_split():
    prompt = build_pair()
    for node in prompt.values():
        for name, value in {"end_at_step": 1, "start_at_step": 1}.items():
            if node["inputs"].get(name) == 2:
                node["inputs"][name] = value
    result = exchanged(prompt)
    sampler = next(node for node in result.values() if node["class_type"] == "PCMVideoSampler")
    assert sampler["inputs"]["boundary"] == 938  # sigma 0.9375 of shift 5 at the first of four steps
    assert "boundary" not in str(exchanged(build_pair()))


def test_text_encoders_go_through_the_loader_as_before():
    prompt = build(RIGHT[0], "LoraLoader", "KSampler")
    loader = next(node for node in prompt.values() if node["class_type"] == "LoraLoader")
    loader["inputs"]["strength_clip"] = 0.5
    name = next(key for key, node in prompt.items() if node is loader)
    for node in prompt.values():
        if node["class_type"] == "CLIPTextEncode":
            node["inputs"]["clip"] = [name, 1]
    for form in (FORMS["api"], as_ui):
        graph = read_workflow(exchanged(form(prompt)))
        ours = next(node for node in graph.nodes.values() if node.type == "PCMLoraLoader")
        texts = [node for node in graph.nodes.values() if node.type == "CLIPTextEncode"]
        assert {graph.source(node.id, "clip") for node in texts} == {Port(ours.id, 2)} and len(texts) == 2
        assert ours.values["strength_clip"] == 0.5 and graph.source(ours.id, "clip") is not None


def test_our_sampler_behind_a_stock_loader_gets_our_loader_and_its_settings():
    prompt = demo("KSampler", 20, 7.0, FILE, BASE)
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    sampler["class_type"] = "PCMSampler"
    for name in ("sampler_name", "scheduler"):
        del sampler["inputs"][name]
    sampler["inputs"]["cfg"] = "7"
    assert check(prompt).findings
    result = exchanged(prompt)
    assert not check(result).findings and "LoraLoaderModelOnly" not in str(result)


def test_an_instance_used_twice_is_changed_once():
    workflow = in_subgraph(as_ui(demo("CFGGuider", 20, 7.0, FILE, BASE)))
    workflow["nodes"].append({**copy.deepcopy(workflow["nodes"][0]), "id": 99})
    result = exchanged(workflow)
    assert [node["type"] for node in result["definitions"]["subgraphs"][0]["nodes"]].count("PCMSampler") == 1
    assert len(check(result).runs) == 2 and not check(result).findings


def test_a_distilled_checkpoint_gets_a_sampler_that_recognizes_it():
    for loader in ("UNETLoader", "UnetLoaderGGUF"):
        prompt = demo("KSampler", 20, 4.0, "", "z_image_turbo_bf16.safetensors")
        next(node for node in prompt.values() if node["class_type"] == "UNETLoader")["class_type"] = loader
        sampler = next(n for n in exchanged(prompt).values() if n["class_type"] == "PCMSampler")
        assert "method" not in sampler["inputs"]


def test_official_workflows_get_no_new_findings():
    count = 0
    for name, workflow in list(workflows())[::4]:
        report = check(workflow)
        for index, file in enumerate(report.files):
            found = exchange(workflow, index)
            if found.reason and found.reason.key in ("unused", "unsupported", "nothing"):
                continue
            assert not found.reason, (name, found.reason.sentence())
            result, left = apply_mends(workflow, found.steps)
            known = {(entry.rule, entry.file) for entry in report.findings}
            new = [entry for entry in check(result).findings if (entry.rule, entry.file) not in known]
            assert not new and not left, (name, file.title, new)
            count += 1
    assert count > 20


def with_node(prompt: Any, kind: str, **changes: Any) -> Any:
    """A prompt with inputs of the first node of a kind changed."""
    next(node for node in prompt.values() if node["class_type"] == kind)["inputs"] |= changes
    return prompt


def refusals() -> dict[str, Any]:
    """A workflow for every reason."""
    plain = demo("KSampler", 20, 7.0, FILE, BASE)
    ours = exchanged(plain)
    unused = with_node(copy.deepcopy(plain), "KSampler", model=["3", 0])
    both = copy.deepcopy(plain)
    both["90"] = {"class_type": "LoraLoaderModelOnly", "inputs": {
        "model": ["4", 0], "lora_name": "Hyper-SD3-8steps-CFG-lora.safetensors", "strength_model": 0.125}}  # fmt: skip
    with_node(both, "KSampler", model=["90", 0])
    part = with_node(demo("KSamplerAdvanced", 20, 1.2, FILE, BASE), "KSamplerAdvanced", start_at_step=5)
    more = copy.deepcopy(plain)
    next(node for node in more.values() if node["class_type"] == "KSampler")["class_type"] = "FaceDetailer"
    image = next(node for node in more.values() if node["class_type"] == "FaceDetailer")["inputs"]
    image["image"] = image.pop("latent_image")
    sigmas = demo("CFGGuider", 20, 7.0, FILE, BASE)
    sigmas["90"] = {"class_type": "SigmasMultiply", "inputs": {"sigmas": ["8", 0], "factor": 2.0}}
    with_node(sigmas, "SamplerCustomAdvanced", sigmas=["90", 0])
    shared = demo("SplitSigmas", 20, 7.0, FILE, BASE)
    name = next(key for key, node in shared.items() if node["class_type"] == "SplitSigmas")
    guider = {"class_type": "CFGGuider", "inputs": {"model": ["3", 0], "positive": ["5", 0], "negative": ["6", 0]}}
    shared |= {"90": guider, "91": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "sampler": ["9", 0], "guider": ["90", 0], "sigmas": [name, 0], "latent_image": ["7", 0]}}}  # fmt: skip
    wan = {
        "1": {"class_type": "WanVideoLoraSelect", "inputs": {
            "lora": "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors", "strength": 1.0}},
        "2": {"class_type": "WanVideoModelLoader", "inputs": {"model": "wan2.1_t2v_14B.safetensors", "lora": ["1", 0]}},
        "3": {"class_type": "WanVideoSampler", "inputs": {
            "model": ["2", 0], "steps": 30, "cfg": 6.0, "shift": 5.0, "scheduler": "unipc", "seed": 1}},
    }  # fmt: skip
    basic = demo("BasicGuider", 20, 1.0, "Hyper-SD3-8steps-CFG-lora.safetensors", BASE)
    apart = demo("SplitSigmas", 20, 7.0, FILE, BASE)
    scheduler = next(node for node in apart.values() if node["class_type"] == "BasicScheduler")
    scheduler["class_type"] = "AlignYourStepsScheduler"
    scheduler["inputs"] = {"model_type": "SDXL", "steps": 20, "denoise": 1.0}
    apart = in_subgraph(as_ui(apart), ("AlignYourStepsScheduler",))
    unsupported = demo("KSampler", 20, 7.0, "", "causal_forcing-framewise.safetensors")
    nothing = demo("CFGGuider", 8, 1.0, "", "ltx-2.5-22b-distilled-transformer-comfy-int8-convrot.safetensors")
    for node in nothing.values():
        if node["class_type"] == "BasicScheduler":
            node |= {"class_type": "ManualSigmas", "inputs": {"sigmas": "0.85, 0.7250, 0.4219, 0.0"}}
        if node["class_type"] == "KSamplerSelect":
            node |= {"class_type": "SamplerEulerAncestral", "inputs": {"eta": 0.0, "s_noise": 1.0}}
        if node["class_type"] == "CFGGuider":
            node["class_type"] = "LTXVDualCFGGuider"
    return {
        "ours": ours, "unused": unused, "two_files": both, "part": part, "sigmas": sigmas,
        "more_than_a_sampler": more, "shared": shared, "own_models": wan,
        "no_negative": basic, "unsupported": unsupported, "subgraphs": apart, "nothing": nothing,
    }  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_where_it_cannot_one_sentence_says_why(reason: str):
    workflow = refusals()[reason]
    found = exchange(workflow)
    assert found.reason and found.reason.key == reason and not found.steps, found
    for language in ("en", "zh"):
        assert found.reason.sentence(language).endswith("." if language == "en" else "\u3002")


def test_settings_have_no_place_where_the_model_does_not_pass_the_file():
    prompt = demo("KSampler", 20, 7.0, FILE, BASE)
    for node in prompt.values():
        if node["class_type"] == "LoraLoaderModelOnly":
            node["class_type"] = "A loader of another pack"
    graph = read_workflow(prompt)
    report = check_graph(graph, ClosedForm())
    (run,), (file,) = report.runs, report.files
    assert [type(step).__name__ for step in loader_steps(graph, run, file)] == ["InsertAfter"]
    with pytest.raises(NoExchangeError) as no:
        loader_steps(graph, replace(run, model_input="none"), file)
    assert no.value.reason.key == "unused"


def test_the_panel_gets_the_steps_or_the_sentence():
    wrong = as_ui(demo("KSampler", 20, 7.0, FILE, BASE))
    (file,) = answer({"workflow": wrong}, ClosedForm())["files"]
    assert {step["kind"] for step in file["pcm_nodes"]} == {"Replace", "Remove"} and not file["pcm_reason"]
    (file,) = answer({"workflow": refusals()["part"], "language": "zh"}, ClosedForm())["files"]
    assert not file["pcm_nodes"] and "\u8bf7\u5148" in file["pcm_reason"]
