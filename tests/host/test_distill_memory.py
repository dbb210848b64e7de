"""The memory plan of a host's model, weights that come and go in the real training, and what a run says of both."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from devices import ON_CPU
from torch import nn

SETTINGS = {
    "rank": 4, "steps": 3, "batch_size": 2, "phases": 2, "learning_rate": 3e-3, "cfg_min": 5.0, "cfg_max": 5.0,
    "solver_grid": 4, "preview_every": 0,
}  # fmt: skip
DEEP = ["eps_deep", "sd3_deep", "flux_deep", "wan_deep"]
GIB = 2**30


@pytest.fixture(scope="module")
def deep(host, zoo, tmp_path_factory):
    """Four families with enough blocks that some can be away."""
    import comfy.ldm.flux.model
    import comfy.ldm.modules.diffusionmodules.mmdit
    import comfy.ldm.wan.model

    folder: Path = tmp_path_factory.mktemp("deep")
    context = {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 256}}
    sd3 = comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper(
        input_size=None, patch_size=2, in_channels=16, depth=4, adm_in_channels=16, context_embedder_config=context,
        num_patches=64, pos_embed_max_size=8, pos_embed_scaling_factor=None, out_channels=16, **tiny._ops(),
    )  # fmt: skip
    params = tiny.known(
        comfy.ldm.flux.model.FluxParams, in_channels=16, out_channels=16, vec_in_dim=16, context_in_dim=32,
        hidden_size=128, mlp_ratio=4.0, num_heads=1, depth=2, depth_single_blocks=3, axes_dim=[16, 56, 56],
        theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
    )  # fmt: skip
    flux = comfy.ldm.flux.model.Flux(image_model="flux", **params, **tiny._ops())
    wan = comfy.ldm.wan.model.WanModel(
        model_type="t2v", in_dim=16, dim=128, ffn_dim=64, freq_dim=256, text_dim=4096, out_dim=16, num_heads=1,
        num_layers=4, **tiny._ops(),
    )  # fmt: skip
    made: dict[str, tiny.Tiny] = {"eps_deep": zoo["eps_deep"]}
    for name, network, like in (("sd3_deep", sd3, "sd3"), ("flux_deep", flux, "flux"), ("wan_deep", wan, "wan")):
        path = tiny.save(tiny.fill(network), folder / f"{name}.safetensors")
        given = zoo[like]
        made[name] = tiny.Tiny(tiny.load(path), given.shapes, given.tokens, given.width, given.extra, given.pooled)
    return made


@pytest.fixture
def distil(host):
    def run(given: tiny.Tiny, **settings):
        cls = host.node("PCMDistillLora")
        required = cls.INPUT_TYPES()["required"]
        inputs = {name: options[0]["default"] for name, (_, *options) in required.items()
                  if options and "default" in options[0]}  # fmt: skip
        lists = {name: [value] for name, value in {**inputs, "model": given.model, **SETTINGS, **settings}.items()}
        lists |= {"latents": [given.latent(2, seed=5)], "positive": [given.positive], "negative": [given.negative]}
        with torch.inference_mode():
            return cls.execute(**lists).args

    return run


@pytest.fixture
def said(host, caplog):
    """What a run says it needs."""
    caplog.set_level(logging.INFO)
    return lambda: next(record.getMessage() for record in caplog.records if "needs about" in record.getMessage())


@pytest.fixture
def room(host, monkeypatch):
    """Pretend that so many bytes are free."""

    def pretend(size: float):
        monkeypatch.setattr(host.pack("nodes.host.memory"), "free_bytes", lambda model: int(size))

    return pretend


class Witness:
    """A carrier that counts what lies on its device, and empties what is released."""

    def __init__(self) -> None:
        self.here: dict[int, int] = {}
        self.most = 0

    def begin(self, tensors):
        copies = [tensor.clone() for tensor in tensors]
        self.here[id(copies)] = sum(copy.nbytes for copy in copies)
        self.most = max(self.most, sum(self.here.values()))
        return copies

    def finish(self, tensors):
        pass

    def release(self, tensors):
        del self.here[id(tensors)]
        for tensor in tensors:
            tensor.fill_(float("nan"))  # whoever uses it after this shows


@pytest.mark.skipif(not ON_CPU, reason="the witness copies from the CPU to the CPU")
@pytest.mark.parametrize("family", DEEP)
def test_streaming_trains_the_same_bits(host, deep, distil, monkeypatch, family):
    """Losses and LoRA are those of checkpointing on the whole model; at most three blocks are there."""
    streaming = host.pack("pcm_core.distill.streaming")
    given, witness = deep[family], Witness()
    weights = tiny.fingerprint(given.model.model.state_dict())
    monkeypatch.setattr(streaming, "carrier_for", lambda device: witness)
    whole = distil(given, gradient_checkpointing=True, fit_memory="off")
    streamed = distil(given, fit_memory="stream")
    assert streamed[1] == whole[1]
    assert streamed[0].keys() == whole[0].keys()
    assert all(torch.equal(streamed[0][key], whole[0][key]) for key in whole[0])
    sizes = sorted(streaming.blocks_bytes(given.model.model.diffusion_model))
    assert 0 < witness.most <= sum(sizes[-3:]) < sum(sizes)
    assert not witness.here
    assert tiny.fingerprint(given.model.model.state_dict()) == weights


def test_streaming_with_a_discriminator_and_previews(deep, distil):
    whole = distil(deep["sd3_deep"], gradient_checkpointing=True, adversarial=0.1, preview_every=1, fit_memory="off")
    streamed = distil(deep["sd3_deep"], adversarial=0.1, preview_every=1, fit_memory="stream")
    assert streamed[1] == whole[1]


@pytest.mark.parametrize("family", ["v", "sd3_deep", "flux_deep", "wan_deep", "hunyuan_video"])
def test_every_family_is_planned_by_tracing(host, zoo, deep, family):
    """Less with checkpointing, less again when streamed, and nothing of the model changes."""
    memory, planner = host.pack("pcm_core.distill.memory"), host.pack("nodes.host.memory")
    given = deep[family] if family in deep else zoo[family]
    weights = tiny.fingerprint(given.model.model.state_dict())
    plans = [
        planner.plan(given.model, given.positive, memory.Workload(shape=given.shapes[0], rank=4, batch=2, **ways))
        for ways in ({}, {"checkpointing": True}, {"streaming": True})
    ]
    assert not any(plan.estimated for plan in plans), plans[0].estimated
    assert plans[0].total > plans[1].total > plans[2].total
    network = given.model.model.diffusion_model
    held = {t.data_ptr(): t.untyped_storage().nbytes() for t in (*network.parameters(), *network.buffers())}
    assert plans[1].parts["weights"] == sum(held.values())
    assert tiny.fingerprint(given.model.model.state_dict()) == weights


def test_what_cannot_be_traced_is_estimated_and_says_so(host, zoo, distil, said, room, monkeypatch):
    memory, planner = host.pack("pcm_core.distill.memory"), host.pack("nodes.host.memory")
    given = zoo["ltxv"]
    plan = planner.plan(given.model, given.positive, memory.Workload(shape=given.shapes[0], rank=4))
    assert plan.estimated == "its layers write over what their gradient needs"
    assert plan.total > given.model.model_size()
    room(1e3)
    distil(given, steps=1)
    assert "estimated (its layers write over what their gradient needs); 9.3e-07 GB are free" in said()

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("this network cannot be traced\nsecond line")

    monkeypatch.setattr(type(zoo["sd3"].model.model.diffusion_model), "forward", refuse)
    plan = planner.plan(zoo["sd3"].model, zoo["sd3"].positive, memory.Workload(shape=(16, 8, 8), rank=4))
    assert plan.estimated == "this network cannot be traced" and plan.total > 0


def test_it_says_what_it_needs_before_the_first_step(deep, distil, said, room):
    """Needs, free, and what helps; in auto it is done."""
    room(1e12)
    distil(deep["sd3_deep"])
    assert "estimated (next to what is free it is small)" in said()


@pytest.mark.parametrize("how", ["off", "auto"])
def test_a_run_that_would_not_fit(host, deep, distil, said, room, how):
    memory, planner = host.pack("pcm_core.distill.memory"), host.pack("nodes.host.memory")
    given = deep["sd3_deep"]
    load = memory.Workload(shape=given.shapes[0], rank=32, batch=2, device="cpu")
    needs = planner.plan(given.model, given.positive, load).total
    room(needs - 1)
    whole, chosen = distil(given, rank=32, fit_memory=how), said()
    assert re_gb(chosen) == pytest.approx(needs / GIB, rel=0.1)
    if how == "off":
        assert ": try gradient checkpointing (" in chosen and " or rank 16 (" in chosen
    else:
        assert ": gradient checkpointing is on, with which it needs 0.0" in chosen
    assert whole[2] == 3


def re_gb(text: str) -> float:
    return float(text.split("needs about ")[1].split(" GB")[0])


def test_streaming_is_chosen_where_checkpointing_is_not_enough(host, deep, room, monkeypatch):
    """On a device of its own: a CPU has nothing to stream from."""
    memory, planner, fit = (host.pack(f"{name}") for name in
                            ("pcm_core.distill.memory", "nodes.host.memory", "nodes.training.fit"))  # fmt: skip
    given = deep["sd3_deep"]
    load = memory.Workload(shape=given.shapes[0], rank=4)
    recomputed = planner.plan(given.model, given.positive, memory.Workload(**{**vars(load), "checkpointing": True}))
    room(recomputed.total - 1)
    chosen = fit.fit(given.model, given.positive, load, "auto")
    assert chosen.load.streaming and "streaming of the weights is on" in chosen.text
    assert chosen.plan.total < recomputed.total and "may not be enough" not in chosen.text
    room(1000)
    chosen = fit.fit(given.model, given.positive, load, "auto")
    assert chosen.load.streaming and "which may not be enough" in chosen.text
    assert chosen.load.adapter_dtype == torch.float32, "what trains another LoRA is advice only"
    room(planner.plan(given.model, given.positive, load).total - 1)
    assert " or adapter_dtype bf16 (" in fit.fit(given.model, given.positive, load, "off").text


@pytest.mark.parametrize("way", ["whole", "stream"])
def test_a_run_that_exceeds_its_plan_keeps_what_it_had(host, zoo, distil, monkeypatch, way):
    """The device runs out inside the third step: the LoRA of two steps is saved, and the sentence names the plan."""
    import comfy.model_management

    given, error = zoo["sd3"], host.pack("pcm_core.errors").PCMError
    trainer, before = host.pack("pcm_core.distill.trainer"), tiny.fingerprint(zoo["sd3"].model.model.state_dict())
    made, known = [], set(host.pack("nodes.host.lora").lora_names())
    original = trainer.phased_pair

    def full(*arguments, **options):
        made.append(original(*arguments, **options))
        if len(made) == 3:
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2.00 GiB")
        return made[-1]

    monkeypatch.setattr(trainer, "phased_pair", full)
    with pytest.raises(
        error, match=r"Memory ran out; the run needs about .* GB .*Saved as .*pcm_interrupted"
    ) as caught:
        distil(given, fit_memory="stream" if way == "stream" else "auto")
    assert "CUDA" not in str(caught.value)
    (saved,) = set(host.pack("nodes.host.lora").lora_names()) - known
    metadata = host.pack("pcm_core.lora").read_lora(host.pack("nodes.host.lora").lora_path(saved))[1]
    assert metadata["pcm_train_steps"] == "2"
    assert tiny.fingerprint(given.model.model.state_dict()) == before


def test_only_a_lack_of_memory_is_called_one(host):
    out_of_memory = host.pack("nodes.host.memory").out_of_memory
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(RuntimeError("one of the variables needed for gradient computation has been modified"))
    assert not out_of_memory(MemoryError) and not out_of_memory(ValueError("out of memory"))


def test_free_memory_counts_what_the_host_gives_back(host, zoo):
    planner, given = host.pack("nodes.host.memory"), zoo["sd15"]
    assert planner.free_bytes(given.model) > given.model.model_size()


def test_everything_but_the_blocks_is_moved_and_comes_back(host):
    """The part of the model that stays on the device, on torch's meta device for want of another."""
    streaming = host.pack("pcm_core.distill.streaming")
    network = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]))
    network.register_buffer("table", torch.ones(3))
    before = SimpleNamespace(**{name: id(t) for name, t in [*network.named_parameters(), *network.named_buffers()]})
    away = {id(parameter) for parameter in network[1].parameters()}
    with streaming.resident(network, torch.device("meta"), away):
        assert network[0].weight.is_meta and network.table.is_meta and isinstance(network[0].weight, nn.Parameter)
        assert not network[1][0][0].weight.is_meta
    after = {name: id(t) for name, t in [*network.named_parameters(), *network.named_buffers()]}
    assert after == vars(before)


def test_adapters_in_bf16_train_and_need_less_on_the_device(host, deep, distil):
    """The node's widget: a float32 LoRA near that of float32 adapters, and a plan without masters and optimizer."""
    memory, planner = host.pack("pcm_core.distill.memory"), host.pack("nodes.host.memory")
    given = deep["sd3_deep"]
    whole, rounded = (distil(given, adapter_dtype=dtype)[0] for dtype in ("fp32", "bf16"))
    assert all(value.dtype == torch.float32 for value in rounded.values())
    apart = {key: float((rounded[key] - value).norm() / value.norm()) for key, value in whole.items() if "up" in key}
    assert 0 < max(apart.values()) < 0.5, apart
    load = {"shape": given.shapes[0], "rank": 32}
    plain = planner.plan(given.model, given.positive, memory.Workload(**load))
    less = planner.plan(given.model, given.positive, memory.Workload(**load, adapter_dtype=torch.bfloat16))
    trained = [sum(plan.parts[part] for part in ("adapters", "gradients", "optimizer")) for plan in (plain, less)]
    assert not less.estimated and trained[1] == plain.parts["adapters"] // 2 and trained[1] < trained[0] / 7


def test_texts_stay_where_they_are_but_the_last_few(host, zoo):
    """Of 40 captions at most 16 lie encoded on the device at a time."""
    backbone, training = host.pack("nodes.host.backbone"), host.pack("nodes.host.training")
    given, sizes = zoo["sd3"], []
    texts = [given.cond(i) for i in range(40)]

    def body(guider, extra_args):
        called = backbone.Backbone(guider, extra_args, texts, None)
        x, sigma = torch.zeros(2, *given.shapes[0], device=given.model.load_device), torch.ones(2)
        for i in range(0, 40, 2):
            with torch.no_grad():
                called(x, sigma.to(x), torch.tensor([i, i + 1]))
            sizes.append(len(called._encoded))

    training.with_model(given.model, texts[0], (1, *given.shapes[0]), body)
    assert max(sizes) == 16 and len(sizes) == 20
    assert all(text[0][0].device.type == "cpu" for text in texts)
