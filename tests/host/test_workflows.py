"""Every shipped workflow on the host's own executor, with tiny stand-ins under the names of the released files."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from released import shrunk

from devtools.generate import workflow_parts, workflow_tables, workflows
from devtools.generate.host_nodes import describe_all
from devtools.generate.workflow_builder import Graph
from pcm_core import profiles as core_profiles

ROOT = Path(__file__).resolve().parent.parent.parent
STEMS = sorted(workflow_tables.WORKFLOWS)
PICTURES = {"Distil your own": 0, "SD1.5 text to image": 2}


def api(stem: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{stem}.json").read_text("utf-8"))


def ui(stem: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{stem}.json").read_text("utf-8"))


@pytest.mark.parametrize("stem", STEMS)
def test_the_host_takes_the_workflow_as_it_is(released_files, stem):
    import execution

    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(str(uuid.uuid4()), api(stem), None))
    assert valid and outputs and not node_errors, (error, node_errors)


@pytest.mark.parametrize("stem", STEMS)
def test_it_runs(host, released_files, text_nodes, stem):
    run = host.run_prompt(shrunk(api(stem)))
    assert run.success, [data for kind, data in run.status_messages if kind == "execution_error"]
    outputs = run.history_result["outputs"]
    saved = [image for out in outputs.values() for image in out.get("images", []) if image["type"] == "output"]
    wanted = PICTURES.get(stem, 1)
    assert len([image for image in saved if "loss" not in image["filename"]]) == wanted, outputs
    for image in saved:
        path = host.base / "output" / image["subfolder"] / image["filename"]
        assert np.asarray(Image.open(path).convert("L")).std() > 0, path
    if stem == "Distil your own":
        *_, path = sorted((host.base / "output" / "loras" / "pcm").glob("my_lora*.safetensors"))
        assert core_profiles.profile_for(path).phases == 4


def test_the_files_are_what_the_script_writes(host):
    import comfyui_version

    if comfyui_version.__version__ != "0.30.0":
        pytest.skip("the workflows are written with the inputs of 0.30.0")
    infos = describe_all(host.nodes.NODE_CLASS_MAPPINGS)
    built = workflows.build(infos)
    assert workflows.GALLERY.read_text("utf-8") == workflows.gallery(infos)
    shown = set(re.findall(r"\]\((images/.+?)\)", workflows.GALLERY.read_text("utf-8")))
    assert shown == {f"images/{path.name}" for path in (ROOT / "docs" / "images").glob("*.webp")}
    for path, content in built.items():
        assert path.read_text("utf-8") == workflows.dump(content), f"run python -m devtools.generate.workflows: {path}"
    assert sorted(p for p in built if p.parent.name == "workflows") == sorted((ROOT / "workflows").glob("*.json"))
    assert sorted(p for p in built if p.parent.name == "api") == sorted((ROOT / "workflows" / "api").glob("*.json"))


def test_every_node_of_the_pack_is_in_a_workflow(host):
    ours = {name for name, info in describe_all(host.nodes.NODE_CLASS_MAPPINGS).items() if info["ours"]}
    assert ours == {node["class_type"] for stem in STEMS for node in api(stem).values()} & ours


@pytest.mark.parametrize("stem", STEMS)
def test_notes_links_and_marks(stem):
    workflow = ui(stem)
    (note,) = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert len(re.findall(r"^\d\. ", note, re.MULTILINE)) == 3, "the three settings that matter"
    for node in workflow["nodes"]:
        properties = node["properties"]
        for model in properties.get("models", []):
            assert model["name"] in node["widgets_values"], "else the frontend shows no download"
            assert model["url"].endswith(f"/{model['name']}") and model["url"] in note
        if node["type"].startswith("PCM") or node["type"] == "SamplerPCM":
            assert properties["cnr_id"] == "phased-consistency" and properties["ver"] == workflows.version()


def test_a_note_that_forgets_a_file_would_be_seen():
    """``note`` reads the files from the nodes, so a graph without nodes has none."""
    graph = Graph({}, "0.1.0")
    workflow_parts.note(graph, "Empty", ["one", "two", "three"])
    assert "huggingface" not in graph.text
