"""Whole prompts through the host's validation and executor: what is refused, and that the next prompt runs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def give(zoo, stand_ins):
    """Test nodes that hand out a tiny model, its conditioning and latent; and what was taken in the end."""
    tiny = zoo["eps"]
    return stand_ins(
        GiveModel=("MODEL", tiny.model), GiveCond=("CONDITIONING", tiny.positive), GiveLatent=("LATENT", tiny.latent())
    )


def prompt(**settings):
    inputs = {"model": ["m", 0], "positive": ["c", 0], "negative": ["c", 0], "latent_image": ["l", 0], "seed": 1}
    defaults = {
        "steps": 2, "cfg": "1", "denoise": 1.0, "phases": 0, "spacing": "auto", "terminal": "auto", "grid": 0,
        "spend_extra_steps": False, "determinism": -1.0, "gamma": -1.0, "add_noise": True, "start_step": 0,
        "end_step": 10000, "return_with_leftover_noise": False,
    }  # fmt: skip
    nodes = {
        "m": ("GiveModel", {}), "c": ("GiveCond", {}), "l": ("GiveLatent", {}),
        "s": ("PCMSampler", {**inputs, **defaults, **settings}), "t": ("Take", {"value": ["s", 0]}),
    }  # fmt: skip
    return {key: {"class_type": c, "inputs": i, "_meta": {"title": c}} for key, (c, i) in nodes.items()}


def test_a_prompt_runs(host, give):
    executor = host.run_prompt(prompt())
    assert executor.success and len(give) == 1


def test_a_prompt_names_what_it_must_and_the_rest_is_the_default(host, give):
    """faults.md 32: so that a new widget breaks no stored prompt."""
    short = prompt()
    kept = ("model", "positive", "negative", "latent_image", "seed")
    short["s"]["inputs"] = {name: value for name, value in short["s"]["inputs"].items() if name in kept}
    assert host.run_prompt(short).success and host.run_prompt(prompt(steps=0, cfg="auto")).success
    assert torch.equal(*[latent["samples"] for latent in give])


@pytest.mark.parametrize("cfg", ["2", 2.0, 2])
def test_cfg_is_a_text_or_a_number(host, give, stand_ins, cfg):
    """Also by a link: primitives and other packs' numbers are FLOAT (faults.md 31)."""
    kind = {str: "STRING", float: "FLOAT", int: "INT"}[type(cfg)]
    stand_ins(GiveCfg=(kind, cfg))
    linked = prompt(cfg=["n", 0]) | {"n": {"class_type": "GiveCfg", "inputs": {}}}
    assert host.run_prompt(linked).success and host.run_prompt(prompt(cfg=cfg)).success
    assert host.run_prompt(prompt(cfg="2")).success
    results = [latent["samples"] for latent in give]
    assert len(results) == 3 and all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"denoise": math.nan}, "denoise is nan"),
        ({"cfg": "nan"}, 'cfg contains "nan"'),
        ({"cfg": "5, 1, 1"}, "cfg has 3 values for a model of 2 phases"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"grid": 48}, "48 points"),
    ],
)
def test_refusals_reach_the_user_and_the_next_prompt_works(host, give, settings, found):
    executor = host.run_prompt(prompt(**settings))
    (error,) = [message for kind, message in executor.status_messages if kind == "execution_error"]
    assert found in error["exception_message"] and "Expected:" in error["exception_message"]
    assert error["exception_type"].endswith("PCMError") and error["node_type"] == "PCMSampler"
    assert host.run_prompt(prompt()).success


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"steps": 10000}, "10000 bigger than max of 64: steps"),
        ({"steps": -1}, "-1 smaller than min of 0: steps"),
        ({"denoise": 1.5}, "1.5 bigger than max of 1.0: denoise"),
        ({"spacing": "karras"}, "'karras' not in"),
    ],
)
def test_the_hosts_own_validation_knows_our_ranges(host, give, caplog, settings, found):
    with pytest.raises(AssertionError):
        host.run_prompt(prompt(**settings))
    assert found in caplog.text


def explained(page, section):
    """The names in the first column of the tables of a section."""
    part = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return {name for cell in re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE) for name in re.findall(r"\w+", cell)}


def test_every_node_has_tooltips_aliases_and_help(host):
    module = f"custom_nodes.{ROOT.name}"
    ours = {
        node_id: cls
        for node_id, cls in host.nodes.NODE_CLASS_MAPPINGS.items()
        if getattr(cls, "RELATIVE_PYTHON_MODULE", "") == module
    }
    assert "PCMSampler" in ours
    for node_id, cls in ours.items():
        schema = cls.define_schema()
        assert schema.category.split("/")[0] == "PCM", node_id
        assert schema.description and schema.search_aliases, node_id
        assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs]), node_id
        page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
        for section in ("Inputs", "Outputs", "Recipes", "Mistakes"):
            assert f"\n## {section}\n" in page, (node_id, section)
        assert f"(images/{node_id}.png)" in page, node_id
        inputs = {entry.id for entry in schema.inputs}
        outputs = {entry.display_name or entry.get_io_type() for entry in schema.outputs}
        for section, names in (("Inputs", inputs), ("Outputs", outputs)):
            assert names <= explained(page, section), f"{node_id}, {section}: {names - explained(page, section)}"
