"""ComfyUI's own workflow templates: every few-step file known, with the official settings or a reviewed reason."""

from __future__ import annotations

import json

import pytest

from devtools.generate import templates_page
from devtools.paths import OFFICIAL_TEMPLATES
from devtools.templates import review
from devtools.templates.graph import Graph, templates
from devtools.templates.uses import all_uses

pytestmark = pytest.mark.skipif(not OFFICIAL_TEMPLATES.is_dir(), reason="dev.py installs the templates")


@pytest.fixture(scope="module", autouse=True)
def _this_host_has_the_models(host):
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "MiniMaxH3"):
        pytest.skip("this host lacks most of the architectures of today's templates")


def test_the_reader_sees_the_templates():
    assert sum(1 for _ in templates()) > 600 and len(all_uses()) > 200
    files = review.few_step_files()
    assert len([file for file in files if file.lora]) >= 25 and len(files) >= 60
    assert sum(len(file.compared) for file in files) > 100


def test_every_few_step_file_is_known():
    assert review.unknown_files() == {}


def test_settings_are_the_official_ones_or_differ_for_a_reviewed_reason():
    assert review.unexplained() == []
    assert review.stale() == []
    assert all(len(row["reason"]) > 30 for row in review.reviewed()["exceptions"])


def test_no_style_lora_gets_a_few_step_profile():
    found = sorted(file.name for file in review.few_step_files() if file.lora)
    assert found == review.reviewed()["few_step_loras"]


def test_later_stages_are_reached_by_denoise():
    stages = [found for file in review.few_step_files() for found in file.compared if found.denoise < 1]
    assert len(stages) > 10 and {found.verdict for found in stages} == {"same by denoise"}


def test_the_page_is_what_the_script_writes():
    assert templates_page.PAGE.read_text("utf-8") == templates_page.page()


def test_a_switch_is_read_in_both_positions():
    """image_qwen_image has a switch that turns the LoRA on: both settings are found."""
    uses = all_uses()["qwen_image_fp8_e4m3fn.safetensors"]
    assert {use.steps for use in uses if use.template == "image_qwen_image"} >= {8}
    (workflow,) = [workflow for name, workflow in templates() if name == "image_qwen_image"]
    assert json.dumps(workflow) and any(node.type == "KSampler" for node in Graph(workflow).nodes.values())
