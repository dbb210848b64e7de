"""Bases in fewer bits are trained: the host's fp8, int8 and nvfp4 files, and GGUF's way of keeping weights."""

from __future__ import annotations

import gguf
import pytest
import tiny
import torch
from devices import hosts_fp8

SCHEMES = [pytest.param("float8_e4m3fn", marks=hosts_fp8), "nvfp4", "int8_tensorwise"]
SETTINGS = {
    "rank": 4, "steps": 3, "batch_size": 2, "phases": 2, "learning_rate": 3e-3, "cfg_min": 5.0, "cfg_max": 5.0,
    "solver_grid": 4, "preview_every": 0,
}  # fmt: skip


@pytest.fixture
def distil(host):
    def run(given: tiny.Tiny, **settings):
        cls = host.node("PCMDistillLora")
        required = cls.INPUT_TYPES()["required"]
        inputs = {name: options[0]["default"] for name, (_, *options) in required.items()
                  if options and "default" in options[0]}  # fmt: skip
        lists = {name: [value] for name, value in {**inputs, "model": given.model, **SETTINGS, **settings}.items()}
        lists |= {"latents": [given.latent(4, seed=5)], "positive": [given.positive], "negative": [given.negative]}
        with torch.inference_mode():
            return cls.execute(**lists).args

    return run


@pytest.fixture
def gradients(host, monkeypatch):
    """Those of the student after each step, by module."""
    session, found = host.pack("nodes.training.session").Session, []
    after = session._after_step

    def keep(self, report):
        pairs = self.adapters.student.pairs.items()
        found.append({name: (pair.up.grad.clone(), pair.down.grad.clone()) for name, pair in pairs})
        after(self, report)

    monkeypatch.setattr(session, "_after_step", keep)
    return found


def meant(model) -> dict[str, torch.Tensor]:
    """What the weights of a quantized model stand for."""
    named = model.model.diffusion_model.named_parameters()
    return {key: (w.dequantize() if hasattr(w, "dequantize") else w).float() for key, w in named}


@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing": True}, {"fit_memory": "stream"}], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_hosts_quantized_files_are_trained(host, zoo, distil, gradients, tmp_path, scheme, how):
    """Losses and gradients are those of the dequantized model, and the weights are what they were."""
    import tiny_image

    base = zoo["sd3"]
    quantized = tiny_image.quantised_sd3(base, tmp_path, scheme)
    before = tiny.fingerprint({k: v.clone() for k, v in quantized.model.model.state_dict().items()})
    plain = tiny.load(base.path)
    plain.model.diffusion_model.load_state_dict(meant(quantized.model), strict=False)
    _, losses, _ = distil(quantized, **how)
    mine = gradients.copy()
    gradients.clear()
    _, expected, _ = distil(tiny.Tiny(plain, base.shapes, base.tokens, base.width, pooled=base.pooled))
    assert losses["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    for one, other in zip(mine, gradients, strict=True):
        for name, parts in other.items():
            for a, b in zip(one[name], parts, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1e-12), msg=name)
    assert tiny.fingerprint({k: v.clone() for k, v in quantized.model.model.state_dict().items()}) == before
    layers = quantized.model.model.diffusion_model.modules()
    assert not any(getattr(layer, "weight_function", []) for layer in layers)


Q8_0 = gguf.GGMLQuantizationType.Q8_0


class Packed(torch.Tensor):
    """A weight as ComfyUI-GGUF keeps it: packed bytes with the kind of packing and the shape they stand for."""

    @property
    def shape(self):
        return getattr(self, "true_shape", self.size())

    def to(self, *args, **kwargs):
        moved = super().to(*args, **kwargs)
        moved.kind, moved.true_shape = self.kind, self.true_shape
        return moved

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self


def unpacked(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Q8_0: blocks of a half-precision scale and 32 signed bytes."""
    data = weight.data.as_subclass(torch.Tensor) if isinstance(weight, Packed) else weight.data  # else a fake one
    blocks = data.reshape(-1, 34)
    values = blocks[:, :2].contiguous().view(torch.float16).to(dtype) * blocks[:, 2:].contiguous().view(torch.int8)
    return values.reshape(weight.true_shape)


def packed(base: tiny.Tiny) -> tuple[tiny.Tiny, dict[str, torch.Tensor]]:
    """``base`` loaded as a GGUF file is, and what its weights mean, by the ``gguf`` package.

    As in ComfyUI-GGUF a patcher of its own, and layers that unpack their weight at every call.
    """
    import comfy.model_patcher
    import comfy.ops

    class PackedLinear(comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, input, *args, **kwargs):
            bias = None if self.bias is None else self.bias.to(input)
            return torch.nn.functional.linear(input, unpacked(self.weight.to(input.device), input.dtype), bias)

    class Patcher(comfy.model_patcher.ModelPatcher):
        def clone(self, *args, **kwargs):
            copy = super().clone(*args, **kwargs)
            copy.__class__ = Patcher
            return copy

    model, means = tiny.load(base.path), {}
    for name, module in model.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.in_features % 32 == 0 and "blocks" in name:
            blocks = gguf.quants.quantize(module.weight.detach().float().numpy(), Q8_0)
            means[f"{name}.weight"] = torch.from_numpy(gguf.quants.dequantize(blocks, Q8_0))
            weight = torch.from_numpy(blocks).as_subclass(Packed)
            weight.kind, weight.true_shape = Q8_0, module.weight.shape
            module.__class__ = PackedLinear
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
    model.__class__ = Patcher
    return tiny.Tiny(model, base.shapes, base.tokens, base.width, base.extra, base.pooled), means


@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing": True}, {"fit_memory": "stream"}], ids=str)
@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_a_gguf_base_is_trained(host, zoo, distil, gradients, family, how):
    """Losses and gradients are those of a model with the weights that the ``gguf`` package reads."""
    base = zoo[family]
    with torch.inference_mode():  # as a loader node does
        given, means = packed(base)
    network = given.model.model.diffusion_model
    assert len(means) > 4 and all(network.get_parameter(name).dtype == torch.uint8 for name in means)
    before = {name: network.get_parameter(name).data.as_subclass(torch.Tensor).clone() for name in means}
    plain = tiny.load(base.path)
    plain.model.diffusion_model.load_state_dict(means, strict=False)
    _, losses, _ = distil(given, **how)
    mine = gradients.copy()
    gradients.clear()
    _, expected, _ = distil(tiny.Tiny(plain, base.shapes, base.tokens, base.width, base.extra, base.pooled))
    assert losses["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for one, other in zip(mine, gradients, strict=True):
        assert one.keys() == other.keys()
        for name, parts in other.items():
            for a, b in zip(one[name], parts, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1e-12), msg=name)
    for name, value in before.items():
        weight = network.get_parameter(name)
        assert type(weight) is Packed and torch.equal(weight.data.as_subclass(torch.Tensor), value)


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"streaming": True}], ids=str)
def test_a_gguf_base_is_planned(host, zoo, how):
    """Packed weights count as the bytes they are."""
    memory, planner = host.pack("pcm_core.distill.memory"), host.pack("nodes.host.memory")
    base = zoo["sd3"]
    given, _ = packed(base)
    load = memory.Workload(shape=base.shapes[0], rank=4, **how)
    plan, plain = (planner.plan(one.model, base.positive, load) for one in (given, base))
    assert not plan.estimated and not plain.estimated
    assert plan.parts["weights"] < 0.5 * plain.parts["weights"]
