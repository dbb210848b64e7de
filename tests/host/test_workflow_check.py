"""What the workflow check knows of the host, held against the host: widgets, shifts, tables, schedulers, names."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from devtools.generate.workflow_builder import is_widget
from pcm_core.workflow_check.arithmetic import formula
from pcm_core.workflow_check.host_names import SCHEDULERS, sampler_kind
from pcm_core.workflow_check.schedules import ClosedForm, base_models
from pcm_core.workflow_check.ui_json import widget_names
from pcm_core.workflow_check.ui_replace import node_slots
from phased_consistency.nodes.host.schedules import HostSchedules, own_shifts

# Of newer hosts, or of packs; their widgets were read off official workflows.
ELSEWHERE = ("LTXVDualCFGGuider", "MiniMaxH3SigmaShift")
ROOT = Path(__file__).resolve().parent.parent.parent


def widgets(host, name):
    """Widgets of a registered node, in their order."""
    inputs = host.node(name).INPUT_TYPES()
    entries = [(key, entry) for part in ("required", "optional") for key, entry in inputs.get(part, {}).items()]
    return tuple(key for key, (type_, *options) in entries if is_widget(type_, options[0] if options else {}))


def test_the_widgets_of_stock_nodes_are_in_their_places(host):
    known = {name: names for name, names in widget_names().items() if name in host.nodes.NODE_CLASS_MAPPINGS}
    assert {"KSampler", "KSamplerAdvanced", "LoraLoader", "BasicScheduler", "PCMSampler"} <= known.keys()
    for name, names in known.items():
        if name not in ELSEWHERE:
            have = widgets(host, name)
            assert names[: len(have)] == have, name  # an older host may lack the newest widgets


def test_the_nodes_that_take_the_place_of_others_have_these_slots(host):
    for name, facts in node_slots().items():
        node = host.node(name)
        inputs = {key: entry for part in node.INPUT_TYPES().values() if isinstance(part, dict)
                  for key, entry in part.items()}  # fmt: skip
        names = widgets(host, name)
        assert list(facts["defaults"]) == list(names[: len(facts["defaults"])]), name
        sockets = {key: entry[0] for key, entry in inputs.items() if key not in names}
        assert facts["inputs"].items() <= sockets.items(), name
        assert tuple(facts["outputs"]) == tuple(node.RETURN_TYPES)[: len(facts["outputs"])], name
        for widget, default in facts["defaults"].items():
            if widget != "lora_name":
                assert inputs[widget][1].get("default", default) == default, (name, widget)


@pytest.mark.parametrize(
    "text",
    [
        "a + b * 2",
        "7 // b",
        "-a % 5",
        "a if a > b and not b == 3 else 2.5",
        "max(a, b, 9) / 2",
        "round(a / 7) ** 2",
        "floor(sqrt(a)) - ceil(2.2)",
        "1 < a < 3",
        "min(a, b) >= 2",
    ],
)
def test_a_formula_gives_what_the_host_gives(host, text):
    module = pytest.importorskip("comfy_extras.nodes_math")
    values = {"a": 6, "b": 2}
    theirs = module.MathExpressionNode.execute(text, values).args
    assert theirs[0] == float(formula(text, values)) and theirs[2] == bool(formula(text, values))


def test_the_shifts_of_base_models_are_the_hosts(host):
    found = own_shifts()
    assert {"sd3", "flux1", "wan", "hunyuan-video", "mochi", "ltxv"} <= found.keys()
    for base, shift in found.items():
        assert math.isclose(base_models()[base]["shift"], shift, rel_tol=1e-6), base


def test_tables_and_simple_are_what_the_host_makes(host):
    ours, theirs = ClosedForm(), HostSchedules()
    here = own_shifts()  # an older host lacks some
    for base in [base for base, facts in base_models().items() if base in here or not facts.get("class")]:
        for shift in (None, 2.5):
            table, own = theirs.table(base, shift), ours.table(base, shift)
            stride = len(table) // 1000
            assert torch.tensor(table.sigmas[stride - 1 :: stride]).allclose(torch.tensor(own.sigmas), rtol=1e-5), base
            for steps in (1, 4, 6, 9):
                mine, made = ours.sigmas(base, shift, "simple", steps), theirs.sigmas(base, shift, "simple", steps)
                assert torch.tensor(mine).allclose(torch.tensor(made), rtol=0.01), (base, steps)  # it rounds to entries


def test_a_models_own_sampling_is_the_same(host, zoo):
    """A real, loaded model beside what was made without one."""
    for name, base in (("sd3", "sd3"), ("wan", "wan"), ("eps", "sd15")):
        sampling = zoo[name].model.get_model_object("model_sampling")
        assert torch.equal(sampling.sigmas.cpu(), torch.tensor(HostSchedules().table(base, None).sigmas)), name


def test_what_no_host_knows_is_none(host):
    theirs = HostSchedules()
    assert theirs.table("no such model", None) is None
    assert theirs.sigmas("sd3", None, "no such scheduler", 4) is None
    assert theirs.sigmas("sd3", None, "simple", 0) is None and theirs.sigmas("sd3", None, "simple", 10**9) is None
    assert theirs.sigmas("sd3", None, "kl_optimal", 1) is None  # the host makes NaN of it


@pytest.mark.parametrize("base", ["sdxl", "sd3", "wan", "qwen-image"])
def test_the_host_judges_what_closed_forms_cannot(host, base):
    theirs = HostSchedules()
    for scheduler in SCHEDULERS - {"pcm"}:
        levels = theirs.sigmas(base, None, scheduler, 4)
        assert levels is not None and levels[-1] == 0 and list(levels) == sorted(levels, reverse=True), scheduler


def test_every_sampler_of_the_host_has_a_kind(host):
    import comfy.samplers

    unknown = [name for name in comfy.samplers.KSampler.SAMPLERS if not sampler_kind(name)]
    assert set(unknown) == {"pcm"}
    assert set(comfy.samplers.KSampler.SCHEDULERS) <= SCHEDULERS


def test_our_workflows_are_clean_by_the_hosts_own_numbers(host):
    from pcm_core.workflow_check import check

    for path in sorted((ROOT / "workflows").rglob("*.json")):
        report = check(json.loads(path.read_text("utf-8")), HostSchedules())
        assert not report.findings and not report.skipped, path.name


def test_nothing_on_an_official_workflow_is_wrong_by_the_hosts_own_numbers_but_what_was_reviewed(host):
    sys.path.append(str(ROOT / "tests" / "check"))
    from official import workflows
    from reviewed import reason

    from pcm_core.workflow_check import check

    found = [(name, entry) for name, workflow in workflows() for entry in check(workflow, HostSchedules()).findings]
    new = [
        f"{name}: {entry.rule} {entry.file} {dict(entry.facts)}"
        for name, entry in found
        if entry.level == "wrong" and not reason(name, entry.rule, entry.file)
    ]
    assert not new, "\n".join(new)
