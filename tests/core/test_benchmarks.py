"""The arithmetic of the benchmarks, and the report that collects them."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import dev
from benchmarks import distill_cost, matching_cost, memory_plan, report
from benchmarks.common import LiveBytes, peak_bytes
from benchmarks.cost_curves import fit
from benchmarks.demo_pictures import evaluations, painter
from benchmarks.end_to_end import RESULTS, distances, steps_for
from demo.score import CFG, METHODS, Method, World, generate, prompts_for
from demo.train_vae import WEIGHTS
from pcm_core.distill import DistillConfig


def test_peak_bytes_counts_what_is_alive_at_once() -> None:
    def work() -> None:
        a = torch.zeros(100)
        b = a + 1
        del a
        (b + 1).view(10, 10)

    assert peak_bytes(work) == 800
    with LiveBytes() as counter:
        work()
    assert counter.alive == 0
    outside = torch.zeros(100)
    assert peak_bytes(lambda: outside.view(10, 10)) == 0, "a view of what was there before is no new memory"


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ([3.0, 3.0, 3.0, 3.0], "100% constant"),
        ([2.0, 4.0, 8.0, 16.0], "100% linear"),
        ([1 + n + n * n for n in (1, 2, 4, 8)], "1% constant, 11% linear, 88% quadratic"),
    ],
)
def test_growth_is_told_as_shares_at_the_largest_value(costs: list[float], words: str) -> None:
    assert fit((1, 2, 4, 8), costs) == f"{words} (fits to 0%)"


def test_steps_at_equal_distance_are_read_off_the_teachers_row() -> None:
    row = {1: 90.0, 2: 20.0, 4: 2.0, 8: 0.5}
    assert [steps_for(row[n], row) for n in row] == [1, 2, 4, 8]
    assert steps_for(1.0, row) == 6  # half way in log distance: 4 * sqrt(2), rounded up
    assert steps_for(0.4, row) is None and steps_for(100, row) is None


def test_the_stored_scores_can_be_read() -> None:
    table = distances(RESULTS.read_text(encoding="utf-8"))
    assert list(table) == [method.name for method in METHODS]
    for method in METHODS:
        assert list(table[method.name]) == list(method.steps)
        assert all(distance > 0 for distance in table[method.name].values())


def test_pictures_are_those_of_the_score_and_phases_cost_what_is_said() -> None:
    world, prompts = World.load(), prompts_for(2)
    student = Method("PCM, M = 4", "demo_pcm_4phase.safetensors")
    for lora, method, cfg in (("demo_pcm_4phase.safetensors", student, 1.0), (None, Method("teacher", cfg=CFG), CFG)):
        mine = painter(world, WEIGHTS / lora if lora else None, [cfg] * 4, prompts)(5)
        assert torch.equal(mine, generate(world, method, 4, prompts, 5)), method.name
    assert evaluations([3, 1, 1, 1]) == 5 and evaluations([CFG] * 8) == 16
    early = painter(world, None, [CFG, 1, 1, 1], prompts)(5)
    late = painter(world, None, [1, 1, 1, CFG], prompts)(5)
    assert not torch.allclose(early, late, atol=1e-2)


def test_the_trainer_has_the_losses_of_a_plain_loop_and_at_most_60_percent_of_its_parameters() -> None:
    kind = distill_cost.transformer()
    config = DistillConfig(phases=4, grid=40, steps=4, batch=4, lr=1e-3, warmup=4, cfg=(4.0, 6.0))
    with ExitStack() as attached:
        ours, plain = distill_cost.Ours(kind, config, attached), distill_cost.Plain(kind, config, attached)
        for _ in range(config.steps):
            assert ours.update() == pytest.approx(plain.update(), rel=1e-5)
        calls = [sum(network.calls for network in loop.networks) for loop in (ours, plain)]
        assert calls == [3 * config.steps, 4 * config.steps]  # both of the teacher's texts at once
        assert distill_cost.parameter_megabytes(ours) <= 0.6 * distill_cost.parameter_megabytes(plain)


def test_a_matching_update_has_the_losses_of_a_plain_dmd2_loop_and_at_most_45_percent_of_its_parameters() -> None:
    kind, config = matching_cost.transformer(), matching_cost.config_of(updates=4, batch=4, fakes=1)
    with ExitStack() as attached:
        ours, plain = matching_cost.Ours(kind, config, attached), matching_cost.Plain(kind, config)
        for _ in range(config.steps):
            assert ours.update() == pytest.approx(plain.update(), rel=1e-5)
        whole = matching_cost.Plain(kind, config, whole=True)
        student, fake = whole.update()
        assert student > 0 and fake > 0
        mine = distill_cost.megabytes(ours.parameters())
        assert mine + distill_cost.megabytes(ours.copies()) <= 0.45 * distill_cost.megabytes(plain.parameters())
        assert mine <= 0.45 * distill_cost.megabytes(whole.parameters())


# The report


def test_a_benchmark_that_is_run_replaces_its_section_and_no_other(tmp_path: Path, monkeypatch) -> None:
    parts = {"first": report.Part("First"), "common": report.Part("Second"), "third": report.Part("Third")}
    monkeypatch.setattr(report, "PARTS", parts)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.md")
    report.RESULTS.write_text(report.assemble({"Third": "c", "First": "a", "Gone": "x"}, {}), encoding="utf-8")
    report.main(["common"])
    written = report.sections(report.RESULTS.read_text(encoding="utf-8"))
    assert list(written)[:3] == ["First", "Second", "Third"] and "Gone" not in written
    assert (written["First"], written["Third"]) == ("a", "c")
    commit = "([0-9a-f]{9,}(-dirty)?)"
    assert re.match(
        rf"`python -m benchmarks.common`, \d{{4}}-\d\d-\d\d \d\d:\d\d UTC, (no commit|commit {commit})\. .*, torch ",
        written["Second"],
    )


def test_stored_results_come_in_whole_with_their_pictures() -> None:
    stored = report.stored()
    assert list(report.sections(report.assemble({}, stored))) == list(stored)
    for title, text in stored.items():
        assert re.match(r"Taken as stored in `[\w/.]+` \(.+\)\.", text), title
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (report.RESULTS.parent / link).exists(), f"{title}: {link}"


def test_paths_of_this_machine_stay_out_of_the_report(tmp_path: Path) -> None:
    assert str(tmp_path) not in report.run("common", ["--peer", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["no_such"], "no_such"), (["lora_load", "pack_import", "--", "--runs", "1"], "one benchmark")],
)
def test_wrong_names_are_refused(arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        report.main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_dev_py_hands_names_and_options_to_the_report(monkeypatch) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "prepare", lambda _: Path("host"))
    monkeypatch.setattr(dev, "run_python", lambda *words, **_: called.append(words) or 3)
    assert dev.main(["bench", "--quick", "lora_load", "--", "--rank", "8"]) == 3
    assert called == [("-m", "benchmarks.report", "--quick", "lora_load", "--", "--rank", "8")]
    assert dev.main(["bench"]) == 3 and called[1] == ("-m", "benchmarks.report")


def test_every_benchmark_of_the_report_exists_and_says_what_it_measures() -> None:
    for name in report.PARTS:
        source = (Path(report.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        assert f"python -m benchmarks.{name}" in source, name


def test_what_fits_is_planned_for_every_model_and_is_what_the_page_says():
    needs = json.loads(memory_plan.STORED.read_text("utf-8"))
    assert needs.keys() == memory_plan.MODELS.keys()
    assert all(set(ways) == set(memory_plan.WAYS) for ways in needs.values())
    page = memory_plan.PAGE.read_text("utf-8")
    assert f"{memory_plan.BEGIN}\n{memory_plan.table()}\n{memory_plan.END}" in page
    claims = (
        ("sd15", "as it is", 6), ("sdxl", "checkpointing", 10), ("flux", "streaming", 16), ("wan_14b", "streaming", 16)
    )  # fmt: skip
    for model, way, card in claims:
        assert needs[model][way] <= card - memory_plan.RESERVE
