"""Distill PCM LoRA on the real host: every kind of model learns, the file is the student, the base stays as it was."""

from __future__ import annotations

import re
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import tiny
import torch
from devices import ON_CPU
from distilling import RANKS
from safetensors.torch import load_file

from pcm_core import distill as core_distill
from pcm_core import errors as core_errors
from pcm_core import lora as core_lora
from pcm_core.distill import file as core_file
from pcm_core.distill import trainer as core_distill_trainer
from pcm_core.errors import PCMError
from phased_consistency.nodes import host as nodes_host
from phased_consistency.nodes.drawing import loss_curve
from phased_consistency.nodes.host import backbone as host_backbone
from phased_consistency.nodes.host import lora as host_lora
from phased_consistency.nodes.host import training as host_training
from phased_consistency.nodes.training import job as training_job
from phased_consistency.nodes.training import preview
from phased_consistency.nodes.training import session as training_session

FAMILIES = ["eps", "v", "sd3", "wan"]
IN_PLACE = ["flux", "hunyuan_video"]  # their blocks write over what a gradient needs


def predict(host, model, given: tiny.Tiny, sigma: float = 0.7) -> torch.Tensor:
    """x0 of one fixed point through the host's guider, on the CPU."""
    import comfy.samplers

    found = []

    def probe(net, x, sigmas, extra_args=None, callback=None, disable=None):
        found.append(net(x, sigmas[0] * x.new_ones(len(x)), **extra_args))
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(given.positive, given.negative)
    noise = torch.randn(given.latent()["samples"].shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(probe), torch.tensor([sigma, 0.0]), seed=0
        )
    return found[0].cpu().clone()


def with_random_ups(session, generator: torch.Generator) -> None:
    """Adapters as trained ones are: at zero, half of all gradients are zero."""
    with torch.no_grad():
        for pair in session.adapters.pairs.values():
            pair.up.copy_(0.05 * torch.randn(pair.up.shape, generator=generator))


def loss_on_fixed_batches(distill, session) -> tuple[float, float]:
    """Loss of the untrained and of the trained adapters on the same draws, so that luck plays no part."""
    trained = session.adapters.state()

    def measure() -> float:
        session.trainer.generator.manual_seed(99)
        return sum(float(session.trainer._pass()[0]) for _ in range(4))

    around = session.autograd.around_step()
    with distill.differentiable_weights(session.base), session.adapters.attached(), around:
        after = measure()
        with torch.no_grad():
            for pair in session.adapters.pairs.values():
                pair.up.zero_()
        before = measure()
    session.adapters.load(trained)
    return before, after


@pytest.mark.parametrize("family", [*FAMILIES, *IN_PLACE, "ltxv"])
def test_distil_save_load(host, zoo, distil, family):
    """Loss falls, base bits stay, and the saved file on a fresh model is the student that was in memory."""
    given = zoo[family]
    before = predict(host, given.model, given)  # first: it takes off what an earlier test's LoRA left patched
    weights = tiny.fingerprint(given.model.model.state_dict())
    seen = {}
    original = training_session.Session.run

    def run_and_probe(session):
        original(session)
        seen["loss"] = loss_on_fixed_batches(core_distill, session)
        x = 0.7 * torch.randn(given.latent()["samples"].shape, generator=torch.Generator().manual_seed(3))
        x, sigma, captions = x.to(session.device), torch.full((1,), 0.7, device=session.device), torch.tensor([0])
        with session.adapters.attached(), torch.no_grad():
            for mode in ("off", "student"):
                with session.adapters.use(mode):
                    seen[mode] = session.backbone(x, sigma, captions).cpu()

    training_session.Session.run = run_and_probe
    try:
        lora, loss_map, steps = distil(given).args
    finally:
        training_session.Session.run = original
    losses = loss_map["loss"]
    assert steps == len(losses) == RANKS["steps"]
    untrained, trained = seen["loss"]
    assert trained < 0.98 * untrained
    assert tiny.fingerprint(given.model.model.state_dict()) == weights
    assert torch.equal(predict(host, given.model, given), before)
    assert not any(module._forward_hooks for module in given.model.model.modules())
    (name,) = host.call("PCMSaveLora", lora=lora, prefix=f"test/{family}")
    loaded, report, *_ = host.call("PCMLoraLoader", model=given.model, lora_name=name)
    after = predict(host, loaded, given)
    scale = float(after.abs().max())
    same = 1e-6 if ON_CPU else 4e-6  # fp32 arithmetic in another order; 7e-7 was seen on the CPU
    torch.testing.assert_close(after, seen["student"], rtol=0, atol=same * scale)
    assert float((after - before).abs().max()) > 1e-3 * scale, "the LoRA changes nothing"
    profile = nodes_host.profile_of(loaded)
    assert (profile.phases, profile.steps, profile.cfg, profile.grid) == (2, 2, 1.0, 4), report
    assert torch.equal(predict(host, given.model, given), before)


def graph(given: tiny.Tiny, **settings):
    """An API prompt: latents and texts from a helper, train, save, load, sample."""
    node = {"model": ["m", 0], "latents": ["m", 1], "positive": ["m", 2], "negative": ["m", 3]}
    return {
        "m": {"class_type": "TestTinyModel", "inputs": {}},
        "t": {"class_type": "PCMDistillLora", "inputs": {**node, **_defaults(), **RANKS, "steps": 4, **settings}},
        "s": {"class_type": "PCMSaveLora", "inputs": {"lora": ["t", 0], "prefix": "graph/one", "dtype": "fp32"}},
        "l": {"class_type": "PCMLoraLoader", "inputs": {"model": ["m", 0], "lora_name": ["s", 0], "strength": 1.0,
                                                        "allow_partial": False}},
        "p": {"class_type": "PCMSampler", "inputs": {**_sampler_defaults(), "model": ["l", 0], "positive": ["m", 2],
                                                     "negative": ["m", 3], "latent_image": ["m", 4], "seed": 1}},
        "o": {"class_type": "TestKeep", "inputs": {"value": ["p", 0], "losses": ["t", 1]}},
    }  # fmt: skip


def _node_defaults(node_id: str):
    import nodes

    required = nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]
    return {name: options[0]["default"] for name, (_, *options) in required.items()
            if options and "default" in options[0]}  # fmt: skip


def _defaults():
    return {**_node_defaults("PCMDistillLora"), "existing_lora": "[none]"}


def _sampler_defaults():
    return _node_defaults("PCMSampler")


@pytest.fixture
def helper_nodes(host, zoo):
    """Two nodes that stand for loaders and the end of a graph."""
    given, kept = zoo["sd3"], {}

    class TestTinyModel:
        RETURN_TYPES = ("MODEL", "LATENT", "CONDITIONING", "CONDITIONING", "LATENT")
        OUTPUT_IS_LIST = (False, True, True, False, False)
        FUNCTION, CATEGORY = "make", "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {}}

        def make(self):
            latents = [given.latent(1, seed=i) for i in range(3)]
            return given.model, latents, [given.cond(i) for i in range(3)], given.negative, given.latent()

    class TestKeep:
        RETURN_TYPES, OUTPUT_NODE = (), True
        FUNCTION, CATEGORY = "keep", "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {"value": ("LATENT",), "losses": ("LOSS_MAP",)}}

        def keep(self, value, losses):
            kept.update(value=value, losses=losses)
            return {}

    added = {"TestTinyModel": TestTinyModel, "TestKeep": TestKeep}
    host.nodes.NODE_CLASS_MAPPINGS.update(added)
    yield given, kept
    for name in added:
        del host.nodes.NODE_CLASS_MAPPINGS[name]


def test_train_save_load_sample_in_one_graph(host, helper_nodes):
    given, kept = helper_nodes
    executor = host.run_prompt(graph(given, preview_every=2))
    assert executor.success, executor.status_messages
    assert torch.isfinite(kept["value"]["samples"]).all()
    assert len(kept["losses"]["loss"]) == 4
    outputs = executor.history_result["outputs"]
    assert "graph" in outputs["s"]["text"][0]
    assert outputs["t"]["images"]


@pytest.mark.parametrize("family", FAMILIES)
def test_cancel_saves_what_was_trained_and_leaves_the_model(host, zoo, distil, family):
    given = zoo[family]
    before = predict(host, given.model, given)  # first: it takes off what an earlier test's LoRA left patched
    weights = tiny.fingerprint(given.model.model.state_dict())
    import comfy.model_management

    original = training_session.Session._after_step

    def cancel_at_three(session, report):
        if report.step == 3:
            comfy.model_management.interrupt_current_processing()
        original(session, report)

    training_session.Session._after_step = cancel_at_three
    known = set(host_lora.lora_names())
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            distil(given)
    finally:
        training_session.Session._after_step = original
    assert tiny.fingerprint(given.model.model.state_dict()) == weights
    assert torch.equal(predict(host, given.model, given), before)
    assert not comfy.model_management.in_training
    (saved,) = set(host_lora.lora_names()) - known
    assert "pcm_interrupted" in saved
    loaded, *_ = host.call("PCMLoraLoader", model=given.model, lora_name=saved)
    assert not torch.equal(predict(host, loaded, given), before)
    metadata = core_lora.read_lora(host_lora.lora_path(saved))[1]
    assert metadata["pcm_train_steps"] == "3"


def first_step(host, distil, given) -> dict[str, torch.Tensor]:
    """The LoRA of a run that was cancelled after one step."""
    found = []
    original = training_session.Session._after_step

    def stop(session, report):
        found.append(session.lora(lambda steps: {}))
        raise KeyboardInterrupt

    training_session.Session._after_step = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            distil(given)
    finally:
        training_session.Session._after_step = original
    return dict(found[0])


def test_a_diverging_run_says_where_and_saves_the_last_good(host, zoo, distil):
    given = zoo["sd3"]
    errors = core_errors
    predict(host, given.model, given)  # takes off what an earlier test's LoRA left patched
    weights = tiny.fingerprint(given.model.model.state_dict())
    backbone = host_backbone.Backbone
    original, calls = backbone.__call__, []

    def poisoned(self, x, sigma, captions):
        if torch.is_grad_enabled():
            calls.append(1)
        out = original(self, x, sigma, captions)
        return out * float("nan") if len(calls) == 3 else out

    backbone.__call__ = poisoned
    known = set(host_lora.lora_names())
    try:
        with pytest.raises(errors.PCMError, match=r"at step 3\..*Saved as .*pcm_interrupted"):
            distil(given)
    finally:
        backbone.__call__ = original
    lora = core_lora
    (saved,) = set(host_lora.lora_names()) - known
    tensors, metadata = lora.read_lora(host_lora.lora_path(saved))
    # What the second update made gave no finite loss; what the first made did.
    assert metadata["pcm_train_steps"] == "1"
    good = first_step(host, distil, given)
    assert tensors.keys() == good.keys() and all(torch.equal(tensors[key], good[key]) for key in good)
    assert tiny.fingerprint(given.model.model.state_dict()) == weights


def test_go_on_from_an_existing_lora(host, zoo, distil):
    given = zoo["sd3"]
    lora = distil(given, steps=5).args[0]
    (name,) = host.call("PCMSaveLora", lora=lora, prefix="test/first")
    more = distil(given, steps=1, learning_rate=1e-8, existing_lora=name).args[0]
    assert more.keys() == lora.keys()
    for key, tensor in lora.items():
        torch.testing.assert_close(more[key], tensor, rtol=1e-4, atol=1e-6)
    assert more.metadata["pcm_train_steps"] == "6"
    errors = core_errors
    with pytest.raises(errors.PCMError, match="rank it was trained with"):
        distil(given, rank=8, existing_lora=name)


@pytest.mark.parametrize("settings", [
    {"cfg_min": 1.0, "cfg_max": 1.0, "caption_dropout": 0.2}, {"adversarial": 0.1}, {"gradient_checkpointing": True},
    {"compute": "bf16"}, {"ema": 0.9}, {"loss": "l2"}, {"grad_accumulation": 2}, {"targets": "attn, mlp"},
    {"solver_grid": 100}, {"preview_every": 1},
], ids=str)  # fmt: skip
def test_every_option_trains(zoo, distil, settings):
    lora, losses, steps = distil(zoo["sd3"], steps=3, **settings).args
    assert steps == len(losses["loss"]) == 3
    assert all(torch.isfinite(tensor).all() for tensor in lora.values())
    assert any(bool(tensor.any()) for key, tensor in lora.items() if key.endswith("lora_up.weight"))
    assert all(tensor.dtype == torch.float32 for tensor in lora.values())


@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_a_sample_grid_is_drawn_every_k_steps(host, zoo, distil, monkeypatch, family):
    shown, taken = [], []
    sample, show, tell = preview.Preview.draw, host_training.Progress.show, training_session.Session._tell
    drawn = {}

    def telling(self, report):
        taken.append(report.step)
        tell(self, report)

    def sampling(self):
        drawn[taken[-1]] = sample(self)
        return drawn[taken[-1]]

    def showing(self, step, picture):
        shown.append((step, picture))
        show(self, step, picture)

    monkeypatch.setattr(training_session.Session, "_tell", telling)
    monkeypatch.setattr(preview.Preview, "draw", sampling)
    monkeypatch.setattr(host_training.Progress, "show", showing)
    result = distil(zoo[family], steps=7, preview_every=3)
    assert list(drawn) == [3, 6]
    assert [step for step, _ in shown] == list(range(1, 8))
    pictures = dict(shown)
    # The grid stands below the curve: the same picture without it is smaller.
    bare = loss_curve.draw_loss(result.args[1]["loss"], 7, None)
    for step, grid in drawn.items():
        assert grid.width == 4 * grid.height and len(grid.convert("L").getcolors(maxcolors=1 << 16)) > 8
        assert pictures[step].height > bare.height
    first, second = drawn.values()
    assert first.tobytes() != second.tobytes(), "the student is not what it was"
    drawn.clear()
    distil(zoo[family], steps=3, preview_every=0)
    assert not drawn


def test_the_discriminator_looks_where_it_helped(host, zoo, distil, monkeypatch):
    trainer, spans = core_distill_trainer.Trainer, []
    draw = trainer._draw

    def drawing(self):
        batch = draw(self)
        edge = self.grid.edge[batch.index]
        top = torch.stack([self.grid.sigma[self.grid.edge == e].max() for e in edge])
        spans.append(((batch.level - edge) / (top - edge), self.config.adversarial_lr))
        return batch

    monkeypatch.setattr(trainer, "_draw", drawing)
    distil(zoo["sd3"], steps=4, adversarial=0.1, solver_grid=100)
    assert 0 < max(float(share.max()) for share, _ in spans) < 0.5
    assert {rate for _, rate in spans} == {1e-3}


def test_a_seed_decides_every_bit_and_checkpointing_none(zoo, distil):
    plain = distil(zoo["sd3"], steps=3).args
    assert distil(zoo["sd3"], steps=3).args[1] == plain[1]
    assert distil(zoo["sd3"], steps=3, gradient_checkpointing=True).args[1]["loss"] == pytest.approx(plain[1]["loss"])
    assert distil(zoo["sd3"], steps=3, seed=1).args[1] != plain[1]


def test_texts_of_other_lengths_and_latents_of_other_sizes(zoo, distil):
    given = zoo["sd3"]
    longer = given.cond(4)
    longer[0][0] = torch.cat([longer[0][0], longer[0][0][:, :5]], 1)  # 12 and 17 tokens: no common batch
    wide = {"samples": torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))}
    result = distil(given, steps=4, latents=[given.latent(1, seed=1), wide], positive=[given.positive, longer])
    assert result.args[2] == 4


def test_bad_input(host, zoo, distil):
    import comfy.model_management

    given, error = zoo["sd3"], PCMError
    with pytest.raises(error, match="this model's latents have 16 channels"):
        distil(given, latents=[{"samples": torch.zeros(1, 4, 8, 8)}])
    with pytest.raises(error, match="no latents"):
        distil(given, latents=[{"samples": torch.zeros(0, 16, 8, 8)}])
    with pytest.raises(error, match="NaN"):
        distil(given, latents=[{"samples": torch.full((1, 16, 8, 8), float("nan"))}])
    with pytest.raises(error, match="positive is missing"):
        distil(given, positive=[])
    with pytest.raises(error, match="no negative conditioning"):
        distil(given, negative=[])
    with pytest.raises(error, match="2 texts for 3 latents"):
        distil(given, latents=[given.latent(1, seed=i) for i in range(3)], positive=[given.positive] * 2)
    with pytest.raises(error, match="has 2 parts"):
        distil(given, positive=[given.positive + given.negative])
    with pytest.raises(error, match="carries mask"):
        distil(given, positive=[[[given.positive[0][0], {**given.positive[0][1], "mask": torch.ones(1, 8, 8)}]]])
    with pytest.raises(error, match="No module's name contains nothing_here"):
        distil(given, targets="nothing_here")
    with pytest.raises(error, match="learning_rate is nan"):
        distil(given, learning_rate=float("nan"))
    with pytest.raises(error, match="a range of numbers"):
        distil(given, cfg_min=5.0, cfg_max=4.0)
    with pytest.raises(error, match="CogVideoX"):
        distil(zoo["cogvideo"])
    with pytest.raises(error, match="several streams"):
        distil(zoo["ltx2"])
    assert not comfy.model_management.in_training


def test_a_model_with_a_few_step_lora_is_no_teacher(host, zoo, distil):
    given, error = zoo["sd3"], PCMError
    lora = distil(given, steps=1).args[0]
    (name,) = host.call("PCMSaveLora", lora=lora, prefix="test/teacher")
    loaded, *_ = host.call("PCMLoraLoader", model=given.model, lora_name=name)
    with pytest.raises(error, match="carries a PCM LoRA"):
        distil(given, model=loaded)


def test_a_model_without_a_path_is_trained_like_any_other(zoo, distil):
    """The host's own trainer reloads the model from its file and refuses one that a custom loader made from tensors."""
    import comfy.sd

    given = zoo["sd3"]
    model = comfy.sd.load_diffusion_model_state_dict(load_file(given.path))
    assert getattr(model, "cached_patcher_init", None) is None
    assert distil(replace(given, model=model), steps=2).args[1] == distil(given, steps=2).args[1]


@pytest.mark.parametrize(
    "prefix",
    [
        "../out",
        "",
        "a/../../b",
        "/abs",
        "C:\\x",
        "nul\0l",
        "a\nb",
        "\x1b[31m",
        "\ud800",
        "9" * 6000,
        "a/" + "\u56fe" * 100,
    ],
)
def test_a_file_stays_in_its_folder(host, prefix):
    with pytest.raises(PCMError, match="inside output/loras"):
        host.call("PCMSaveLora", lora={"a.lora_up.weight": torch.zeros(2, 2)}, prefix=prefix)


def test_a_full_disk_loses_nothing(host, monkeypatch):
    def full(state, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(core_file, "save_file", full)
    with pytest.raises(PCMError, match="No space left"):
        host.call("PCMSaveLora", lora={"a.lora_up.weight": torch.zeros(2, 2)}, prefix="crowded/disk")
    assert not [name for name in host_lora.lora_names() if "crowded" in name]


def test_a_lora_whose_tensors_share_memory_is_saved_for_everybody(host):
    whole = torch.arange(8.0).reshape(2, 4)
    (name,) = host.call("PCMSaveLora", lora={"a.lora_up.weight": whole, "b.lora_up.weight": whole[:1]}, prefix="test/x")
    path = host_lora.lora_path(name)
    tensors, _ = core_lora.read_lora(path)
    assert torch.equal(tensors["a.lora_up.weight"], whole) and torch.equal(tensors["b.lora_up.weight"], whole[:1])
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert not list(path.parent.glob("*.part"))


def test_loras_of_other_trainers_and_smaller_dtypes(host, caplog):
    lora = {"diffusion_model.a.lora_up.weight": torch.randn(2, 2), "diffusion_model.a.alpha": torch.tensor(2.0)}
    with caplog.at_level("WARNING"):
        (name,) = host.call("PCMSaveLora", lora=lora, prefix="test/other", dtype="fp16")
    assert "another trainer" in caplog.text
    tensors, _ = core_lora.read_lora(host_lora.lora_path(name))
    assert tensors["diffusion_model.a.lora_up.weight"].dtype == torch.float16
    assert float(tensors["diffusion_model.a.alpha"]) == 2


@pytest.mark.parametrize("losses", [[], [0.5], [0.5, 0.5], [0.5, float("nan"), 0.1], [0.0, 0.0]], ids=str)
def test_the_loss_plot_never_divides_by_zero(host, losses):
    picture = loss_curve.draw_loss(losses, 10)
    assert picture.size == (640, 240)


@pytest.mark.parametrize("family", ["sd3", *IN_PLACE])
def test_checkpointing_changes_no_gradient(host, zoo, distil, family):
    gradients = []
    original = training_session.Session.run

    def probe(session):
        with_random_ups(session, torch.Generator().manual_seed(1))
        step, trainer = session.trainer.step, session.trainer

        def look():
            trainer._zero_grad()
            trainer._pass()
            gradients.append(torch.cat([g.flatten() for g in trainer._gradients()]))
            trainer._zero_grad()
            trainer.generator.manual_seed(0)
            return step()

        trainer.generator.manual_seed(5)
        trainer.step = look
        original(session)

    training_session.Session.run = probe
    try:
        for checkpointing in (False, True):
            distil(zoo[family], steps=1, gradient_checkpointing=checkpointing)
    finally:
        training_session.Session.run = original
    plain, again = gradients
    assert plain.abs().max() > 0
    assert (again - plain).norm() < 1e-4 * plain.norm()


def test_the_adversarial_loss_takes_texts_that_make_no_batch(host, zoo, distil):
    given = zoo["sd3"]
    texts = [[[torch.randn(1, length, given.positive[0][0].shape[-1]), given.positive[0][1]]] for length in (5, 12)]
    lora, _, steps = distil(
        given, steps=2, adversarial=0.1, positive=texts, latents=[given.latent(2, seed=5), given.latent(2, seed=6)]
    ).args
    assert steps == 2 and lora


def test_a_model_that_scales_its_noise_is_refused(host, zoo, distil, monkeypatch):
    monkeypatch.setattr(nodes_host, "noise_scale", lambda model: 8.0)
    with pytest.raises(ValueError, match="scales its noise by 8"):
        distil(zoo["sd3"])


def test_latents_of_another_rank(host, zoo, distil):
    """A picture for a model of clips is a clip of one; a clip for a model of pictures is refused."""
    given = zoo["wan"]
    picture = {"samples": given.latent(2, seed=5)["samples"][:, :, 0]}
    assert distil(given, steps=1, latents=[picture]).args[2] == 1
    with pytest.raises(ValueError, match=r"Latent 1 has shape .*4 dimensions"):
        distil(zoo["sd3"], latents=[{"samples": zoo["sd3"].latent()["samples"].unsqueeze(2)}])


def test_a_family_that_autograd_cannot_go_through_is_refused(host, zoo, distil, monkeypatch):
    monkeypatch.setattr(host_backbone, "_COPIED", ())
    with pytest.raises(ValueError, match="writes over what its own gradient needs"):
        distil(zoo["ltxv"], steps=1)


def test_a_network_that_writes_over_the_input_of_its_blocks_is_not_checkpointed(zoo, distil):
    with pytest.raises(ValueError, match=r"LTXV writes over .*Expected: gradient_checkpointing off"):
        distil(zoo["ltxv"], steps=1, gradient_checkpointing=True)


def test_gradients_through_what_is_written_over_are_those_of_a_network_that_does_not(host, zoo, distil, monkeypatch):
    """LTXV's block as it is, and the same without writing over anything."""
    import comfy.ldm.common_dit
    from comfy.ldm.lightricks.model import BasicTransformerBlock

    def forward(self, x, context=None, attention_mask=None, timestep=None, pe=None, transformer_options=None, **_):
        rows = self.scale_shift_table[None, None, :6] + timestep.reshape(len(x), timestep.shape[1], 6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = rows.unbind(dim=2)
        norm, options = comfy.ldm.common_dit.rms_norm, {"transformer_options": transformer_options}
        x = x + self.attn1(norm(x) * (1 + scale) + shift, pe=pe, **options) * gate
        x = x + self.attn2(x, context=context, mask=attention_mask, **options)
        return x + self.ff(norm(x) * (1 + scale_mlp) + shift_mlp) * gate_mlp

    def gradient():
        """Of one step with trained adapters."""
        found = []
        original = training_session.Session.run

        def probe(session):
            with_random_ups(session, torch.Generator().manual_seed(7))
            trainer = session.trainer
            update = trainer._update

            def look(lr):
                found.append(torch.cat([part.flatten() for part in trainer._gradients()]))
                update(lr)

            trainer._update = look
            original(session)

        with monkeypatch.context() as patch:
            patch.setattr(training_session.Session, "run", probe)
            distil(zoo["ltxv"], steps=1)
        return found[0]

    ours = gradient()
    monkeypatch.setattr(BasicTransformerBlock, "forward", forward)
    plain = gradient()
    assert plain.abs().max() > 0
    assert (ours - plain).norm() < 1e-4 * plain.norm()


def test_a_kernel_without_a_gradient_is_named(host, zoo, distil, monkeypatch):
    """Which families call one depends on what the host's kernels are built for."""

    def kernel(trainer, *_):
        raise RuntimeError("Trying to backward through a::b but no autograd formula was registered.")

    monkeypatch.setattr(core_distill.Trainer, "run", kernel)
    with pytest.raises(ValueError, match="SD3 calls a kernel that has no gradient"):
        distil(zoo["sd3"], steps=1)


def test_the_model_is_loaded_whole(zoo, distil, monkeypatch):
    """Layers that come to the device one by one share a buffer, and a gradient would find another layer's weights."""
    import comfy.model_management as management

    asked, modes, original = [], [], management.load_models_gpu

    def load(models, **options):
        asked.append(options.get("force_full_load", False))
        modes.append(torch.is_inference_mode_enabled())
        original(models, **options)

    monkeypatch.setattr(management, "load_models_gpu", load)
    given = zoo["sd3"]
    wrappers = {name: dict(found) for name, found in given.model.wrappers.items()}
    distil(given, steps=1)
    assert asked and all(asked)
    assert modes[0], "moved in another mode than it was made in"
    assert given.model.wrappers == wrappers, "the model that came in was changed"


@pytest.mark.parametrize("family", ["sdxl", "sd3", "wan"])
def test_weights_that_went_to_a_gpu_after_inference_mode(zoo, distil, family):
    """A loader node makes them in inference mode, the way to the device writes to ``.data``: no version is left.

    Then even a view cannot be made of them outside inference mode, with gradients or without.
    """
    given = zoo[family]
    with torch.inference_mode():
        model = tiny.load(given.path)
    for parameter in model.model.parameters():
        parameter.data = parameter.data.clone()
    with pytest.raises(RuntimeError, match="do not track version counter"), torch.no_grad():
        next(parameter for parameter in model.model.parameters() if parameter.ndim == 2).t()
    before = [(name, id(weight)) for name, weight in model.model.named_parameters()]
    _, losses, steps = distil(replace(given, model=model), steps=2).args
    assert steps == 2 and all(loss > 0 for loss in losses["loss"])
    assert [(name, id(weight)) for name, weight in model.model.named_parameters()] == before


def test_a_model_too_big_for_the_device_is_refused(zoo, distil, monkeypatch):
    import comfy.model_management as management

    def full(*_, **__):
        raise management.OOM_EXCEPTION("out of memory")

    monkeypatch.setattr(management, "load_models_gpu", full)
    device = re.escape(str(zoo["sd3"].model.load_device))
    with pytest.raises(ValueError, match=rf"MB of the model do not fit on {device}\. Expected: all of the model there"):
        distil(zoo["sd3"], steps=1)


def test_weights_that_stayed_elsewhere_are_refused(host):
    base = torch.nn.Module()
    base.diffusion_model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(512, 512, device="meta"))
    check_loaded = host_training.check_loaded
    with pytest.raises(ValueError, match="1 MB of the model's weights are not on cpu"):
        check_loaded(base, torch.device("cpu"))
    del base.diffusion_model[1]
    check_loaded(base, torch.device("cpu"))


def test_a_streamed_model_without_a_file_is_refused(zoo, distil, monkeypatch):
    """What the host streams layer by layer it has to read again, whole."""
    given = zoo["sd3"]

    def clone(disable_dynamic=False):
        assert disable_dynamic
        raise RuntimeError("Cannot create non-dynamic delegate")

    monkeypatch.setattr(given.model, "clone", clone)
    monkeypatch.setattr(given.model, "is_dynamic", lambda: True)
    with pytest.raises(ValueError, match=r"cannot be loaded whole .*Load Checkpoint"):
        distil(given, steps=1)


def test_a_session_dies_with_its_run(host, zoo, distil, monkeypatch):
    """With the optimiser and all that lies on the device beside the model."""
    session, found = training_session.Session, []
    original = session.run

    def run(self):
        found.append(weakref.ref(self))
        original(self)

    monkeypatch.setattr(session, "run", run)
    distil(zoo["sd3"], steps=1)
    assert [reference() for reference in found] == [None]


@pytest.mark.parametrize("ending", ["done", "cancelled"])
def test_a_model_read_again_leaves_nothing(host, zoo, distil, monkeypatch, ending):
    """No entry in the host's list, which would become the streamed model's, and after a whole run no memory either."""
    import comfy.model_management as management

    given, sessions = zoo["sd3"], training_session.Session
    streamed = given.model.clone()  # never loaded: the host would look for what only a streamed model has
    again, original = [], sessions.run

    def clone(disable_dynamic=False):
        assert disable_dynamic
        copy = tiny.load(given.path).clone()
        copy.parent = streamed
        again.append(weakref.ref(copy.model))
        return copy

    def run(session):
        assert any(entry.model.model is session.base for entry in management.current_loaded_models)
        original(session)
        if ending == "cancelled":
            raise management.InterruptProcessingException

    monkeypatch.setattr(streamed, "clone", clone)
    monkeypatch.setattr(streamed, "is_dynamic", lambda: True)
    monkeypatch.setattr(sessions, "run", run)
    before = [entry.model for entry in management.current_loaded_models]
    with nullcontext() if ending == "done" else pytest.raises(management.InterruptProcessingException):
        distil(given, model=streamed, steps=2)
    (found,) = again
    assert [entry.model for entry in management.current_loaded_models if entry.model not in before] == []
    if ending == "done":
        assert found() is None, "the model is still in memory"


def test_what_resolution_bucket_delivers(host, zoo, distil, monkeypatch):
    """A batch per size, with as many texts as rows: every row keeps its own."""
    given = zoo["sd3"]
    latents = [given.latent(1, seed=seed) for seed in range(3)]
    latents[1] = {"samples": latents[1]["samples"][..., :-2]}
    texts = [[[given.positive[0][0] + number, given.positive[0][1]]] for number in range(3)]
    buckets, conditionings = host.call("ResolutionBucket", latents=latents, conditioning=texts)
    assert [len(text) for text in conditionings] == [2, 1]
    seen, original = [], training_session.Session.run

    def look(session):
        seen.append(session)
        original(session)

    monkeypatch.setattr(training_session.Session, "run", look)
    assert distil(given, steps=2, latents=buckets, positive=conditionings).args[2] == 2
    (session,) = seen
    numbers = session.data.captions(torch.arange(3))
    kept = [float(session.job.texts[number][0][0].sum()) for number in numbers]
    assert kept == [float(texts[order][0][0].sum()) for order in (0, 2, 1)]


def test_what_is_not_used_is_said(zoo, distil, caplog):
    given = zoo["sd3"]
    latent = given.latent(2, seed=5)
    with caplog.at_level("WARNING"):
        distil(given, steps=1, latents=[latent | {"noise_mask": torch.ones(1, 8, 8)}], negative=[given.negative] * 2)
    assert "masks of the latents are not used" in caplog.text
    assert "2 negatives came" in caplog.text


@pytest.mark.parametrize("bare", [False, True])
def test_a_network_with_a_bare_in_place_call_runs_as_it_is(host, zoo, distil, bare):
    """Where a write that nobody returns counts, landing elsewhere would change what the network computes."""
    given, seen = zoo["sd3"], []
    original = training_session.Session.run

    def look(session):
        seen.append(session.backbone.around)
        original(session)

    def write(module, inputs, output):
        slope = torch.linspace(-1, 1, output.shape[-1], device=output.device)
        written = output.add_(slope)  # not the same everywhere: a norm follows
        return None if bare else written

    hook = given.model.model.diffusion_model.x_embedder.register_forward_hook(write)
    training_session.Session.run = look
    try:
        assert distil(given, steps=2).args[2] == 2
    finally:
        training_session.Session.run = original
        hook.remove()
    assert (seen == [host_backbone.OutOfPlaceOps]) is not bare


def test_writing_elsewhere_keeps_the_dtype(host):
    half, full = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    with host_backbone.OutOfPlaceOps():
        before = half
        half += full
    assert half.dtype == torch.bfloat16 and half is not before and float(before[0]) == 1


def test_more_phases_than_usual_grids_hold_are_trained_on_a_grid_that_is_named(host):
    training, distill = training_job, core_distill
    config = training.with_matching_grid(distill.DistillConfig(phases=64, steps=1), 100)
    assert (config.grid, config.spacing) == (100, "aligned")


def test_a_lora_that_comes_by_a_link_does_not_train_anew_by_itself(host):
    """The host asks with None for it; an error there would mean that nothing is ever kept."""
    assert host.node("PCMDistillLora").fingerprint_inputs(existing_lora=[None]) is None
