"""The matching stage on the real host: in one graph with the consistency stage, by itself, cancelled, resumed."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import tiny
import torch
from PIL import ImageChops
from safetensors.torch import load_file

from pcm_core import distill as core_distill
from pcm_core.distill import matching_draws
from pcm_core.distill.spread import Spread
from pcm_core.errors import PCMError
from phased_consistency.nodes.drawing import loss_curve
from phased_consistency.nodes.host import lora as host_lora
from phased_consistency.nodes.host import training as host_training
from phased_consistency.nodes.training import job as training_job
from phased_consistency.nodes.training import session as training_session

SHORT = {"steps": 2, "matching_steps": 3, "batch_size": 2}  # and three updates of the fake alone
OTHERS = [pytest.param(family, marks=pytest.mark.long) for family in ("eps", "v", "wan")]


@pytest.mark.parametrize(("family", "phases"), [("eps", 4), ("v", 2), ("sd3", 4), ("wan", 4)])
def test_both_stages_in_one_graph(host, zoo, distil, family, phases, caplog, monkeypatch):
    """Train, save, load and sample; the base stays, the file says what was done. Four phases hold the spread too."""
    given, held, original = zoo[family], [], Spread.loss

    def loss(self, landing, rows, processes):
        held.append(landing.shape)
        return original(self, landing, rows, processes)

    monkeypatch.setattr(Spread, "loss", loss)
    weights = tiny.fingerprint(given.model.model.state_dict())
    with caplog.at_level(logging.INFO):
        lora, losses, steps = distil(given, stage="both", matching_cfg=2.0, phases=phases, **SHORT).args
    assert len(held) == (3 if phases > 2 else 0)
    assert steps == len(losses["loss"]) == 2 + 3 + 3
    assert "The bank takes" in caplog.text
    assert tiny.fingerprint(given.model.model.state_dict()) == weights
    assert any(bool(tensor.any()) for key, tensor in lora.items() if key.endswith("lora_up.weight"))
    assert lora.metadata["pcm_matching_steps"] == "3" and lora.metadata["pcm_matching_cfg"] == "2.0"
    assert lora.metadata["pcm_train_steps"] == "8"
    assert not host_training.temporary_folder("pcm_bank").exists(), "the bank of this run only is thrown away"
    (name,) = host.call("PCMSaveLora", lora=lora, prefix=f"test/matched_{family}")
    only = distil(given, stage="consistency", phases=phases, **SHORT).args[0]
    assert any(not torch.equal(lora[key], only[key]) for key in only)
    (plain,) = host.call("PCMSaveLora", lora=only, prefix=f"test/consistent_{family}")
    matched, consistent = (sampled(host, given, file) for file in (name, plain))
    assert torch.isfinite(matched).all() and matched.shape == given.latent()["samples"].shape
    assert not torch.equal(matched, consistent)
    assert tiny.fingerprint(given.model.model.state_dict()) == weights


def sampled(host, given: tiny.Tiny, lora: str) -> torch.Tensor:
    """What the pack's sampler makes of a LoRA file, in its own number of steps; the LoRA is taken off again."""
    import comfy.model_management

    model, *_ = host.call("PCMLoraLoader", model=given.model, lora_name=lora)
    words = {"positive": given.positive, "negative": given.negative, "latent_image": given.latent()}
    samples = host.call("PCMSampler", model=model, seed=1, **words)[0]["samples"].clone()
    comfy.model_management.unload_all_models()
    return samples


def test_matching_by_itself_goes_on_from_a_lora_of_its_phases(host, zoo, distil):
    given = zoo["sd3"]
    first = distil(given, **SHORT).args[0]
    (name,) = host.call("PCMSaveLora", lora=first, prefix="test/start")
    lora, losses, steps = distil(given, stage="matching", existing_lora=name, **SHORT).args
    assert steps == len(losses["loss"]) == 6 and lora.metadata["pcm_train_steps"] == "8"
    moved = [key for key in first if not torch.equal(lora[key], first[key])]
    assert moved and lora.keys() == first.keys()
    with pytest.raises(PCMError, match=r"The LoRA to start from has 2 phases\. Expected: 4"):
        distil(given, stage="matching", existing_lora=name, **SHORT | {"phases": 4})


def test_what_a_matching_stage_cannot_do_is_refused(zoo, distil):
    with pytest.raises(PCMError, match=r"The matching stage has no LoRA to start from\."):
        distil(zoo["sd3"], stage="matching", **SHORT)
    with pytest.raises(PCMError, match=r"Expected: one, for the guidance of the matching stage\."):
        distil(zoo["sd3"], stage="both", negative=None, cfg_min=1.0, cfg_max=1.0, **SHORT)


@pytest.mark.parametrize(("family", "at"), [("sd3", 1), ("sd3", 4), ("sd3", 7), ("eps", 7), ("v", 4), ("wan", 7)])
def test_cancelled_at_any_step_nothing_is_lost(host, zoo, distil, monkeypatch, family, at):
    """In the first stage, while the fake warms up, and in the second."""
    import comfy.model_management

    known, original = set(host_lora.lora_names()), training_session.Session._after_step

    def cancel(self, report):
        original(self, report)
        if report.step == at:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(training_session.Session, "_after_step", cancel)
    weights = tiny.fingerprint(zoo[family].model.model.state_dict())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        distil(zoo[family], stage="both", **SHORT)
    (saved,) = set(host_lora.lora_names()) - known
    assert "pcm_interrupted" in saved
    assert tiny.fingerprint(zoo[family].model.model.state_dict()) == weights


def test_passes_are_accumulated_in_both_stages(zoo, distil, monkeypatch):
    drawn, step, draw = [], core_distill.MatchingTrainer.step, matching_draws.Draws.batch

    def stepping(self):
        drawn.append([])
        return step(self)

    def drawing(self):
        drawn[-1].append(draw(self))
        return drawn[-1][-1]

    monkeypatch.setattr(core_distill.MatchingTrainer, "step", stepping)
    monkeypatch.setattr(matching_draws.Draws, "batch", drawing)
    lora, losses, _ = distil(zoo["sd3"], stage="both", grad_accumulation=2, **SHORT).args
    assert [len(batches) for batches in drawn] == [2] * 6 and len(losses["loss"]) == 8
    assert any(bool(tensor.any()) for key, tensor in lora.items() if key.endswith("lora_up.weight"))


def test_the_preview_and_the_log_show_the_diagnosis_and_a_spread_that_falls(zoo, distil, monkeypatch, caplog):
    notes, original = [], training_session.draw_loss
    monkeypatch.setattr(core_distill.matching_trainer, "_DIAGNOSE_EVERY", 1)
    monkeypatch.setattr(training_session, "draw_loss", lambda *a: notes.append(a[3]) or original(*a))
    with caplog.at_level(logging.INFO):
        distil(zoo["sd3"], stage="both", **SHORT)
    lines = [message for message in caplog.messages if "held-out distance" in message]
    assert len(lines) == 3 and notes[:5] == [""] * 5 and notes[-1] and notes[-1] in lines[-1]
    assert re.search(r"spread \d\.\d+ of the teacher's, matching \d+\.\d+, guidance", notes[-1])
    assert "lie closer together" not in caplog.text

    # A spread that has fallen is one below 0.9 of what it was; here everything is.
    monkeypatch.setattr(core_distill.diagnosis, "_FALL", 10.0)
    with caplog.at_level(logging.INFO):
        distil(zoo["sd3"], stage="both", **SHORT)
    assert "samples under one text lie closer together than at the start" in caplog.text
    assert notes[-1].endswith("which has fallen")
    bare, told = (loss_curve.draw_loss([0.5, 0.4], 2, None, note) for note in ("", notes[-1]))
    changed = ImageChops.difference(bare, told).getbbox()
    assert changed and changed[1] > bare.height - 28, "below the axis"


def test_a_spread_that_collapses_stops_and_saves(host, zoo, distil, monkeypatch):
    monkeypatch.setattr(core_distill.matching_trainer, "_DIAGNOSE_EVERY", 1)

    def diagnose(self):
        self.first_spread = 1.0
        return core_distill.Diagnosis(0.1, 0.3 if self.updates == 2 else 1.0, fell=False)

    monkeypatch.setattr(core_distill.MatchingTrainer, "diagnose", diagnose)
    known = set(host_lora.lora_names())
    with pytest.raises(PCMError, match=r"spread of samples under one text fell from 1 to 0\.3.*pcm_interrupted"):
        distil(zoo["sd3"], stage="both", **SHORT)
    (saved,) = set(host_lora.lora_names()) - known
    assert "pcm_interrupted" in saved


def test_a_bank_of_another_model_is_refused_by_the_session(zoo, tmp_path: Path):
    config = core_distill.DistillConfig(phases=2, grid=4, steps=1, batch=2, lr=3e-3, cfg=(2.0, 2.0))
    matching = core_distill.matching_after(config, steps=1, cfg=3.0)

    def job(texts):
        given = zoo["sd3"]
        return training_job.Job.checked(
            model=given.model, latents=[given.latent(2, seed=5)["samples"]], texts=texts, negative=given.negative,
            config=config, rank=4, stage="both", matching=matching, bank=tmp_path / "bank",
        )  # fmt: skip

    given = zoo["sd3"]
    training_session.run(job([given.cond(1)]), lambda steps: {})
    with pytest.raises(PCMError, match=r"The bank in .* was made for another model, LoRA or settings\."):
        training_session.run(job([given.cond(3)]), lambda steps: {})


@pytest.mark.parametrize("family", ["sd3", *OTHERS])
def test_a_session_goes_on_in_the_stage_it_was_in(host, zoo, tmp_path: Path, family):
    given = zoo[family]
    config = core_distill.DistillConfig(phases=2, grid=4, steps=2, batch=2, lr=3e-3, cfg=(2.0, 2.0))

    def job(**more):
        matching = core_distill.matching_after(config, steps=3, cfg=3.0)
        settings = {"stage": "both", "matching": matching, "bank": tmp_path / "bank", **more}
        return training_job.Job.checked(
            model=given.model, latents=[given.latent(2, seed=5)["samples"]], texts=[given.positive],
            negative=given.negative, config=config, rank=4, **settings,
        )  # fmt: skip

    def trained(asked, *, start: dict | None = None, keep: dict[int, dict] | None = None):
        def watch(session):
            if start is not None:
                session.resume(start)

            def after(report):
                if keep is not None:  # written at once: an optimizer's state is the one it works with
                    torch.save(session.state(), tmp_path / f"{report.step}.pt")
                    keep[report.step] = torch.load(tmp_path / f"{report.step}.pt", weights_only=True)

            return after

        return training_session.run(asked, lambda steps: {"steps": str(steps)}, watch=watch)

    kept: dict[int, dict] = {}
    whole = trained(job(), keep=kept)
    assert list(kept) == list(range(1, 9)) and (tmp_path / "bank").is_dir()
    for step in (1, 2, 4, 7):
        again = trained(job(), start=kept[step])
        assert again.losses == whole.losses and again.lora.metadata == whole.lora.metadata
        assert all(torch.equal(again.lora[key], whole.lora[key]) for key in whole.lora)

    with pytest.raises(PCMError, match="The checkpoint is that of a matching stage"):
        trained(job(stage="consistency", matching=None), start=kept[7])
    (name,) = host.call("PCMSaveLora", lora=whole.lora, prefix=f"test/resumed_{family}")
    with pytest.raises(PCMError, match="The checkpoint is that of a consistency stage"):
        trained(job(stage="matching", existing=name), start=kept[1])


def test_a_start_may_be_a_file(host, zoo, distil, tmp_path: Path):
    given = zoo["sd3"]
    (name,) = host.call("PCMSaveLora", lora=distil(given, **SHORT).args[0], prefix="test/file")
    path = training_job.existing_path(name)
    config = core_distill.DistillConfig(phases=2, grid=4, steps=2, batch=2, lr=3e-3, cfg=(2.0, 2.0))
    outcome = training_session.run(
        training_job.Job.checked(
            model=given.model, latents=[given.latent(2, seed=5)["samples"]], texts=[given.positive],
            negative=given.negative, config=config, rank=4, existing=path,
        ),
        lambda steps: {},
    )  # fmt: skip
    assert outcome.lora is not None and load_file(path).keys() == outcome.lora.keys()
