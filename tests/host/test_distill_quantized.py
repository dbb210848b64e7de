"""Bases in fewer bits are trained: the host's fp8, int8 and nvfp4 files, and GGUF's way of keeping weights."""

from __future__ import annotations

import pytest
import tiny
import torch
from devices import hosts_fp8

SCHEMES = [pytest.param("float8_e4m3fn", marks=hosts_fp8), "nvfp4", "int8_tensorwise"]
SETTINGS = {
    "rank": 4, "steps": 12, "batch_size": 2, "phases": 2, "learning_rate": 3e-3, "cfg_min": 5.0, "cfg_max": 5.0,
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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_hosts_quantized_files_are_trained(host, zoo, distil, tmp_path, scheme, checkpointing):
    """The first loss is that of the dequantized model, it falls, and the weights are what they were."""
    import tiny_image

    base = zoo["sd3"]
    quantized = tiny_image.quantised_sd3(base, tmp_path, scheme)
    before = tiny.fingerprint({k: v.clone() for k, v in quantized.model.model.state_dict().items()})
    meant = {key: (w.dequantize() if hasattr(w, "dequantize") else w).float()
             for key, w in quantized.model.model.diffusion_model.named_parameters()}  # fmt: skip
    plain = tiny.load(base.path)
    plain.model.diffusion_model.load_state_dict(meant, strict=False)
    lora, losses, _ = distil(quantized, gradient_checkpointing=checkpointing)
    _, expected, _ = distil(tiny.Tiny(plain, base.shapes, base.tokens, base.width, pooled=base.pooled))
    # The host rounds activations to the same few bits, in its layers as in sampling.
    assert losses["loss"][0] == pytest.approx(expected["loss"][0], rel=0.1)
    assert all(torch.isfinite(tensor).all() for tensor in lora.values())
    assert sum(losses["loss"][-3:]) < sum(losses["loss"][:3])
    assert tiny.fingerprint({k: v.clone() for k, v in quantized.model.model.state_dict().items()}) == before
