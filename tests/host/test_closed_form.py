"""A model that jumps exactly to its phase edge (pcm.md T14), sampled through the host's own KSAMPLER.

For Gaussian data of variance v the probability flow is known: x keeps its ratio to the standard deviation of its noise
level. A perfect phased student, trained on the edges of one grid, must therefore bring pure noise exactly to the data
on the schedule of those edges, and on no other.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from test_sampler import pcm, stock

from pcm_core import phases as core_phases
from phased_consistency.nodes import host as nodes_host


def level(sigma, variance, flow):
    """Standard deviation of x at sigma."""
    return math.sqrt(((1 - sigma) ** 2 if flow else 1) * variance + sigma**2)


def phased(host, tiny, phases, grid, variance, *, flow=False):
    """A clone whose x0 is the one that lands on the phase edge of the sigma it is asked at."""
    table = nodes_host.sigma_table(tiny.model)
    edges = [table.sigma(t) for t in core_phases.phase_edges(phases, grid)]

    def jump(args):
        sigma = float(args["sigma"].flatten()[0])
        edge = max((e for e in edges if e < sigma * (1 - 1e-6)), default=edges[0])
        x = args["input"].double()
        landed = x * (level(edge, variance, flow) / level(sigma, variance, flow))
        return (x - sigma * (x - landed) / (sigma - edge)).float()

    model = tiny.model.clone()
    model.set_model_sampler_post_cfg_function(jump)
    return model, table


def ratio(host, tiny, model, **settings):
    """Result over the starting noise, in the model's latent space: one number, the same at every pixel."""
    (out, _) = pcm(host, tiny, model=model, cfg="1", **settings)
    return gain(tiny, out)


def gain(tiny, out):
    import comfy.sample

    noise = comfy.sample.prepare_noise(tiny.latent()["samples"], 7)
    values = (tiny.model.model.process_latent_in(out["samples"]) / noise)[noise.abs() > 0.1]
    assert float(values.std()) < 1e-4 * float(values.mean().abs())
    return float(values.mean())


GRIDS = [(1, 50), (2, 50), (4, 50), (8, 50), (16, 50), (4, 40), (8, 40), (16, 40), (3, 50), (7, 100), (5, 20)]


@pytest.mark.parametrize("variance", [1.0, 0.25, 0.04, 4.0])
@pytest.mark.parametrize(("phases", "grid"), GRIDS)
def test_the_aligned_schedule_is_exact(host, zoo, phases, grid, variance):
    """1.0000 for unit variance; else the host's start, sqrt(1 + sigma^2), is carried along the flow."""
    tiny = zoo["eps"]
    model, table = phased(host, tiny, phases, grid, variance)
    got = ratio(host, tiny, model, phases=phases, spacing="aligned", grid=grid, terminal="alpha0")
    top, bottom = table.top, table.bottom
    flow = level(bottom, variance, False) / level(top, variance, False)
    expected = math.sqrt(1 + top**2) * flow / math.sqrt(1 + bottom**2)
    assert got == pytest.approx(expected, rel=2e-5)
    if variance == 1:
        assert got == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("variance", [1.0, 0.25])
@pytest.mark.parametrize(("phases", "grid"), [(1, 50), (2, 50), (4, 50), (8, 40)])
def test_the_aligned_schedule_is_exact_on_a_flow_model(host, zoo, phases, grid, variance):
    """The host divides by 1 - sigma where a flow schedule ends above 0."""
    tiny = zoo["sd3"]
    model, table = phased(host, tiny, phases, grid, variance, flow=True)
    got = ratio(host, tiny, model, phases=phases, spacing="aligned", grid=grid, terminal="alpha0")
    bottom = table.bottom
    assert got == pytest.approx(level(bottom, variance, True) / (1 - bottom), rel=2e-5)


@pytest.mark.parametrize(
    ("spacing", "terminal", "expected"),
    [
        ("aligned", "zero", 0.9912001),
        ("trailing", "alpha0", 0.8067544 * 0.99957491),
        ("tcd", "alpha0", 0.8043416 * 0.99957491),
    ],
)
def test_other_schedules_miss_by_what_theory_says(host, zoo, spacing, terminal, expected):
    """T14 for four phases on the 50 grid: the test above can fail."""
    model, _ = phased(host, zoo["eps"], 4, 50, 1.0)
    assert ratio(host, zoo["eps"], model, phases=4, spacing=spacing, terminal=terminal) == pytest.approx(
        expected, rel=2e-5
    )


def test_img2img_lands_on_the_data_from_inside_a_phase(host, zoo):
    """From timestep 600 of a clean latent: three jumps, the same flow (pcm.md 1.7)."""
    tiny = zoo["eps"]
    model, table = phased(host, tiny, 4, 50, 1.0)
    got = ratio(host, tiny, model, phases=4, spacing="aligned", terminal="alpha0", denoise=0.6)
    sigma, bottom = table.sigma(600), table.bottom
    flow = level(bottom, 1.0, False) / level(sigma, 1.0, False)
    assert got == pytest.approx(sigma * flow / math.sqrt(1 + bottom**2), rel=2e-5)


def test_the_stock_ksampler_reaches_it_by_name(host, zoo):
    """Edges of the 40 grid are the trailing timesteps, so the drop-down names are exact up to the terminal step."""
    tiny = zoo["eps"]
    model, table = phased(host, tiny, 4, 40, 1.0)
    out = stock(host, replace(tiny, model=model), steps=4, cfg=1.0, sampler="pcm", scheduler="pcm")
    edge, bottom = table.sigma(249), table.bottom
    x, landed = level(edge, 1.0, False), level(bottom, 1.0, False)
    assert gain(tiny, out) == pytest.approx(x - edge * (x - landed) / (edge - bottom), rel=2e-5)
