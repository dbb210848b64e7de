"""The matching stage on a network small enough to check by hand: four roles, the bank, refusals, bit-exact resume."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_distill_trainer import FLOW_TABLE, Recorder, Velocity, same

from pcm_core import distill
from pcm_core.distill import matching_trainer as module
from pcm_core.distill.diagnosis import Diagnosis, diagnosis_of
from pcm_core.errors import PCMError


def setting(**settings) -> SimpleNamespace:
    """Network, adapters, bank plan and store of a run; the student starts away from zero, like a distilled one."""
    folder, pairs, refresh = settings.pop("folder", None), settings.pop("pairs", 64), settings.pop("refresh", False)
    dtype = settings.pop("dtype", torch.float32)
    config = distill.MatchingConfig(**{
        "phases": 2, "steps": 12, "batch": 16, "lr": 3e-3, "fake_lr": 5e-3, "fake_warmup": 4, "cfg": 2.0,
        "teacher_cfg": 1.5, "ema": 0.9, **settings,
    })  # fmt: skip
    network = Velocity()
    adapters = distill.Adapters(
        distill.adaptable(network, ["blocks", "leave"]), 4, generator=torch.Generator().manual_seed(1), dtype=dtype
    )
    with torch.no_grad():
        for i, pair in enumerate(adapters.pairs.values()):
            pair.up.copy_(0.1 * torch.randn(pair.up.shape, generator=torch.Generator().manual_seed(i)))
    adapters.load({"student": {name: {"down": pair.down.float(), "up": pair.up.float()}
                               for name, pair in adapters.pairs.items()}})  # fmt: skip
    backbone = Recorder(network, adapters)
    plan = distill.BankPlan.of(
        FLOW_TABLE, config.phases, config.grid, config.terminal, shape=(2,), texts=3, pairs=pairs, chunk=24,
        cfg=config.teacher_cfg, flow=True, held_texts=2, held_samples=16,
    )  # fmt: skip
    store = distill.BankStore(folder, plan, distill.fingerprint(adapters), refresh=refresh)
    return SimpleNamespace(config=config, network=network, adapters=adapters, backbone=backbone, plan=plan, store=store)


def models(given: SimpleNamespace):
    """The captioned student and the guided teacher, written out by hand."""

    def under(captions):
        def student(x, sigma):
            with given.adapters.use("student"):
                return given.backbone(x, sigma, captions)

        def teacher(x, sigma):
            with given.adapters.use("off"):
                c, u = (given.backbone(x, sigma, text) for text in (captions, torch.full_like(captions, -1)))
            return u + given.plan.cfg * (c - u)

        return student, teacher

    return under


def make(processes: distill.Processes | None = None, **settings):
    given = setting(**settings)
    with given.adapters.attached():
        bank = given.store.make(models(given), "cpu")
    return distill.MatchingTrainer(
        given.backbone, given.adapters, bank, given.plan, FLOW_TABLE, given.config, flow=True, processes=processes
    ), given


def run(trainer, steps: int | None = None) -> list:
    reports = []
    with trainer.adapters.attached():
        while trainer.step_number < (trainer.steps if steps is None else steps):
            reports.append(trainer.step())
    return reports


@pytest.mark.parametrize("settings", [
    {}, {"phases": 1}, {"phases": 4, "unroll": 0, "hold": 1.0}, {"phases": 4, "phase": "random", "reach": "path"},
    {"matched_cfg": 1.5}, {"fake_updates": 3, "fake_rank": 2}, {"cfg": 1.0, "teacher_cfg": 1.0},
    {"ema": 0.0, "recompute": True}, {"phases": 1, "renoised": 3, "regression": 0.0}, {"spread": 5.0},
], ids=str)  # fmt: skip
def test_it_trains_and_the_base_is_untouched(settings):
    trainer, given = make(**settings)
    before = {name: value.clone() for name, value in given.network.state_dict().items()}
    start = trainer.adapters.student.state()
    reports = run(trainer)
    assert len(reports) == 16 and trainer.updates == 12
    assert all(report.loss > 0 and report.grad_norm > 0 for report in reports)
    assert all(report.regression == report.hold == 0 for report in reports[:4])
    assert all(torch.equal(value, before[name]) for name, value in given.network.state_dict().items())
    assert not same(trainer.adapters.student.state(), start)
    assert not any(hooked._forward_hooks for hooked in given.network.modules())
    for part in ("hold", "spread"):
        assert any(getattr(report, part) > 0 for report in reports) == (part in settings)
    assert all((report.guidance > 0) == ("matched_cfg" in settings) for report in reports[4:])


def test_parameters_grow_by_one_lora_and_nothing_else():
    trainer, _ = make(ema=0.0)
    student = sum(parameter.numel() for parameter in trainer.adapters.student.parameters())
    assert sum(parameter.numel() for parameter in trainer.adapters.parameters()) == 2 * student
    other, _ = make(ema=0.0, fake_rank=2)
    assert sum(parameter.numel() for parameter in other.fake.parameters()) == student // 2


def test_with_student_and_fake_as_the_teacher_the_matching_gradient_is_zero(monkeypatch):
    """Without guidance and with both LoRAs at zero, fake and real are the same network, to the last bit."""
    trainer, _ = make(cfg=1.0, teacher_cfg=1.0, fake_warmup=0, regression=0.0)
    with torch.no_grad():
        for pair in trainer.adapters.pairs.values():
            pair.up.zero_()
    gradients = []
    original = module.matching_gradient
    monkeypatch.setattr(module, "matching_gradient", lambda *a: gradients.append(original(*a)) or gradients[-1])
    with trainer.adapters.attached():
        report = trainer.step()
    assert report.loss == report.matching == report.grad_norm == 0 and not gradients[0].any()


def test_an_update_is_what_the_equations_say():
    """One student update by hand: the scores at the drawn levels, the regression, the weights."""
    trainer, given = make(fake_warmup=0, steps=5, batch=8, ema=0.0)
    state = trainer.generator.get_state()
    batch = trainer.draws.batch()
    trainer.generator.set_state(state)
    adapters, edges, text = given.adapters, given.plan.edges, batch.captions
    ones = torch.ones(8)
    with adapters.attached():
        x = trainer.bank.states[0][batch.rows]
        with adapters.use("student"):
            for above, below in pairwise(edges):
                x0 = given.backbone(x, above * ones, text)
                x = x0 + below / above * (x - x0)
        with torch.no_grad():
            level = batch.level[:, None]
            noised = (1 - level) * x + level * batch.noise
            with adapters.use("fake"):
                fake = given.backbone(noised, batch.level, text)
            with adapters.use("off"):
                cond, uncond = (given.backbone(noised, batch.level, t) for t in (text, torch.full_like(text, -1)))
            real = uncond + 2 * (cond - uncond)
            push = (fake - real) / (x - real).abs().mean(1, keepdim=True).clamp(min=0.05)
        matching = 0.5 * (x - (x - push).detach()).square().mean()
        error = x - trainer.bank.ends[batch.rows]
        regression = ((error.square() + 0.01).sqrt() - 0.1).mean()
        total = matching + 2 * regression
        expected = torch.autograd.grad(total, list(adapters.student.parameters()))
        report = trainer.step()
    assert report.loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert report.generator_loss == pytest.approx(float(matching.detach()), rel=1e-5)
    assert report.regression == pytest.approx(float(regression.detach()), rel=1e-5)
    norm = torch.stack([gradient.norm() for gradient in expected]).norm()
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)


def test_the_gradient_reaches_as_far_back_as_asked():
    """With ``unroll`` 0 the student is called once with gradient, with -1 once per phase, and from the bank's noise."""
    for unroll, calls in ((0, 1), (1, 2), (2, 3), (-1, 4), (9, 4)):
        trainer, given = make(phases=4, unroll=unroll, fake_warmup=0, fake_updates=1)
        given.backbone.calls.clear()
        with trainer.adapters.attached():
            trainer.step()
        with_gradient = [mode for mode, _, gradient in given.backbone.calls if gradient]
        assert with_gradient.count("student") == calls and with_gradient.count("fake") == 1


def test_renoised_steps_are_all_trained_and_diagnosed():
    trainer, given = make(phases=1, renoised=3, regression=0.0, fake_warmup=0, fake_updates=1)
    with trainer.adapters.attached():
        trainer.step()
        assert [mode for mode, _, gradient in given.backbone.calls if gradient].count("student") == 3
        one, two = trainer.diagnose(), trainer.diagnose()
    assert one == two


def test_regression_alone_comes_first_and_needs_no_fake():
    """Its updates are AdamW steps, with momentum, on the distance to the teacher's ends; the fake starts after them."""
    trainer, given = make(phases=1, regression_warmup=6, regression_lr=0.02, fake_warmup=2, steps=3, batch=8, ema=0.0)
    expected, _ = make(phases=1, regression_warmup=6, fake_warmup=2, steps=3, batch=8, ema=0.0)
    parameters = expected.adapters.student.trained
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    fresh = {name: value.clone() for name, value in trainer.fake.state_dict().items()}
    top = torch.full((8,), trainer.edges[0])
    for i in range(6):
        given.backbone.calls.clear()
        report = run(trainer, i + 1)[0]
        assert {mode for mode, _, _ in given.backbone.calls} == {"student"}
        assert report.discriminator_loss == report.matching == 0 and trainer.updates == 0
        batch = expected.draws.batch()
        with expected.adapters.attached():
            landing = expected._as("student", batch.captions)(expected.bank.states[0][batch.rows], top)
        error = landing - expected.bank.ends[batch.rows]
        loss = expected.config.regression * (torch.sqrt(error.square() + 0.01) - 0.1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = report.lr
        optimizer.step()
        assert report.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    assert all(torch.equal(value, fresh[name]) for name, value in trainer.fake.state_dict().items())
    reports = run(trainer)
    assert len(reports) == 5 and trainer.updates == 3
    assert [report.matching > 0 for report in reports] == [False, False, True, True, True]
    assert trainer.optimizer.param_groups[0]["betas"] == (0.0, 0.99)


@pytest.mark.parametrize(("regression_warmup", "calls"), [(0, 1), (2, 2)])
def test_the_fake_meets_the_student_of_now(regression_warmup, calls):
    """The bank has the states of the student that it was made with; after regression they are those of another."""
    trainer, given = make(regression_warmup=regression_warmup, fake_warmup=1, steps=1)
    run(trainer, regression_warmup)
    given.backbone.calls.clear()
    run(trainer, regression_warmup + 1)
    assert [mode for mode, _, _ in given.backbone.calls] == ["student"] * calls + ["fake"]


def test_a_start_that_scatters_more_than_the_teacher_may_come_down_to_it(monkeypatch):
    spreads = iter([1.7, 0.8, 0.4])
    monkeypatch.setattr(module, "diagnosis_of", lambda ends, held, first: Diagnosis(0.1, next(spreads), fell=False))
    monkeypatch.setattr(module, "_DIAGNOSE_EVERY", 1)
    trainer, _ = make(fake_warmup=0, steps=3)
    with pytest.raises(distill.Collapsed, match=r"fell from 1 to 0\.4"):
        run(trainer)
    assert trainer.updates == 3, "1.7 and 0.8 are no collapse"


def test_passes_of_one_update_are_one_batch():
    """Two passes of 9 against one of the same 18: the same losses, and the same student and fake after 6 updates."""
    settings = {"fake_warmup": 2, "steps": 4, "phases": 4, "hold": 0.5, "fake_updates": 1}
    halves, _ = make(batch=9, accumulate=2, **settings)
    whole, _ = make(batch=18, **settings)
    draws = make(batch=9, **settings)[0]

    def both():
        one, two = (vars(draws.draws.batch()) for _ in range(2))
        joined = {name: torch.cat([one[name], two[name]]) for name in one if name != "phase"}
        return module.MatchingBatch(phase=one["phase"], **joined)

    whole.draws = SimpleNamespace(batch=both)
    reports = [run(halves), run(whole)]
    assert [r.loss for r in reports[0]] == pytest.approx([r.loss for r in reports[1]], rel=1e-3)
    assert [r.grad_norm for r in reports[0]] == pytest.approx([r.grad_norm for r in reports[1]], rel=1e-3)
    for one, other in zip(halves.adapters.parameters(), whole.adapters.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("cut", [2, 4, 9])
@pytest.mark.parametrize("settings", [
    {}, {"phases": 4, "phase": "random", "unroll": 1, "hold": 0.5, "accumulate": 2},
    {"phases": 1, "renoised": 4, "regression": 0.0}, {"regression_warmup": 3}, {"spread": 5.0},
], ids=str)  # fmt: skip
def test_resume_continues_to_the_same_bits(settings, cut, tmp_path: Path):
    whole, _ = make(**settings)
    run(whole)
    first, _ = make(folder=tmp_path / "bank", **settings)
    run(first, cut)
    torch.save(first.state(), tmp_path / "state.pt")
    second, _ = make(folder=tmp_path / "bank", **settings)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second)
    assert second.losses == whole.losses
    assert same(second.adapters.state(), whole.adapters.state())


def test_two_processes_are_one():
    whole, _ = make(steps=3, ema=0.0, spread=5.0)
    run(whole)
    averaged: list = []

    def pair(rank: int, average):
        return make(distill.Processes(rank, 2, average), steps=3, ema=0.0, spread=5.0)[0]

    # Both run in threads that meet wherever tensors are averaged.
    barrier, box = threading.Barrier(2), {}

    def meet(rank: int):
        def average(tensors):
            box[rank] = [tensor.clone() for tensor in tensors]
            barrier.wait()
            means = [(a + b) / 2 for a, b in zip(box[0], box[1], strict=True)]
            barrier.wait()
            for tensor, mean in zip(tensors, means, strict=True):
                tensor.copy_(mean)

        return average

    trainers = [pair(rank, meet(rank)) for rank in range(2)]
    threads = [threading.Thread(target=lambda t=t: averaged.append(run(t))) for t in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(averaged) == 2
    assert trainers[0].losses == pytest.approx(whole.losses, rel=1e-4)
    assert trainers[1].losses == trainers[0].losses


@pytest.mark.parametrize("broken", ["student", "fake", "fake's own update"])
def test_a_nan_takes_the_step_back(broken):
    trainer, given = make()
    run(trainer, 8)
    good = trainer.adapters.state()
    original = type(given.backbone).__call__

    def backbone(*inputs):
        name, *own_update = broken.split("'")  # the student's update asks the fake without a gradient
        hit = given.adapters.mode == name and (not own_update or torch.is_grad_enabled())
        return original(given.backbone, *inputs) * (float("nan") if hit else 1)

    trainer.backbone = backbone
    words = "fake's loss.*at step 9" if broken == "fake's own update" else "^(?!.*fake's).*at step 9"
    with trainer.adapters.attached(), pytest.raises(distill.Diverged, match=words):
        trainer.step()
    # The step that led there is undone too; where the student's loss is finite, the state before it was sound.
    sound = broken == "fake's own update"
    assert trainer.step_number == len(trainer.losses) == (8 if sound else 7)
    assert same(trainer.adapters.state(), good) == sound


def test_a_spread_that_collapses_stops_the_run(monkeypatch):
    monkeypatch.setattr(module, "_DIAGNOSE_EVERY", 1)
    trainer, _ = make(fake_warmup=0, collapse=0.99, lr=0.5, cfg=8.0, regression=0.0, steps=50, ema=0.0)
    with pytest.raises(distill.Collapsed, match="The spread of samples under one text fell from"):
        run(trainer)
    assert trainer.step_number < 50


def test_the_diagnosis_is_a_ratio_of_spreads():
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(8, 3, generator=generator)
    captions = torch.tensor([0] * 4 + [1] * 4)
    means = torch.stack([ends[captions == text].mean(0) for text in captions])
    held = distill.Bank((ends,), ends, captions)
    narrow = diagnosis_of(means + 0.5 * (ends - means), held, 1.0)
    assert narrow.spread == pytest.approx(0.5) and narrow.fell
    assert narrow.distance == pytest.approx(float((0.5 * (ends - means)).square().mean().sqrt()))
    assert not diagnosis_of(ends, held, None).fell


def test_the_bank_holds_the_students_path_and_the_teachers_walk():
    given = setting(phases=4, grid=8)
    with given.adapters.attached():
        bank = given.store.make(models(given), "cpu")
        student, teacher = models(given)(bank.captions)
        assert given.plan.edges == (1.0, 0.75, 0.5, 0.25, 0.0) and given.plan.walk == (0.25, 0.125, 0.0)
        with torch.no_grad():
            x = bank.states[0]
            for k, (above, below) in enumerate(zip(given.plan.edges[:-2], given.plan.edges[1:-1], strict=True)):
                x = x + (below - above) / above * (x - student(x, torch.full((len(x),), above)))
                torch.testing.assert_close(bank.states[k + 1], x)
            for above, below in ((0.25, 0.125), (0.125, 0.0)):
                x = x + (below - above) / above * (x - teacher(x, torch.full((len(x),), above)))
    torch.testing.assert_close(bank.ends, x)
    assert len(bank) == 64 + 32 and bank.captions[:32].tolist() == [0] * 16 + [1] * 16


def test_a_banks_teacher_may_walk_from_pure_noise():
    given = setting(phases=4, grid=8)
    plan = distill.BankPlan.of(
        FLOW_TABLE, 4, 8, "zero", whole=True, shape=(2,), texts=3, pairs=48, chunk=24, cfg=1.5, flow=True
    )
    assert plan.walk == tuple(i / 8 for i in range(8, -1, -1)) and plan.edges == given.plan.edges
    assert plan.evaluations == (48 + plan.held) * (3 + 2 * 8)
    with given.adapters.attached():
        bank = distill.BankStore(None, plan, "").make(models(given), "cpu")
        _, teacher = models(given)(bank.captions)
        x = bank.states[0]
        with torch.no_grad():
            for above, below in pairwise(plan.walk):
                x = x + (below - above) / above * (x - teacher(x, torch.full((len(x),), above)))
    torch.testing.assert_close(bank.ends, x)


def test_whole_walks_serve_students_of_any_number_of_phases():
    """The walks of a bank with one phase, in which no student takes part, and the states of one with four."""
    given = setting(phases=4, grid=8)
    common = {"whole": True, "shape": (2,), "texts": 3, "pairs": 50, "chunk": 24, "cfg": 1.5, "flow": True}
    one, four = (distill.BankPlan.of(FLOW_TABLE, phases, 8, "zero", **common) for phases in (1, 4))
    with given.adapters.attached():
        under = models(given)

        def no_student(captions):
            def refuse(x, sigma):
                raise AssertionError("a student in a walk")

            return refuse, under(captions)[1]

        walks = distill.BankStore(None, one, "").make(no_student, "cpu")
        expected = distill.BankStore(None, four, "").make(under, "cpu")
        found = distill.with_student(walks, four, under, "cpu")
    assert len(found.states) == 4 and len(found) == len(expected)
    torch.testing.assert_close(found.states, expected.states)
    torch.testing.assert_close(found.ends, expected.ends)
    assert torch.equal(found.captions, expected.captions)


def test_a_bank_says_its_size_and_cost_before_it_is_made():
    plan = setting(phases=4, grid=8).plan
    assert plan.evaluations == 96 * (3 + 2 * 2) and plan.bytes == 96 * 5 * 2 * 4
    assert plan.announcement() == (
        "The bank takes 96 pairs, 672 evaluations of one sample each, 0 MB in memory and on disk."
    )


def test_a_bank_that_was_cut_short_goes_on(tmp_path: Path):
    whole, given = setting(), setting(folder=tmp_path)
    with whole.adapters.attached():
        expected = whole.store.make(models(whole), "cpu")
    seen = []

    def stop(done: int, of: int) -> None:
        seen.append((done, of))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with given.adapters.attached(), pytest.raises(KeyboardInterrupt):
        given.store.make(models(given), "cpu", stop)
    assert seen == [(32, 96), (56, 96)] and len(list(tmp_path.glob("*.safetensors"))) == 2
    again = setting(folder=tmp_path)
    again.backbone.calls.clear()
    with again.adapters.attached():
        bank = again.store.make(models(again), "cpu", lambda done, of: seen.append((done, of)))
    assert seen[-1] == (96, 96) and {size for _, size, _ in again.backbone.calls} == {24, 16}
    assert torch.equal(bank.ends, expected.ends) and torch.equal(bank.captions, expected.captions)


def test_a_bank_grows_and_keeps_what_it_has(tmp_path: Path):
    def made(given: SimpleNamespace) -> distill.Bank:
        with given.adapters.attached():
            return given.store.make(models(given), "cpu")

    expected = made(setting(pairs=104))
    made(setting(folder=tmp_path))
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*")}
    assert sorted(kept) == [f"{n:05}.safetensors" for n in range(4)]
    bank = made(setting(folder=tmp_path, pairs=104))
    assert torch.equal(bank.ends, expected.ends) and torch.equal(bank.captions, expected.captions)
    changed = [name for name, when in kept.items() if (tmp_path / name).stat().st_mtime_ns != when]
    assert changed == ["00003.safetensors"], "the last chunk of 64 pairs was not a full one"


def test_a_bank_of_another_model_is_refused_and_can_be_made_anew(tmp_path: Path):
    given = setting(folder=tmp_path)
    with given.adapters.attached():
        given.store.make(models(given), "cpu")
    with pytest.raises(PCMError, match="was made for another model, LoRA or settings"):
        setting(folder=tmp_path, teacher_cfg=3.0)
    with torch.no_grad():
        given.network.leave.weight.add_(1)
    key = distill.fingerprint(given.adapters)
    with pytest.raises(PCMError, match="another model"):
        distill.BankStore(tmp_path, given.plan, key)
    distill.BankStore(tmp_path, given.plan, key, refresh=True)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_bank_that_cannot_be_read_or_written_is_refused(tmp_path: Path):
    (tmp_path / "00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(PCMError, match="is not part of a bank"):
        setting(folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(PCMError, match="cannot be made"):
        setting(folder=tmp_path / "file" / "bank")
    given = setting(folder=tmp_path / "new")
    (tmp_path / "new" / "00000.part").mkdir()
    with given.adapters.attached(), pytest.raises(PCMError, match="cannot be written"):
        given.store.make(models(given), "cpu")


def test_a_bank_of_other_phases_is_refused():
    trainer, given = make(phases=2)
    with pytest.raises(PCMError, match=r"The bank has 2 phases\. Expected: 4\."):
        distill.MatchingTrainer(
            given.backbone, given.adapters, trainer.bank, given.plan, FLOW_TABLE,
            distill.MatchingConfig(phases=4), flow=True,
        )  # fmt: skip


def test_checkpoints_of_other_stages_settings_or_starts_are_refused():
    trainer, _ = make()
    with pytest.raises(PCMError, match="stage consistency -> matching"):
        trainer.load({"step": 1})
    with pytest.raises(PCMError, match=r"cfg 2\.0 -> 3\.0"):
        make(cfg=3.0)[0].load(trainer.state())
    moved = trainer.state()
    moved["start"] = {name: {part: w + 1 for part, w in weights.items()} for name, weights in moved["start"].items()}
    with pytest.raises(PCMError, match="another LoRA to start from"):
        trainer.load(moved)


def test_the_usual_stage_depends_on_the_phases():
    """What the demo world needed."""

    def usual(phases: int, **more) -> distill.MatchingConfig:
        consistency = distill.DistillConfig(phases=phases, grid=40, lr=1e-3, cfg=(2.0, 4.0))
        return distill.matching_after(consistency, steps=700, cfg=4.0, **more)

    one, two, four = usual(1), usual(2), usual(4)
    assert (one.regression_warmup, one.fake_warmup, one.all_steps) == (700, 600, 2000)
    assert (one.regression, one.fake_updates, one.lr, one.fake_lr) == (0.3, 3, 5e-4, 1e-3)
    for other in (two, four, usual(1, renoised=4, regression=0.0)):
        assert (other.regression_warmup, other.fake_updates, other.lr, other.all_steps) == (0, 1, 2e-4, 1300)
    assert (two.teacher_cfg, two.regression, two.spread) == (2.5, 1.0, 0.0)
    assert (four.teacher_cfg, four.regression, four.spread) == (3.0, 2.0, 20.0)
    # Without guidance there is none to lower.
    plain = distill.matching_after(distill.DistillConfig(phases=2, grid=40, cfg=(1.0, 1.0)), steps=1, cfg=1.0)
    assert plain.teacher_cfg == 1.0 and not plain.guided


@pytest.mark.parametrize("settings", [
    {"steps": 0}, {"batch": 0}, {"accumulate": 0}, {"fake_updates": 0}, {"fake_rank": 0},
    {"lr": 0.0}, {"fake_lr": float("nan")},
    {"cfg": 0.0}, {"teacher_cfg": float("inf")}, {"floor": 0.0}, {"regression_c": 0.0}, {"hold_c": -1.0},
    {"max_grad_norm": 0.0}, {"ema": 1.0}, {"collapse": 1.0}, {"matching": -1.0}, {"regression": float("inf")},
    {"hold": -0.1}, {"fake_warmup": -1}, {"warmup": -1}, {"reach": "far"}, {"walk": "far"}, {"phase": "first"},
    {"span": (0.5, 0.5)},
    {"guidance_span": (0.0, 2.0)}, {"unroll": -2}, {"weight_decay": -1.0}, {"renoised": -1},
    {"regression_warmup": -1}, {"regression_lr": 0.0}, {"regression": 0.0, "regression_warmup": 5},
    {"phase": "random", "regression_warmup": 5},
    {"phases": 2, "renoised": 4, "regression": 0.0}, {"regression": 2.0, "phases": 1, "renoised": 4},
    {"unroll": 0, "phases": 1, "renoised": 4, "regression": 0.0},
], ids=str)  # fmt: skip
def test_bad_settings_are_refused(settings):
    with pytest.raises(PCMError, match=f"Correct {next(iter(settings))}"):
        distill.MatchingConfig(**settings)
