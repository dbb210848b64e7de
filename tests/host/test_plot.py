"""PCM Phase Plot on real models: what it draws, and that it draws what would be sampled."""

from __future__ import annotations

import math

import pytest
import torch

from pcm_core.errors import PCMError
from pcm_core.profiles import PCMProfile
from phased_consistency.nodes import host as nodes_host
from phased_consistency.nodes import phase_plot


def chart(host, model, sigmas=None, cfg="auto", denoise=1.0, **settings):
    return phase_plot.chart_of_model(model, sigmas, cfg, denoise, **settings)


def plot(host, **inputs):
    (image,) = host.call("PCMPhasePlot", **inputs)
    assert image.dtype == torch.float32 and image.device.type == "cpu"
    assert 0 <= image.min() and image.max() <= 1
    return image


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("name", ["eps", "v", "v_zsnr", "edm", "sd3", "flux", "wan", "ltxv"])
def test_every_model_gives_a_picture(host, zoo, name, theme):
    image = plot(host, model=zoo[name].model, steps=4, theme=theme)
    assert image.shape == (1, 640, 1024, 3)
    assert image.flatten(0, 2).unique(dim=0).shape[0] > 100
    assert (image[0, 0, 0].mean() < 0.5) == (theme == "dark")


def test_the_steps_are_those_of_the_scheduler(host, zoo):
    for settings in (
        {"steps": 4},
        {"steps": 4, "denoise": 0.6},
        {"steps": 3, "phases": 8},
        {"steps": 5, "spacing": "tcd"},
    ):
        for name in ("eps", "sd3", "flux"):
            sigmas, *_ = host.call("PCMPhaseScheduler", model=zoo[name].model, **settings)
            drawn = chart(host, zoo[name].model, **settings)
            assert [sigma for _, sigma in (*drawn.steps, drawn.end)] == sigmas.tolist(), (name, settings)


def test_dots_bands_and_lanes_say_where_the_steps_are(host, zoo):
    drawn = chart(host, zoo["eps"].model, cfg="5, 1, 1, 1", steps=4)
    assert drawn.labels == ("999", "749", "499", "249")
    assert [band.note for band in drawn.bands] == ["cfg 5", "cfg 1", "cfg 1", "cfg 1"]
    assert [band.start for band in drawn.bands] == pytest.approx([0, 0.25, 0.5, 0.75], abs=2e-3)
    lanes = {lane.name: lane.progress for lane in drawn.lanes}
    assert lanes["PCM"] == tuple(progress for progress, _ in drawn.steps)
    assert lanes["simple"] == pytest.approx(lanes["PCM"], abs=1e-9)
    assert lanes["normal"] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=2e-3)
    assert drawn.logarithmic and drawn.entry is None and drawn.end == (1, 0)


def test_tables_of_10000_entries_are_read_in_timesteps(host, zoo):
    drawn = chart(host, zoo["flux"].model, steps=4)
    assert drawn.labels == ("999", "749", "499", "249")
    assert not drawn.logarithmic and len(drawn.curve) == 1000
    assert drawn.curve[0][1] == drawn.steps[0][1]


def test_denoise_is_drawn_where_it_enters_and_stock_enters_elsewhere(host, zoo):
    drawn = chart(host, zoo["eps"].model, steps=4, denoise=0.6)
    assert drawn.entry == pytest.approx(0.4, abs=2e-3)
    assert drawn.entry_note == "enters at t = 600 (denoise 0.6)"
    lanes = {lane.name: lane.progress for lane in drawn.lanes}
    assert len(lanes["PCM"]) == 3 and len(lanes["simple"]) == 4
    assert plot(host, model=zoo["eps"].model, steps=4, denoise=0.6).shape == (1, 640, 1024, 3)


def test_denoise_0_draws_the_model_without_steps(host, zoo):
    drawn = chart(host, zoo["eps"].model, steps=4, denoise=0.0)
    assert drawn.title == "0 steps over 4 phases" and not drawn.steps and drawn.end is None
    plot(host, model=zoo["eps"].model, steps=4, denoise=0.0)


def test_the_profile_names_itself(host, zoo):
    profile = PCMProfile(method="PCM", base_model="sd15", phases=2, steps=2, cfg=1.5)
    model = nodes_host.attach_profile(zoo["eps"].model, profile)
    drawn = chart(host, model)
    assert drawn.title == "2 steps over 2 phases"
    assert drawn.subtitle == "PCM sd15; trailing; ends at sigma 0"
    assert [band.note for band in drawn.bands] == ["cfg 1.5", "cfg 1.5"]


def test_sigmas_are_drawn_on_the_models_phases(host, zoo):
    import comfy.samplers

    model = zoo["eps"].model
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 6)
    drawn = chart(host, model, sigmas, phases=4)
    assert [sigma for _, sigma in (*drawn.steps, drawn.end)] == sigmas.tolist()
    assert drawn.title == "6 steps over 4 phases" and drawn.lanes[0].name == "SIGMAS"
    plot(host, model=model, sigmas=sigmas, phases=4)
    later = chart(host, model, sigmas[2:], phases=4)
    assert later.entry == later.steps[0][0] and later.entry_note.startswith("enters at t = ")


def test_sigmas_alone_count_steps(host):
    alone = phase_plot.chart_of_sigmas
    drawn = alone(torch.tensor([14.6, 4.0, 1.6, 0.7, 0.0]), 2, "3, 1")
    assert drawn.labels == ("14.6", "4", "1.6", "0.7")
    assert [(band.start, band.end, band.note) for band in drawn.bands] == [(0, 0.5, "cfg 3"), (0.5, 1, "cfg 1")]
    assert not drawn.curve and drawn.logarithmic
    for sigmas in ([1.0, 0.5, 0.0], [14.6, 0.03], []):
        plot(host, sigmas=torch.tensor(sigmas))


@pytest.mark.parametrize("size", [(480, 360), (512, 512), (1920, 480), (480, 2048)])
def test_any_size(host, zoo, size):
    width, height = size
    image = plot(host, model=zoo["sd3"].model, steps=64, width=width, height=height)
    assert image.shape == (1, height, width, 3)


def test_the_caller_keeps_the_sigmas(host):
    sigmas = torch.tensor([14.6, 4.0, 0.0])
    plot(host, sigmas=sigmas)
    assert torch.equal(sigmas, torch.tensor([14.6, 4.0, 0.0]))


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({}, "Nothing is connected"),
        ({"sigmas": [1.0]}, "single sigma"),
        ({"sigmas": [1.0, 2.0]}, "2 after 1"),
        ({"sigmas": [1.0, 0.0], "phases": 2}, "phases is 2"),
        ({"sigmas": [1.0, 0.0], "cfg": "nan"}, "nan"),
    ],
)
def test_bad_input_is_refused(host, inputs, found):
    error = PCMError
    if "sigmas" in inputs:
        inputs = inputs | {"sigmas": torch.tensor(inputs["sigmas"])}
    with pytest.raises(error, match=found):
        host.call("PCMPhasePlot", **inputs)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"steps": 65}, "steps is 65"),
        ({"denoise": math.nan}, "denoise is nan"),
        ({"cfg": "1, 2", "steps": 4}, "2 values"),
    ],
)
def test_bad_settings_are_refused(host, zoo, inputs, found):
    error = PCMError
    with pytest.raises(error, match=found):
        host.call("PCMPhasePlot", model=zoo["eps"].model, **inputs)
