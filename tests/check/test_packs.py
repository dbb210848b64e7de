"""Graphs of people who use other packs: loaders with several slots, switches, pipes, wrappers, old and odd files."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from right_graphs import as_ui, build, build_pair, right

from pcm_core.workflow_check import apply_mends, check, read_file
from pcm_core.workflow_check.panel import answer
from pcm_core.workflow_check.schedules import ClosedForm

FILE, OTHER, BASE = "Hyper-SDXL-8steps-lora.safetensors", "detail_tweaker.safetensors", "sd_xl_base_1.0.safetensors"
BARE = FILE.removesuffix(".safetensors")
# (inputs as API, what comes in, what goes out), for a strength and whether the slot is on. Inputs in the order of the
# widgets; the UI form stores their values.
Loader = tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]


def loaders(s: float, on: bool) -> dict[str, Loader]:
    zero = s if on else 0
    both, stack = ("MODEL", "CLIP"), ("LORA_STACK",)
    switch = "On" if on else "Off"
    simple = {"lora_name": FILE, "strength_model": zero, "strength_clip": 1.0}
    efficient = {"lora_name": FILE, "lora_model_strength": zero, "lora_clip_strength": 1.0}
    rows = {"lora_1": {"on": True, "lora": OTHER, "strength": 0.6}, "lora_2": {"on": on, "lora": FILE, "strength": s}}
    return {
        "Power Lora Loader (rgthree)": (rows, both, both),
        "Lora Loader Stack (rgthree)": (
            {"lora_01": OTHER, "strength_01": 0.6, "lora_02": FILE, "strength_02": zero, "lora_03": "None",
             "strength_03": 1.0}, both, both,
        ),
        "CR LoRA Stack": (
            {"switch_1": "On", "lora_name_1": OTHER, "model_weight_1": 0.5, "clip_weight_1": 0.5, "switch_2": switch,
             "lora_name_2": FILE, "model_weight_2": s, "clip_weight_2": s}, (), stack,
        ),
        "LoRA Stacker": (
            {"input_mode": "simple", "lora_count": 1 + on, "lora_name_1": OTHER, "lora_wt_1": 0.5, "model_str_1": 1.0,
             "clip_str_1": 1.0, "lora_name_2": FILE, "lora_wt_2": s, "model_str_2": 3.0, "clip_str_2": 1.0}, (), stack,
        ),
        "easy loraStack": (
            {"toggle": on, "mode": "advanced", "num_loras": 2, "lora_1_name": OTHER, "lora_1_strength": 0.5,
             "lora_1_model_strength": 1.0, "lora_1_clip_strength": 1.0, "lora_2_name": FILE, "lora_2_strength": 3.0,
             "lora_2_model_strength": s, "lora_2_clip_strength": 1.0}, (), stack,
        ),
        "Efficient Loader": ({"ckpt_name": BASE, "vae_name": "Baked VAE", "clip_skip": -1, **efficient}, (), both),
        "easy a1111Loader": ({"ckpt_name": BASE, "vae_name": "Baked VAE", "clip_skip": -1, **efficient}, (), both),
        "easy comfyLoader": ({"ckpt_name": BASE, "vae_name": "Baked VAE", "clip_skip": -1, **efficient}, (), both),
        "LoraLoaderBlockWeight //Inspire": ({"category_filter": "All", **simple}, both, both),
        "NunchakuFluxLoraLoader": ({"lora_name": FILE, "lora_strength": zero}, ("MODEL",), ("MODEL",)),
        "Some Lora Loader": (simple, both, both),
        "Lora Loader (LoraManager)": (
            {"text": f"<lora:{BARE}:{s}>", "loras": [{"name": BARE, "strength": s, "active": on}]}, both, both,
        ),
    }  # fmt: skip


def graph(loader: str, form: str, steps: int = 8, strength: float = 1.0, on: bool = True) -> dict[str, Any]:
    """A checkpoint, one loader and KSampler; ``form``: api, ui (names of widgets not written) or named."""
    inputs, takes, gives = loaders(strength, on)[loader]
    sockets = {"MODEL": "model", "CLIP": "clip", "LORA_STACK": "lora_stack", "LATENT": "latent_image"}
    links: dict[str, dict[str, list[Any]]] = {"2": {sockets[kind]: ["1", slot] for slot, kind in enumerate(takes)}}
    model = "2"
    kinds = {"1": "CheckpointLoaderSimple", "2": loader, "9": "KSampler"}
    outputs = {"1": ["MODEL", "CLIP", "VAE"], "2": list(gives), "9": ["LATENT"]}
    sampler = {
        "seed": 1,
        "steps": steps,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "sgm_uniform",
        "denoise": 1.0,
    }
    widgets: dict[str, dict[str, Any]] = {"1": {"ckpt_name": BASE}, "2": inputs, "9": sampler}
    if gives == ("LORA_STACK",):
        model, kinds["3"], widgets["3"], outputs["3"] = "3", "CR Apply LoRA Stack", {}, ["MODEL", "CLIP"]
        links["3"] = {"model": ["1", 0], "clip": ["1", 1], "lora_stack": ["2", 0]}
    kinds["8"], widgets["8"], outputs["8"] = (
        "EmptyLatentImage",
        {"width": 512, "height": 512, "batch_size": 1},
        ["LATENT"],
    )
    links["9"] = {"model": [model, 0], "latent_image": ["8", 0]}
    if form == "api":
        return {key: {"class_type": kinds[key], "inputs": {**widgets[key], **links.get(key, {})}} for key in kinds}
    types = {name: kind for kind, name in sockets.items()}
    nodes: dict[str, Any] = {}
    for key, kind in kinds.items():
        slots = [{"name": name, "type": types[name], "link": None} for name in links.get(key, {})]
        if form == "named" and key == "2":
            slots += [{"name": name, "type": _kind(value), "link": None, "widget": {"name": name}}
                      for name, value in inputs.items() if not isinstance(value, (dict, list))]  # fmt: skip
        values = [value for name, value in widgets[key].items()]
        values = [*values[:1], "fixed", *values[1:]] if key == "9" else values
        nodes[key] = {"id": int(key), "type": kind, "pos": [0, 0], "mode": 0, "inputs": slots, "widgets_values": values,
                      "outputs": [{"name": out, "type": out, "links": []} for out in outputs[key]]}  # fmt: skip
    written: list[list[Any]] = []
    for key, entries in links.items():
        for name, (source, slot) in entries.items():
            place = next(i for i, entry in enumerate(nodes[key]["inputs"]) if entry["name"] == name)
            written.append([len(written) + 1, int(source), slot, int(key), place, types[name]])
            nodes[key]["inputs"][place]["link"] = len(written)
            nodes[source]["outputs"][slot]["links"].append(len(written))
    return {"version": 0.4, "nodes": list(nodes.values()), "links": written, "last_node_id": 9,
            "last_link_id": len(written), "extra": {}}  # fmt: skip


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "BOOLEAN"
    return "INT" if isinstance(value, int) else "FLOAT" if isinstance(value, float) else "COMBO"


def rules(workflow: Any) -> list[str]:
    return [found.rule for found in check(workflow).findings]


@pytest.mark.parametrize("form", ["api", "ui", "named"])
@pytest.mark.parametrize("loader", loaders(1, True))
def test_loaders_of_other_packs(loader: str, form: str):
    """The slot that is on, its strength and only that; mended where it is kept; exchanged for ours."""
    assert not rules(graph(loader, form)) and len(check(graph(loader, form)).runs) == 1
    for wrong, rule in ((graph(loader, form, steps=20), "steps"), (graph(loader, form, strength=0.2), "strength")):
        report = check(wrong)
        assert [found.rule for found in report.findings] == [rule]
        mended, left = apply_mends(wrong, [mend for found in report.findings for mend in found.mends])
        assert not left and not rules(mended), (rule, check(mended).findings)
    (file,) = answer({"workflow": graph(loader, form, steps=20)}, ClosedForm())["files"]
    assert file["pcm_nodes"], file["pcm_reason"]
    if form == "ui" and loader in ("easy loraStack", "easy a1111Loader"):
        return  # a file of an old frontend does not name the switch
    off = check(graph(loader, form, steps=20, on=False))
    assert not off.findings and [entry.active for entry in off.files] == [False]


def prompt_with(changes: dict[str, Any], **sampler: Any) -> dict[str, Any]:
    """The right prompt of an SDXL LoRA with further nodes, and changes to its sampler."""
    prompt = build(right("pcm_sdxl_small")) | changes
    next(node for node in prompt.values() if node["class_type"] == "KSampler")["inputs"] |= sampler
    return prompt


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


LORA = ["5", 0]  # of build: 3 is the text encoder, 4 the model, 5 the LoRA, 6 a patch
BASE_MODEL = ["4", 0]
WAYS: dict[str, dict[str, Any]] = {
    "any switch": {"90": node("Any Switch (rgthree)", any_01=["77", 0], any_02=LORA, any_03=BASE_MODEL)},
    "model switch": {"90": node("CR Model Input Switch", Input=2, model1=BASE_MODEL, model2=LORA)},
    "index switch": {"90": node("ImpactSwitch", select=2, input1=BASE_MODEL, input2=LORA)},
    "two-way switch": {"90": node("LazySwitchKJ", switch=["91", 0], on_true=LORA, on_false=BASE_MODEL),
                       "91": node("PrimitiveBoolean", value=True)},
    "context": {"91": node("Context (rgthree)", model=LORA), "90": node("Context (rgthree)", base_ctx=["91", 0])},
    "pipe": {"91": node("ToBasicPipe", model=LORA), "90": node("FromBasicPipe", basic_pipe=["91", 0])},
    "reroutes": {"91": node("Reroute", model=LORA), "90": node("Reroute", model=["91", 0])},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_the_model_through_other_packs(way: str):
    assert rules(prompt_with(WAYS[way], model=["90", 0], steps=20)) == ["steps"]
    assert not rules(prompt_with(WAYS[way], model=["90", 0]))


@pytest.mark.parametrize("way", ["any switch", "model switch", "index switch", "two-way switch"])
def test_the_branch_that_is_off_is_not_judged(way: str):
    swapped = json.loads(json.dumps(WAYS[way]).replace('["5", 0]', "LORA").replace('["4", 0]', '["5", 0]')
                         .replace("LORA", '["4", 0]'))  # fmt: skip
    assert not rules(prompt_with(swapped, model=["90", 0], steps=20))


def test_a_second_pass_and_two_samplers_on_one_loader():
    sampler = prompt_with({})["10"]["inputs"]
    hires = node("KSampler", **sampler) | {}
    hires["inputs"] |= {"latent_image": ["90", 0], "denoise": 0.5}
    prompt = prompt_with({"90": node("LatentUpscaleBy", samples=["10", 0], scale_by=1.5), "91": hires})
    assert not rules(prompt) and len(check(prompt).runs) == 2
    hires["inputs"] |= {"steps": 30, "cfg": 8.0}
    found = check(prompt)
    assert sorted(entry.rule for entry in found.findings) == ["cfg_range", "steps"]
    (file,) = answer({"workflow": prompt}, ClosedForm())["files"]
    samplers = [step for step in file["pcm_nodes"] if step.get("type") == "PCMSampler"]
    assert [dict(step["values"]).get("denoise") for step in samplers] == [None, 0.5]


def test_wrappers_of_a_sampler_are_looked_into():
    prompt = build(right("pcm_sdxl_small"), sampler="SamplerCustomAdvanced")
    key = next(key for key, entry in prompt.items() if entry["class_type"] == "SamplerCustomAdvanced")
    inputs = prompt[key]["inputs"]
    prompt |= {
        "90": node("DetailDaemonSamplerNode", sampler=inputs["sampler"], detail_amount=0.1),
        "91": node("MultiplySigmas", sigmas=inputs["sigmas"], factor=0.98),
    }
    inputs |= {"sampler": ["90", 0], "sigmas": ["91", 0]}
    assert not rules(prompt)
    for kind, name, value, rule in (
        ("KSamplerSelect", "sampler_name", "dpmpp_sde", "sampler_fixed"), ("BasicScheduler", "steps", 30, "steps"),
    ):  # fmt: skip
        entry = next(entry for entry in prompt.values() if entry["class_type"] == kind)["inputs"]
        before, entry[name] = entry[name], value
        assert rules(prompt) == [rule]
        entry[name] = before


def test_easy_use_samples_through_its_pipe():
    loader = graph("easy a1111Loader", "api")["2"]
    pre = node("easy preSampling", pipe=["2", 0], steps=30, cfg=7.0, sampler_name="euler", scheduler="sgm_uniform",
               denoise=1.0, seed=1)  # fmt: skip
    prompt = {"2": loader, "3": pre, "4": node("easy kSampler", pipe=["3", 0])}
    assert sorted(rules(prompt)) == ["cfg", "steps"]
    (file,) = answer({"workflow": prompt}, ClosedForm())["files"]
    assert "PCM" in file["pcm_reason"] and not file["pcm_nodes"]


def test_one_sampler_for_two_experts():
    """Of other packs: both experts go into one node."""
    prompt = build_pair()
    samplers = [key for key, entry in prompt.items() if entry["class_type"] == "KSamplerAdvanced"]
    high, low = (prompt.pop(key)["inputs"] for key in samplers)
    words = {name: high[name] for name in ("positive", "negative", "latent_image")}
    made = node("WanMoeKSampler", model_high_noise=high["model"], model_low_noise=low["model"], steps=30, **words,
                cfg_high_noise=1.0, cfg_low_noise=1.0, sampler_name="euler", scheduler="simple", seed=1,
                sigma_shift=5.0, boundary=0.875)  # fmt: skip
    prompt["90"] = made
    assert "steps" in rules(prompt)
    made["inputs"] |= {"steps": 4}
    assert not rules(prompt)
    made["inputs"] |= {"model_high_noise": low["model"], "model_low_noise": high["model"], "cfg_high_noise": 6.0}
    assert {"cfg", "expert_half"} == set(rules(prompt))


def test_muted_and_bypassed_loaders_change_nothing_and_are_named():
    for mode in (2, 4):
        ui = graph("Some Lora Loader", "ui", steps=20)
        next(entry for entry in ui["nodes"] if entry["id"] == 2)["mode"] = mode
        report = check(ui)
        assert not report.findings and [file.active for file in report.files] == [False]


def test_what_is_given_everywhere_reaches_the_sampler():
    """cg-use-everywhere: the sampler's model input has no link in the file."""
    ui = as_ui(prompt_with({}, steps=20))
    sampler = next(entry for entry in ui["nodes"] if entry["type"] == "KSampler")
    slot = next(slot for slot in sampler["inputs"] if slot["name"] == "model")
    link = next(link for link in ui["links"] if link[0] == slot["link"])
    slot["link"] = None
    assert not check(ui).findings
    link[3:5] = [90, 0]
    everywhere = {"id": 90, "type": "Anything Everywhere", "mode": 0, "outputs": [], "widgets_values": [],
                  "inputs": [{"name": "MODEL", "type": "*", "link": link[0]}]}  # fmt: skip
    ui["nodes"].append(everywhere)
    assert rules(ui) == ["steps"]
    everywhere["mode"] = 2
    assert not check(ui).findings


def test_a_checkpoint_in_a_loader_with_loras_is_one():
    for kind, name in (("Checkpoint and LoRA Loader", "ckpt_name"), ("LoRA Diffusion Loader", "unet_name")):
        prompt = prompt_with({"4": node(kind, **{name: "z_image_turbo_bf16.safetensors"})}, model=BASE_MODEL)
        (file,) = [file for file in check(prompt).files if file.kind == "checkpoint"]
        assert file.profile.method == "Z-Image-Turbo"


def test_a_group_node_is_named_as_not_opened():
    ui = graph("Some Lora Loader", "ui")
    ui["nodes"].append(
        {"id": 50, "type": "workflow>My group", "inputs": [], "outputs": [], "widgets_values": [FILE, 20]}
    )
    said = [note.sentence() for note in check(ui).skipped]
    assert len(said) == 1 and said[0].startswith("The group node workflow>My group (50) was not opened; convert it")


@pytest.mark.parametrize("text", [False, True])
def test_what_a_picture_holds_is_read_and_mended(text: bool, tmp_path: Path):
    prompt = prompt_with({}, steps=20)
    parts = {"workflow": as_ui(prompt), "prompt": prompt}
    whole = {name: json.dumps(part) if text else part for name, part in parts.items()}
    for data in (whole, {"prompt": whole["prompt"]}, {"prompt": whole["prompt"], "workflow": "nonsense"}):
        report = check(data)
        assert [found.rule for found in report.findings] == ["steps"]
        mended, left = apply_mends(data, report.findings[0].mends)
        assert not left and not rules(mended) and mended.keys() == data.keys()
    info = PngInfo()
    for name, part in parts.items():
        info.add_text(name, json.dumps(part))
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    assert rules(read_file(path)) == ["steps"]


def test_widget_values_by_name_and_wrapped_lists():
    """Nodes of some packs store an object; an API prompt wraps lists, or they would be links."""
    ui = graph("Some Lora Loader", "ui", steps=20)
    loader = next(entry for entry in ui["nodes"] if entry["id"] == 2)
    loader["widgets_values"] = {"lora_name": FILE, "strength_model": 0.1, "strength_clip": 1.0}
    report = check(ui)
    assert sorted(found.rule for found in report.findings) == ["steps", "strength"]
    mended, left = apply_mends(ui, [mend for found in report.findings for mend in found.mends])
    assert not left and not rules(mended)
    prompt = graph("Lora Loader (LoraManager)", "api", steps=20, strength=0.1)
    loras = prompt["2"]["inputs"]["loras"]
    prompt["2"]["inputs"] |= {"loras": {"__value__": loras}, "nested": [[1, 2], ["3", 0]], "deep": [[[["5", 0]]]]}
    report = check(prompt)
    assert sorted(found.rule for found in report.findings) == ["steps", "strength"]
    mended, _ = apply_mends(prompt, [mend for found in report.findings for mend in found.mends])
    assert mended["2"]["inputs"]["loras"]["__value__"][0]["strength"] == 1 and not rules(mended)


def test_an_older_frontend_names_those_widgets_alone_that_are_inputs():
    ui = graph("Efficient Loader", "ui", steps=20)
    loader = next(entry for entry in ui["nodes"] if entry["id"] == 2)
    loader["type"] = "Another Loader with LoRA"
    loader["inputs"].append({"name": "clip_skip", "type": "INT", "link": None, "widget": {"name": "clip_skip"}})
    assert rules(ui) == ["steps"]
