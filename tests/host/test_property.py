"""PCM Sampler with PCM turned off is the host's ``euler`` on its ``simple`` schedule, for any valid graph.

Turned off: no profile on the model, determinism 1, trailing, as many phases as steps. Hypothesis draws the graph: the
family, steps, cfg, size, batch, masks, picture, conditioning, shift and seed. Numbers of steps whose phase edges are no
entries of ``simple`` are compared on our own sigmas, and ``test_where_simple_rounds_down`` says which they are.

Two checks. Step by step, of every graph: the host's own ``euler`` takes each of our steps again from where ours stood,
through the host's own guider. The start and every x0 must be the same bits, the landing the same number but for its
rounding, and the picture that comes out the same bits again. From end to end: the two pictures differ by no more than
stock ``euler`` loses in float32. Some random networks turn an ulp into hundredths; there no two programs that round
differently end alike, and the steps, which no network amplifies, are the whole of the claim.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

FLOWS = ("sd3", "flux", "wan", "wan22", "hunyuan_video", "ltxv")
FAMILIES = ("eps", "v", "edm", *FLOWS)
# Of the largest value, times cfg, which multiplies the difference of two predictions. Twice what stock euler itself
# loses in float32 comes on top, measured on each graph: with a sigma_max of 80 it is more than this.
TOLERANCE = 1e-5
# A step in float32, in units of eps / 2 times |x| + |x0|. Of the step w |x - x0|, stock rounds the difference, the
# quotient, the width of the step, the product and the sum; ours the weight, the difference, the product and the sum.
ROUNDINGS = 9
SHARED = [n for n in range(1, 65) if 1000 % n == 0]  # 1, 2, 4, 5, 8, 10, 20, 25, 40, 50
OPTIONS = {"suppress_health_check": list(HealthCheck)}
phases = [Phase.explicit, Phase.reuse, Phase.generate]  # no shrinking: it would run for minutes


@st.composite
def graphs(draw):
    name = draw(st.sampled_from(FAMILIES))
    return {
        "name": name,
        "steps": draw(st.sampled_from([*SHARED[:6], 3, 6, 7, 16])),
        "cfg": draw(st.sampled_from([1.0, 1.5, 3.0, 7.5])),
        "batch": draw(st.integers(1, 3)),
        "size": [2 * draw(st.integers(1, 6)) for _ in range(2)],
        "frames": draw(st.integers(1, 4)),
        "picture": draw(st.none() | st.integers(0, 99)),
        "mask": draw(st.sampled_from([None, "binary", "soft", "per item"])),
        "batch_index": draw(st.booleans()),
        "two_texts": draw(st.booleans()),
        "ranges": draw(st.booleans()),
        "shift": draw(st.none() | st.sampled_from([1.0, 3.0, 7.0])) if name in FLOWS[:1] + FLOWS[2:5] else None,
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


def latent_of(tiny, graph):
    generator = torch.Generator().manual_seed(graph["picture"] or 0)
    channels, *rest = tiny.shapes[0]
    shape = (graph["batch"], channels, *([graph["frames"]] if len(rest) == 3 else []), *graph["size"])
    samples = torch.zeros(shape) if graph["picture"] is None else torch.randn(shape, generator=generator)
    latent = {"samples": samples}
    if graph["batch_index"]:
        latent["batch_index"] = [7, 0, 3][: graph["batch"]]
    if graph["mask"] is not None:
        count = graph["batch"] if graph["mask"] == "per item" else 1
        mask = torch.rand(count, *graph["size"], generator=generator)
        latent["noise_mask"] = mask if graph["mask"] == "soft" else (mask > 0.5).float()
    return latent


def conditioning_of(host, tiny, graph, seed):
    """One text, or two of which each may hold for a part of the steps only."""
    conds = [tiny.cond(seed), tiny.cond(seed + 10)][: 1 + graph["two_texts"]]
    if graph["ranges"] and len(conds) == 2:
        ranges = ((0.0, 0.6), (0.4, 1.0))
        conds = [host.call("ConditioningSetTimestepRange", conditioning=cond, start=start, end=end)[0]
                 for cond, (start, end) in zip(conds, ranges, strict=True)]  # fmt: skip
    return [part for cond in conds for part in cond]


def euler_in_double(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The host's euler, without its rounding; the model stays in float32."""
    x, levels = x.double(), sigmas.double()
    for i in range(len(sigmas) - 1):
        denoised = model(x.float(), sigmas[i].expand(len(x)), **extra_args).double()
        x = x + (x - denoised) / levels[i] * (levels[i + 1] - levels[i])
    return x.float()


class Steps:
    """Where a run stood before each step and after the last, and the x0 of each step; told by the host's callback."""

    def __init__(self):
        self.states, self.denoised = [], []

    def watch(self, model):
        """A clone of the model whose runs are written down."""
        from comfy.patcher_extension import WrappersMP

        def wrapper(executor, wrap, sigmas, extra_args, callback, *rest):
            def told(i, denoised, x, total):
                assert i == len(self.denoised)
                self.states.append(x.clone())
                self.denoised.append(denoised.clone())
                callback(i, denoised, x, total)

            self.states.append(executor(wrap, sigmas, extra_args, told, *rest).clone())
            return self.states[-1]

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "steps", wrapper)
        return model

    def again(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        """As a sampler: the host's euler takes every step from where the run stood, and must land where it went on."""
        from comfy.k_diffusion.sampling import sample_euler

        assert torch.equal(x, self.states[0]) and len(sigmas) == len(self.states) == len(self.denoised) + 1
        for i, (before, after) in enumerate(zip(self.states, self.states[1:], strict=False)):
            seen = []
            landing = sample_euler(model, before, sigmas[i : i + 2], extra_args, seen.append, True)
            assert torch.equal(seen[0]["denoised"], self.denoised[i]), f"x0 of step {i}"
            allowed = ROUNDINGS * torch.finfo(x.dtype).eps / 2 * (before.abs() + self.denoised[i].abs())
            assert bool(((landing - after).abs() <= allowed).all()), f"step {i}: {(landing - after).abs().max()}"
        return self.states[-1]


def custom(host, sampler, sigmas, *, model, positive, negative, seed, latent_image, cfg):
    (guider,) = host.call("CFGGuider", model=model, positive=positive, negative=negative, cfg=cfg)
    (noise,) = host.call("RandomNoise", noise_seed=seed)
    return host.call("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                     latent_image=latent_image)[0]  # fmt: skip


def check(host, zoo, graph):
    """Asserts the steps; whether the pictures agree as well as stock euler agrees with itself in float64."""
    import comfy.samplers
    from comfy.samplers import KSAMPLER

    tiny = zoo[graph["name"]]
    model = tiny.model
    if graph["shift"] is not None:
        (model,) = host.call("ModelSamplingSD3", model=model, shift=graph["shift"])
    shared = {
        "model": model, "positive": conditioning_of(host, tiny, graph, 1), "seed": graph["seed"],
        "negative": conditioning_of(host, tiny, graph, 2), "latent_image": latent_of(tiny, graph),
    }  # fmt: skip
    steps, cfg = graph["steps"], graph["cfg"]
    run, off = Steps(), {"determinism": 1.0, "spacing": "trailing"}
    watched = shared | {"model": run.watch(model)}
    ours = host.call("PCMSampler", **watched, steps=steps, cfg=str(cfg), **off)[0]["samples"]
    sigmas, *_ = host.call("PCMPhaseScheduler", model=model, steps=steps, spacing="trailing")
    simple = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    same = torch.equal(sigmas, simple)
    assert same or steps not in SHARED
    if same:
        (stock,) = host.call("KSampler", **shared, steps=steps, cfg=cfg, sampler_name="euler", scheduler="simple")
    else:
        stock = custom(host, host.call("KSamplerSelect", sampler_name="euler")[0], sigmas, cfg=cfg, **shared)
    stock, exact = stock["samples"], custom(host, KSAMPLER(euler_in_double), sigmas, cfg=cfg, **shared)["samples"]
    assert ours.shape == stock.shape and ours.dtype == stock.dtype and ours.isfinite().all()
    assert torch.equal(custom(host, KSAMPLER(run.again), sigmas, cfg=cfg, **shared)["samples"], ours)
    rounding = float((stock - exact).abs().max())
    allowed = TOLERANCE * max(1.0, float(stock.abs().max())) * cfg + 2 * rounding
    found = max(float((ours - stock).abs().max()), float((ours - exact).abs().max()))
    return found <= allowed


@settings(max_examples=25, phases=phases, derandomize=True, **OPTIONS)
@given(graph=graphs())
def test_pcm_turned_off_is_euler_simple(host, zoo, graph):
    assert check(host, zoo, graph)


@pytest.mark.long
@pytest.mark.timeout(7200)
@settings(max_examples=3000, phases=phases, **OPTIONS)
@given(graph=graphs())
def test_pcm_turned_off_is_euler_simple_at_length(host, zoo, graph):
    event("the pictures agree" if check(host, zoo, graph) else "the network amplifies its rounding")


@pytest.mark.parametrize("name", ["eps", "v", "edm", "sd3", "flux", "wan", "ltxv"])
def test_where_simple_rounds_down(host, zoo, name):
    """Both visit the same entries of the table where the steps divide 1000. Elsewhere ``simple`` rounds an index of its
    own down and we round the phase edges of the paper's grid: no entry is further off than a timestep.
    """
    import comfy.samplers

    model = zoo[name].model
    sampling = model.get_model_object("model_sampling")
    table = sampling.sigmas.cpu()
    same = []
    for steps in range(1, 65):
        ours, *_ = host.call("PCMPhaseScheduler", model=model, steps=steps, spacing="trailing")
        simple = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        if torch.equal(ours, simple):
            same.append(steps)
        places = [(table[None] - sigmas[:-1, None]).abs().argmin(1) for sigmas in (ours, simple)]
        assert int((places[0] - places[1]).abs().max()) <= math.ceil(len(table) / 1000)
    assert same == SHARED
