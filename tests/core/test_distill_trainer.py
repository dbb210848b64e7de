"""The distillation trainer on networks small enough to check by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.common import peak_bytes
from pcm_core import distill
from pcm_core.errors import PCMError
from pcm_core.phases import build_schedule, eval_timesteps, phase_edges
from pcm_core.profiles import profile_from_metadata
from pcm_core.sampling import sample_pcm

FLOW_TABLE = torch.arange(1, 1001) / 1000


class Velocity(nn.Module):
    """A flow network on points [B, 2] with a caption: small, smooth, with a list of blocks."""

    def __init__(self, width: int = 24, captions: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.enter = nn.Linear(3, width)
        self.caption = nn.Embedding(captions + 1, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.SiLU()) for _ in range(2))
        self.token = nn.Unflatten(1, (1, width))  # [B, 1, C], as a transformer's blocks give it
        self.leave = nn.Linear(width, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        h = self.enter(torch.cat([x, sigma[:, None]], 1)) + self.caption(captions + 1)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(self.token(h)[:, 0])


class Recorder:
    """The backbone as the trainer calls it: x0 predictions, and a list of its calls with their batch sizes."""

    def __init__(self, network: nn.Module, adapters: distill.Adapters) -> None:
        self.network, self.adapters = network, adapters
        self.calls: list[tuple[str, int, bool]] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.adapters.mode, len(x), torch.is_grad_enabled()))
        return x - sigma[:, None] * self.network(x, sigma, captions)


def make(processes: distill.Processes | None = None, dtype: torch.dtype = torch.float32, **settings):
    config = distill.DistillConfig(**{"phases": 2, "steps": 40, "batch": 16, "lr": 1e-2, "warmup": 4, **settings})
    network = Velocity()
    adapters = distill.Adapters(
        distill.adaptable(network, ["blocks", "leave"]), 4, generator=torch.Generator().manual_seed(1), dtype=dtype
    )
    backbone = Recorder(network, adapters)
    clean = torch.randn(64, 2, generator=torch.Generator().manual_seed(2)) * 0.2 + 1
    data = distill.LatentSet([clean[:32], clean[32:]], [0, 1])
    discriminator = None
    if config.adversarial:
        heads = distill.DiscriminatorHeads([24], 32, torch.Generator().manual_seed(3))
        discriminator = distill.Discriminator(distill.BlockFeatures(backbone, [network.token]), heads)
    trainer = distill.Trainer(
        backbone, adapters, data, FLOW_TABLE, config, flow=True, discriminator=discriminator, processes=processes
    )
    return trainer, network, backbone


def same(one: dict, other: dict) -> bool:
    """Whether two nested states hold the same bits under the same names."""
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else same(value, other[name])
        for name, value in one.items()
    )


def points() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(9))
    return x, torch.full((4,), 0.5), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("settings", [
    {}, {"cfg": (2.0, 4.0)}, {"loss": "l2"}, {"ema": 0.9, "target": "ema"}, {"accumulate": 2},
    {"caption_dropout": 0.5}, {"adversarial": 0.1},
], ids=str)  # fmt: skip
def test_loss_falls_and_the_base_is_untouched(settings):
    trainer, network, _ = make(**settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with trainer.adapters.attached():
        losses = trainer.run()
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), losses
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_one_step_makes_three_calls():
    """The student, the teacher (captions and null prompt in one call), the target; only the student has a gradient."""
    trainer, _, backbone = make(cfg=(3.0, 3.0))
    with trainer.adapters.attached():
        trainer.step()
    assert backbone.calls == [("student", 16, True), ("off", 32, False), ("student", 16, False)]
    trainer, _, backbone = make()
    with trainer.adapters.attached():
        trainer.step()
    assert backbone.calls == [("student", 16, True), ("off", 16, False), ("student", 16, False)]


def test_guidance_is_comfyui_convention():
    """At cfg = 1 the teacher is the conditional model, at cfg = 0 the unconditional one."""
    conditional, unconditional = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(distill.guided(conditional, unconditional, torch.zeros(3)), unconditional)
    torch.testing.assert_close(distill.guided(conditional, unconditional, torch.ones(3)), conditional)
    six = distill.guided(conditional, unconditional, torch.full((3,), 6.0))
    torch.testing.assert_close(six, conditional + 5 * (conditional - unconditional))  # the official w = 5


def test_same_seed_same_bits_and_another_seed_not():
    def run(seed: int) -> list[float]:
        trainer, _, _ = make(steps=5, seed=seed, cfg=(2.0, 4.0), caption_dropout=0.3)
        with trainer.adapters.attached():
            return trainer.run()

    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"adversarial": 0.1}], ids=str)
def test_resume_continues_to_the_same_bits(settings, tmp_path):
    whole, *_ = make(steps=10, **settings)
    with whole.adapters.attached():
        whole.run()
    first, *_ = make(steps=10, **settings)
    with first.adapters.attached():
        for _ in range(4):
            first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    second, *_ = make(steps=10, **settings)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    with second.adapters.attached():
        second.run()
    assert second.losses == whole.losses
    expected, found = whole.adapters.lora(ema=True), second.adapters.lora(ema=True)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_resume_with_other_settings_is_refused():
    trainer, *_ = make()
    other, *_ = make(lr=1e-3)
    with pytest.raises(PCMError, match=r"lr 0\.01 -> 0\.001"):
        other.load(trainer.state())


def test_two_processes_are_one():
    """Each of two processes sees its half of the same global batch; the mean of their gradients is the whole's."""
    whole, *_ = make(cfg=(2.0, 4.0))
    with whole.adapters.attached():
        whole._zero_grad()
        loss = whole._pass()
    halves = []
    for rank in range(2):
        half, *_ = make(distill.Processes(rank, 2), cfg=(2.0, 4.0))
        with half.adapters.attached():
            half._zero_grad()
            halves.append((half._pass(), half._gradients()))
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, loss)
    for expected, left, right in zip(whole._gradients(), halves[0][1], halves[1][1], strict=True):
        torch.testing.assert_close((left + right) / 2, expected, rtol=1e-4, atol=1e-7)


def test_memory_does_not_grow_with_the_latents():
    """They stay where they are; one batch at a time is copied."""
    latents = [torch.zeros(4, 16, 32, 32) for _ in range(50)]

    def peak(count: int) -> int:
        data, generator = distill.LatentSet(latents[:count], [0] * count), torch.Generator().manual_seed(0)
        return peak_bytes(lambda: data.latents(data.draw(4, generator)))

    assert peak(50) < 1.1 * peak(1) and peak(1) > latents[0].nbytes


def test_accumulation_is_averaged():
    trainer, _, backbone = make(accumulate=3)
    with trainer.adapters.attached():
        report = trainer.step()
    assert len(backbone.calls) == 9
    other, *_ = make()
    with other.adapters.attached():
        single = other.step()
    assert 0.3 < report.loss / single.loss < 3


@pytest.mark.parametrize("bad_step", [1, 4])
def test_nan_stops_with_the_last_good_adapters(bad_step):
    trainer, _, backbone = make(ema=0.9)
    calls = {"students": 0}
    original = type(backbone).__call__

    def poisoned(x, sigma, captions):
        result = original(backbone, x, sigma, captions)
        if backbone.adapters.mode == "student" and torch.is_grad_enabled():
            calls["students"] += 1
            if calls["students"] == bad_step:
                return result * float("nan")
        return result

    trainer.backbone = poisoned
    history = [trainer.adapters.state()]
    with trainer.adapters.attached(), pytest.raises(distill.Diverged, match=f"at step {bad_step}\\.") as error:
        trainer.run(lambda report: history.append(trainer.adapters.state()))
    assert error.value.step == bad_step
    good = history[max(0, bad_step - 2)]  # the adapters that last gave a finite loss
    assert trainer.step_number == len(trainer.losses) == max(0, bad_step - 2)
    assert same(trainer.adapters.state(), good)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_broken_discriminator_is_named(where):
    trainer, *_ = make(adversarial=0.1)
    enter = next(trainer.discriminator.heads.parameters())
    if where == "loss":
        enter.data.fill_(math.nan)
    else:
        enter.register_hook(lambda gradient: gradient * math.nan)
    with trainer.adapters.attached(), pytest.raises(distill.Diverged, match=r"discriminator.*at step 1\."):
        trainer.step()


def test_a_checkpoint_with_another_discriminator_is_refused_and_changes_nothing():
    trainer, *_ = make(adversarial=0.1, steps=3)
    with trainer.adapters.attached():
        trainer.step()
    other, *_ = make(adversarial=0.1, steps=3)
    before = other.adapters.state()
    fewer = dict(list(trainer.discriminator.heads.state_dict().items())[:-1])
    with pytest.raises(PCMError, match="discriminator"):
        other.load(trainer.state() | {"discriminator": fewer})
    assert other.step_number == 0
    assert same(other.adapters.state(), before)


def test_a_trainer_whose_adapters_are_not_attached_is_refused():
    trainer, *_ = make()
    with pytest.raises(PCMError, match=r"The adapters are not attached to the model, so nothing would be trained\."):
        trainer.run()
    with trainer.adapters.attached():
        trainer.step()
    with pytest.raises(PCMError, match="not attached"):
        trainer.step()


def test_adapters_of_another_model_are_refused():
    trainer, *_ = make()
    trainer.adapters.targets = distill.adaptable(Velocity(), ["blocks", "leave"])
    with trainer.adapters.attached(), pytest.raises(PCMError, match="another model than the one called"):
        trainer.step()


@pytest.mark.parametrize("part", ["enter", "leave", "caption"])
def test_a_base_that_is_not_frozen_is_refused(part):
    """Even if the adapters are attached to other parameters."""
    trainer, network, _ = make()
    parameters = list(network.get_submodule(part).requires_grad_(True).parameters())
    said = rf"The base model is not frozen: {len(parameters)} of its parameters require gradients\."
    with trainer.adapters.attached(), pytest.raises(PCMError, match=said):
        trainer.step()
    assert all(parameter.grad is None for parameter in parameters)


def test_adapters_are_a_module_of_their_own():
    """``parameters``, ``to`` and ``state_dict`` are torch's own, and do not include the backbone."""
    trainer, network, _ = make(ema=0.9)
    own = {id(parameter) for parameter in trainer.adapters.parameters()}
    assert len(own) == 2 * 2 * 3  # down and up, student and average, of three modules
    assert not own & {id(parameter) for parameter in network.parameters()}
    trained = [parameter for parameter in trainer.adapters.parameters() if parameter.requires_grad]
    assert len(trained) == len(list(trainer.adapters.student.parameters())) == 6
    assert {tensor.dtype for tensor in trainer.adapters.double().state_dict().values()} == {torch.float64}


def test_a_stop_between_steps_leaves_the_model_as_it_was():
    trainer, network, _ = make()
    x, sigma, captions = points()
    before = network(x, sigma, captions)

    def stop(report: distill.StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), trainer.adapters.attached():
        trainer.run(stop)
    assert trainer.step_number == 3
    assert torch.equal(network(x, sigma, captions), before)
    assert any(bool(pair.up.any()) for pair in trainer.adapters.pairs.values())  # what was trained is there


def test_an_exported_lora_is_the_student():
    trainer, network, _ = make(steps=5)
    with trainer.adapters.attached():
        trainer.run()
        x, sigma, captions = points()
        with trainer.adapters.use("student"), torch.no_grad():
            student = network(x, sigma, captions)
    lora = trainer.adapters.lora("")
    merged = Velocity()
    for name, weight in merged.named_parameters():
        module = name.removesuffix(".weight")
        if f"{module}.lora_up.weight" in lora:
            up, down = lora[f"{module}.lora_up.weight"], lora[f"{module}.lora_down.weight"]
            weight.data += lora[f"{module}.alpha"] / len(down) * (up @ down)
    torch.testing.assert_close(merged(x, sigma, captions), student, rtol=0, atol=1e-6 * float(student.abs().max()))
    assert (merged(x, sigma, captions) - network(x, sigma, captions)).abs().max() > 1e-3


def test_a_lora_is_continued_whatever_its_alpha():
    trainer, *_ = make(steps=3)
    with trainer.adapters.attached():
        trainer.run()
    lora = trainer.adapters.lora("")
    other = distill.Adapters(trainer.adapters.targets, 4, alpha=1.0)
    other.load_lora(lora, "")
    for name, pair in trainer.adapters.pairs.items():
        mine, theirs = (
            pair.scale * pair.up @ pair.down,
            other.pairs[name].scale * other.pairs[name].up @ other.pairs[name].down,
        )
        torch.testing.assert_close(theirs, mine)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_an_alpha_that_trains_nothing_is_refused(alpha):
    with pytest.raises(PCMError, match=rf"alpha is {alpha:g}\. Expected: a finite number above 0"):
        distill.Adapters(distill.adaptable(nn.Linear(2, 2)), 2, alpha=alpha)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(PCMError, match="The rank is 0"):
        distill.Adapters(distill.adaptable(nn.Linear(2, 2), []), 0)


def test_a_lora_of_other_shape_is_refused_and_nothing_changes():
    trainer, *_ = make()
    before = trainer.adapters.state()
    wider = distill.Adapters(trainer.adapters.targets, 8).lora("")
    with pytest.raises(PCMError, match="rank it was trained with"):
        trainer.adapters.load_lora(wider, "")
    fewer = {key: value for key, value in trainer.adapters.lora("").items() if not key.startswith("leave")}
    with pytest.raises(PCMError, match="1 modules are missing"):
        trainer.adapters.load_lora(fewer, "")
    assert same(trainer.adapters.state(), before)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_take_adapters(dimensions):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    conv = kind(3, 5, 3, stride=2, padding=1)
    adapters = distill.Adapters({"conv": conv}, 2)
    torch.nn.init.normal_(adapters.pairs["conv"].up)
    x = torch.randn(2, 3, *[6] * dimensions)
    with adapters.attached(), adapters.use("student"), torch.no_grad():
        hooked = conv(x)
    lora = adapters.lora("")
    delta = (lora["conv.lora_up.weight"].flatten(1) @ lora["conv.lora_down.weight"].flatten(1)).reshape(
        conv.weight.shape
    )
    conv.weight.data += delta
    torch.testing.assert_close(hooked, conv(x), rtol=1e-5, atol=1e-5)


def test_grouped_convolutions_and_embeddings_are_left_alone():
    network = nn.ModuleDict(
        {"grouped": nn.Conv2d(4, 4, 3, groups=4), "table": nn.Embedding(3, 4), "ok": nn.Linear(2, 2)}
    )
    assert list(distill.adaptable(network)) == ["ok"]
    with pytest.raises(PCMError, match="No module's name contains nothing"):
        distill.adaptable(network, ["nothing"])


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_checkpointing_changes_memory_not_gradients(adversarial):
    """The discriminator's pass is recomputed with the adapters off, the student's with them on."""
    plain, *_ = make(adversarial=adversarial)
    trainer, network, _ = make(adversarial=adversarial)
    with torch.no_grad():  # at zero the student would be the teacher
        for mine, theirs in zip(plain.adapters.pairs.values(), trainer.adapters.pairs.values(), strict=True):
            theirs.up.copy_(mine.up.normal_(generator=torch.Generator().manual_seed(8)))
    with plain.adapters.attached():
        plain._zero_grad()
        loss = plain._pass()

    class Block(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    network.blocks = nn.ModuleList(Block(block) for block in network.blocks)
    network.blocks[0].forward = patched = network.blocks[0].forward  # somebody's patch of this one block
    with trainer.adapters.attached(), trainer.adapters.checkpointed(network) as count:
        trainer._zero_grad()
        assert torch.equal(trainer._pass(), loss)
    assert count == 2
    assert [module.__dict__["forward"] for module in network.modules() if "forward" in module.__dict__] == [patched]
    for expected, found in zip(plain._gradients(), trainer._gradients(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("moved", [False, True])
def test_models_loaded_in_inference_mode_can_be_trained_and_are_given_back(moved):
    with torch.inference_mode():
        network = Velocity()
    if moved:  # to a GPU, outside inference mode
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()
    adapters = distill.Adapters(distill.adaptable(network, ["enter"]), 2)
    inputs = points()
    originals = dict(network.named_parameters())
    with adapters.attached(), adapters.use("student"):
        with pytest.raises(RuntimeError, match="Inference tensors"):
            network(*inputs).sum().backward()
        with distill.differentiable_weights(network):
            assert network.leave.weight.data_ptr() == originals["leave.weight"].data_ptr()
            network(*inputs).sum().backward()
    assert adapters.pairs["enter"].up.grad is not None
    assert all(parameter is originals[name] for name, parameter in network.named_parameters())


def test_autocast_keeps_the_adapters_in_float32():
    trainer, network, _ = make(steps=3, autocast=torch.bfloat16)
    dtypes = set()
    network.leave.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    with trainer.adapters.attached():
        trainer.run()
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.adapters.parameters()} == {torch.float32}


def test_data_moves_by_the_batch_and_keeps_shapes_apart():
    small, wide = torch.randn(5, 4, 2, 2), torch.randn(7, 4, 3, 2)
    seen = []

    def prepare(batch: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(batch.shape))
        return batch.float()

    data = distill.LatentSet([small, wide], [0, 1], prepare)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = data.draw(4, generator)
        assert len(set(rows.tolist())) == 4
        batch, captions = data.latents(rows), data.captions(rows)
        assert len(set(captions.tolist())) == 1
        source = small if captions[0] == 0 else wide
        assert all(any(torch.equal(row, original) for original in source) for row in batch)
    assert set(seen) == {(4, 4, 2, 2), (4, 4, 3, 2)}
    assert data.tensors[0] is small
    assert len(data.draw(9, generator)) == 9  # more than there are: with repeats


@pytest.mark.parametrize(("tensors", "captions", "message"), [
    ([], [], "no latents"), ([torch.zeros(2, 4)], [0, 0, 0], "3 captions for 1 latents"),
])  # fmt: skip
def test_bad_data_is_refused(tensors, captions, message):
    with pytest.raises(PCMError, match=message):
        distill.LatentSet(tensors, captions)


@pytest.mark.parametrize("settings", [
    {"steps": 0}, {"batch": 0}, {"lr": float("nan")}, {"lr": 0.0}, {"cfg": (3.0, 2.0)}, {"cfg": (float("nan"), 2.0)},
    {"ema": 1.0}, {"target": "ema"}, {"caption_dropout": -0.1}, {"adversarial": float("inf")}, {"huber_c": 0.0},
    {"adversarial_span": (0.5, 0.5)}, {"adversarial_span": (0.0, 1.5)}, {"adversarial_span": (float("nan"), 1.0)},
    {"target": "both", "ema": 0.9}, {"loss": "l1"},
], ids=str)  # fmt: skip
def test_bad_settings_are_refused(settings):
    with pytest.raises(PCMError, match=f"Correct {next(iter(settings))}"):
        distill.DistillConfig(**settings)


def test_the_discriminator_looks_in_the_span_that_is_asked_for():
    trainer, _, _ = make(adversarial=0.1, adversarial_span=(0.0, 0.25), phases=2)
    batches = [trainer._draw() for _ in range(20)]
    edges = torch.cat([trainer.grid.edge[batch.index] for batch in batches])
    above = torch.cat([batch.level for batch in batches]) - edges
    assert 0 < float(above.min()) and float(above.max()) <= 0.25 / 2 + 1 / 40


def test_a_checkpoint_from_before_a_setting_goes_on_with_its_default():
    first, _, _ = make(steps=3)
    state = first.state()
    del state["config"]["adversarial_span"]
    make(steps=3)[0].load(state)
    with pytest.raises(PCMError, match="adversarial_span"):
        make(steps=3, adversarial_span=(0.0, 0.5))[0].load(state)


def test_settings_that_contradict_are_refused():
    trainer, *_ = make()
    config = replace(trainer.config, adversarial=0.1)
    with pytest.raises(PCMError, match="without a discriminator"):
        distill.Trainer(trainer.backbone, trainer.adapters, trainer.data, FLOW_TABLE, config, flow=True)
    with pytest.raises(PCMError, match="cannot be shared by 3 processes"):
        make(distill.Processes(0, 3))


@pytest.mark.parametrize(("phases", "expected"), [
    (1, (50, "trailing")), (2, (50, "trailing")), (4, (40, "trailing")), (5, (50, "trailing")), (8, (40, "trailing")),
    (3, (50, "aligned")), (16, (50, "aligned")),
])  # fmt: skip
def test_the_matching_grid_is_trained_where_it_is_sampled(phases, expected):
    grid, spacing = distill.matching_grid(phases)
    assert (grid, spacing) == expected
    visited = eval_timesteps(phases, phases=phases, spacing=spacing, grid=grid)
    assert tuple(reversed(visited))[:-1] == phase_edges(phases, grid)[1:]


def test_metadata_makes_the_profile_that_was_trained():
    config = distill.DistillConfig(phases=4, cfg=(3.0, 5.0), adversarial=0.1)
    metadata = distill.distill_metadata(config, prediction="flow", base_model="tiny", steps=12, shift=3.0)
    assert metadata["pcm_edges"] == "0,249,499,749"
    assert (metadata["pcm_guidance_min"], metadata["pcm_guidance_max"]) == ("3.0", "5.0")
    profile = profile_from_metadata(metadata)
    assert profile is not None
    assert (profile.phases, profile.steps, profile.grid, profile.spacing) == (4, 4, 40, "trailing")
    assert (profile.cfg, profile.shift, profile.terminal) == (1.0, 3.0, "zero")
    assert metadata["pcm_prediction"] == "flow"


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_every_parametrisation_says_the_same_x0(prediction):
    """A network that knows the clean latent answers in its own parametrisation; the denoiser returns the latent."""
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.4, 0.6, 0.9, 0.99] if prediction == "flow" else [0.03, 0.7, 1.6, 4.0, 14.6]).double()
    x = distill.add_noise(clean, noise, sigma, flow=prediction == "flow")

    def network(scaled: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        alpha = (1 + level[:, None].square()).rsqrt()
        if prediction != "flow":
            torch.testing.assert_close(scaled, alpha * clean + alpha * level[:, None] * noise)
        return {
            "eps": noise, "x0": clean, "flow": noise - clean, "v": alpha * noise - alpha * level[:, None] * clean,
        }[prediction]  # fmt: skip

    torch.testing.assert_close(distill.as_denoiser(network, prediction)(x, sigma), clean)


def test_an_unknown_parametrisation_is_refused():
    with pytest.raises(PCMError, match="eps, v, x0 or flow"):
        distill.as_denoiser(lambda x, s: x, "score")  # pyright: ignore[reportArgumentType]


def test_v_case_of_the_paper_notes():
    """T9 of the method notes: from t = 999 to 739 with x = .7, v = .4 the variance preserving landing is .616087193."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas = torch.cumprod(1 - betas, 0).sqrt()
    sigma = (1 / alphas.square() - 1).sqrt()
    denoise = distill.as_denoiser(lambda x, s: torch.full_like(x, 0.4), "v")
    x = torch.tensor([[0.7]], dtype=torch.float64) / alphas[999]
    x0 = denoise(x, sigma[999:1000])
    assert float(x0) == pytest.approx(-0.351281452, abs=1e-8)
    landed = distill.jump_batch(x, x0, sigma[999:1000], sigma[739:740])
    assert float(landed * alphas[739]) == pytest.approx(0.616087193, abs=1e-8)


@pytest.mark.long
def test_a_gaussian_world_reaches_its_exact_answer():
    """1-D data N(0, 0.25) with its exact teacher: two phases must land where the ODE does, x_T std(x_0)."""
    std = 0.5

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
            nn.init.zeros_(self.hidden[-1].weight)
            nn.init.zeros_(self.hidden[-1].bias)
            self.requires_grad_(False)

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            s = sigma[:, None]
            teacher = (s - (1 - s) * std**2) / ((1 - s) ** 2 * std**2 + s**2) * x
            return teacher + self.hidden(torch.cat([x, s], 1))

    torch.manual_seed(0)
    network = Exact()
    adapters = distill.Adapters(distill.adaptable(network), 64)
    with torch.no_grad():
        for pair in adapters.pairs.values():
            pair.down.mul_(0.5)

    def backbone(x: torch.Tensor, sigma: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        return x - sigma[:, None] * network(x, sigma)

    data = distill.LatentSet([torch.randn(4096, 1) * std], [0])
    config = distill.DistillConfig(phases=2, grid=50, steps=1500, batch=256, lr=3e-3)
    trainer = distill.Trainer(backbone, adapters, data, FLOW_TABLE, config, flow=True)
    with adapters.attached():
        trainer.run()
        x = torch.linspace(-2, 2, 41)[:, None]
        sigmas = build_schedule(2).sigmas(FLOW_TABLE)
        no_captions = torch.zeros(41, dtype=torch.int64)
        errors = {}
        for mode in ("off", "student"):
            with adapters.use(mode):
                out = sample_pcm(lambda x, s: backbone(x, s, no_captions), x, sigmas)
            errors[mode] = float((out - std * x).abs().mean())
    assert errors["student"] < 0.2 * errors["off"], errors
