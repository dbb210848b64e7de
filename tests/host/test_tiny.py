"""The tiny models are what they claim: the host's own classes, finite through its own KSampler."""

from __future__ import annotations

import pytest
import torch

from phased_consistency.nodes import host as nodes_host

CLASSES = {
    "eps": ("BaseModel", "EPS"), "v": ("BaseModel", "V_PREDICTION"), "v_zsnr": ("BaseModel", "V_PREDICTION"),
    "edm": ("BaseModel", "EDM"), "sd15": ("BaseModel", "EPS"), "sdxl": ("SDXL", "EPS"), "sd3": ("SD3", "FLOW"),
    "flux": ("Flux", "FLUX"), "wan": ("WAN21", "FLOW"), "wan22": ("WAN22", "FLOW"),
    "hunyuan_video": ("HunyuanVideo", "FLOW"), "ltxv": ("LTXV", "FLUX"), "ltx2": ("LTXAV", "FLUX"),
    "mochi": ("GenmoMochi", "FLOW"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_class_and_finite_sample(host, zoo, name):
    tiny = zoo[name]
    assert (type(tiny.model.model).__name__, tiny.model.model.model_type.name) == CLASSES[name]
    (out,) = host.call(
        "KSampler", model=tiny.model, seed=0, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple",
        positive=tiny.positive, negative=tiny.negative, latent_image=tiny.latent(), denoise=1.0,
    )  # fmt: skip
    for part in nodes_host.parts(out["samples"]):
        assert torch.isfinite(part).all()
        assert part.std() > 0.01
