"""Devices that have no float64 and no CUDA: sampling, loading, comparing and training ask for neither."""

from __future__ import annotations

import pytest
import torch
from no_float64 import NoFloat64Error, no_float64
from test_lora_node import load, put

from pcm_core import metrics as core_metrics
from phased_consistency.pcm_core import metrics


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch):
    """Whatever asks for a stream, an event or a graph of CUDA's fails."""

    def refuse(*_, **__):
        raise RuntimeError("There is no CUDA here.")

    for name in ("Stream", "Event", "stream", "current_stream", "synchronize", "empty_cache", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, refuse)


def test_the_stand_in_refuses_what_a_device_would():
    x = torch.ones(3, device="cpu")
    with no_float64() as mode:
        with pytest.raises(NoFloat64Error, match=r"metrics\.py:\d+"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "_wide", torch.Tensor.double)
            metrics.cosine(x, x)
        assert mode.looked_at and metrics.cosine(x, x) == 1


SETTINGS = [{}, {"determinism": 0.0}, {"gamma": 0.4}, {"terminal": "alpha0"}, {"denoise": 0.5}, {"cfg": "3, 1"}]


@pytest.mark.parametrize("family", ["eps", "v", "sd3", "flux", "wan", "ltxv"])
def test_sampling_needs_no_float64(host, zoo, family):
    given = zoo[family]
    common = {"model": given.model, "positive": given.positive, "negative": given.negative, "seed": 3, "steps": 2}
    with no_float64():
        for settings in SETTINGS:
            if settings.get("terminal") == "alpha0" and family not in ("eps", "v"):
                continue
            host.call("PCMSampler", **common, latent_image=given.latent(seed=1), **settings)
        sigmas, _ = host.call("PCMPhaseScheduler", model=given.model, steps=2)
    assert sigmas.dtype == torch.float32


@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_by_name_and_in_video_too(host, zoo, family):
    given = zoo[family]
    common = {"model": given.model, "positive": given.positive, "negative": given.negative, "seed": 3}
    with no_float64():
        host.call("KSampler", **common, steps=2, cfg=1.0, sampler_name="pcm", scheduler="pcm", denoise=0.6,
                  latent_image=given.latent(seed=1))  # fmt: skip
        if family == "wan":
            for noise in ("shuffled", "independent"):
                host.call("PCMVideoSampler", **common, latent_image=given.latent(), steps=2, window=9, overlap=4,
                          window_noise=noise, frame_noise="mixed")  # fmt: skip


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_lora_is_loaded_and_merged_without(host, zoo, family):
    given = zoo[family]
    name = put(host, given.model, "pcm_deterministic_4step_shift1")
    with no_float64():
        loaded, report = load(host, given.model, name)
        host.call("PCMSampler", model=loaded, positive=given.positive, negative=given.negative, seed=3,
                  latent_image=given.latent(seed=1))  # fmt: skip
    assert "applied" in report


TRAINING = [
    {}, {"loss": "l2"}, {"adversarial": 0.1}, {"stage": "both", "matching_steps": 2, "matching_cfg": 2.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", TRAINING, ids=["consistency", "l2", "adversarial", "matching"])
def test_training_needs_no_float64(zoo, distil, settings):
    with no_float64():
        _, losses, steps = distil(zoo["sd3"], batch_size=2, **{"steps": 1, **settings}).args
    assert steps >= 1 and all(value == value for value in losses["loss"])


def test_figures_are_those_of_float64():
    a, b = (torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(i)) for i in range(2))
    assert core_metrics.psnr(a, b) == pytest.approx(float(-10 * (a.double() - b.double()).square().mean().log10()))
