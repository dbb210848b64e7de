"""Bases in fewer bits are trained: the host's fp8, int8 and nvfp4 files, and GGUF's way of keeping weights."""

from __future__ import annotations

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
