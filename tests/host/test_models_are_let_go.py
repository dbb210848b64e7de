"""What our nodes make of a model dies with it at once, by its reference count.

Left to the garbage collector, a model stays in memory, and a host with a GPU fails where the collector finds it while
the host makes room for the next: it walks its list of loaded models, and an entry leaves that list with its model.
"""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import pytest
import tiny
import torch
from test_lora_node import put


@contextmanager
def without_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def custom(host, given, sampler="pcm", **guidance):
    """SamplerCustomAdvanced with our scheduler, sampler and, for a cfg per phase, guider."""
    (noise,) = host.call("RandomNoise", noise_seed=1)
    texts = {"positive": given["positive"], "negative": given["negative"]}
    guider = host.call(
        "PCMGuider" if guidance else "CFGGuider", model=given["model"], **texts, **guidance or {"cfg": 2.0}
    )
    own = host.call("SamplerPCM") if sampler == "pcm" else host.call("KSamplerSelect", sampler_name=sampler)
    sigmas, *_ = host.call("PCMPhaseScheduler", model=given["model"], steps=2)
    host.call("SamplerCustomAdvanced", noise=noise, guider=guider[0], sampler=own[0], sigmas=sigmas,
              latent_image=given["latent_image"])  # fmt: skip


def compare(host, given):
    columns = "1, 2, euler/simple@2 cfg 2"
    host.call("PCMCompare", **given, columns=columns, vae=tiny.make_vae(16), cell_size=64)


def with_lora(host, given):
    name = put(host, given["model"], "pcm_let_go_4step")
    model, *_ = host.call("PCMLoraLoader", model=given["model"], lora_name=name)
    host.call("PCMSampler", **given | {"model": model}, seed=1)


RUNS = {
    "sampler": lambda host, given: host.call("PCMSampler", **given, seed=1, steps=2, cfg="3, 1"),
    "renoising": lambda host, given: host.call("PCMSampler", **given, seed=1, steps=2, determinism=0.0),
    "custom": custom,
    "guider": lambda host, given: custom(host, given, cfg="3, 1"),
    "plot": lambda host, given: host.call("PCMPhasePlot", model=given["model"]),
    "compare": compare,
    "LoRA": with_lora,
    "video": lambda host, given: host.call("PCMVideoSampler", **given, seed=1),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_model_dies_with_its_last_user(host, zoo, run):
    source = zoo["wan" if run == "video" else "sd3"]
    texts = {"positive": source.positive, "negative": source.negative, "latent_image": source.latent()}
    with without_collector():
        with torch.inference_mode():
            model = tiny.load(source.path)
        found = [weakref.ref(model), weakref.ref(model.model)]
        RUNS[run](host, {"model": model, **texts})
        del model
        assert [reference() for reference in found] == [None, None]
