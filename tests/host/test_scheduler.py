"""PCM Phase Scheduler on the sigma tables of real models."""

from __future__ import annotations

import math

import pytest
import torch

from pcm_core.profiles import PCMProfile
from phased_consistency.nodes import host as nodes_host
from phased_consistency.nodes.sampling import plan as planning

SERVED = ["eps", "v", "v_zsnr", "edm", "sd3", "flux", "wan", "ltxv"]


def schedule(host, model, **settings):
    sigmas, *_ = host.call("PCMPhaseScheduler", model=model, **settings)
    return sigmas


def with_profile(host, tiny, **values):
    profile = PCMProfile(**{"method": "PCM", **values})
    return nodes_host.attach_profile(tiny.model, profile)


@pytest.mark.parametrize("spacing", ["trailing", "aligned", "tcd"])
@pytest.mark.parametrize("name", SERVED)
def test_starts_at_sigma_max_to_the_bit_and_descends(host, zoo, name, spacing):
    model = zoo[name].model
    for steps in (1, 2, 3, 4, 8, 16, 50, 64):
        sigmas = schedule(host, model, steps=steps, spacing=spacing)
        assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
        assert len(sigmas) == steps + 1
        assert float(sigmas[0]) == float(model.get_model_object("model_sampling").sigma_max)
        assert float(sigmas[-1]) == 0
        assert (sigmas.diff() < 0).all(), (steps, sigmas)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50])
@pytest.mark.parametrize("name", SERVED)
def test_trailing_is_the_hosts_simple_where_steps_divide_1000(host, zoo, name, steps):
    import comfy.samplers

    model = zoo[name].model
    stock = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    assert torch.equal(schedule(host, model, steps=steps, spacing="trailing"), stock)


@pytest.mark.parametrize(
    ("spacing", "grid", "timesteps"),
    [
        ("aligned", 50, [999, 739, 499, 239]),
        ("aligned", 40, [999, 749, 499, 249]),
        ("tcd", 50, [999, 759, 499, 259]),
        ("trailing", 0, [999, 749, 499, 249]),
    ],
)
def test_the_network_sees_the_published_timesteps(host, zoo, spacing, grid, timesteps):
    """pcm.md 1.3, through the host's own sigma -> timestep map."""
    sampling = zoo["eps"].model.get_model_object("model_sampling")
    sigmas = schedule(host, zoo["eps"].model, steps=4, spacing=spacing, grid=grid)
    assert sampling.timestep(sigmas[:-1]).tolist() == timesteps


def test_sd3_schedules_are_the_official_ones(host, zoo):
    """pcm.md 3.6: P=100 is trailing, P=50 is tcd."""
    for spacing, grid, expected in [
        ("trailing", 0, [1, 0.9, 0.75, 0.5, 0]),
        ("tcd", 50, [1, 0.904762, 0.75, 0.513158, 0]),
        ("tcd", 100, [1, 0.9, 0.75, 0.5, 0]),
    ]:
        sigmas = schedule(host, zoo["sd3"].model, steps=4, spacing=spacing, grid=grid)
        torch.testing.assert_close(sigmas, torch.tensor(expected), atol=1e-6, rtol=0)


def test_auto_asks_the_profile(host, zoo):
    model = with_profile(host, zoo["eps"], phases=8, steps=8, spacing="aligned", grid=40, terminal="alpha0")
    table = nodes_host.sigma_table(model)
    expected = [table.sigma(t) for t in (999, 874, 749, 624, 499, 374, 249, 124, 0)]
    assert schedule(host, model).tolist() == expected


def test_settings_override_the_profile_and_say_so(host, zoo, caplog):
    model = with_profile(host, zoo["eps"], phases=8, steps=8)
    sigmas = schedule(host, model, phases=4, spacing="aligned")
    sampling = zoo["eps"].model.get_model_object("model_sampling")
    assert sampling.timestep(sigmas[:-1]).tolist() == [999, 739, 499, 239]
    assert [r.message for r in caplog.records] == [
        "PCM Phase Scheduler: phases is 4 where the LoRA says 8.",
        "PCM Phase Scheduler: spacing is aligned where the LoRA says trailing.",
    ]


def test_more_steps_than_phases_snap_unless_told(host, zoo, caplog):
    model = with_profile(host, zoo["eps"], phases=4, steps=4)
    assert torch.equal(schedule(host, model, steps=8), schedule(host, model))
    assert "8 steps were asked of a 4-phase model" in caplog.text
    assert len(schedule(host, model, steps=8, spend_extra_steps=True)) == 9


def test_fewer_steps_than_phases_run_with_a_warning(host, zoo, caplog):
    assert len(schedule(host, with_profile(host, zoo["eps"], phases=8, steps=8), steps=4)) == 5
    assert "Use at least 8" in caplog.text


def test_a_bare_model_is_assumed_and_said_once(host, zoo, caplog):
    assert len(schedule(host, zoo["sd3"].model)) == 5
    assert [r.message for r in caplog.records if "assumed 4 steps" in r.message] == [r.message for r in caplog.records]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("denoise", "timesteps"),
    [
        (1.0, [999, 739, 499, 239]),
        (0.6, [600, 499, 239]),
        (0.5, [499, 239]),
        (0.26, [260, 239]),
        (0.25, [239]),  # a first jump of 11 timesteps, less than a solver step, is dropped
        (0.01, [10]),
    ],
)
def test_denoise_enters_at_the_noise_level_and_keeps_the_edges(host, zoo, denoise, timesteps):
    """pcm.md 1.7."""
    model = with_profile(host, zoo["eps"], phases=4, steps=4, spacing="aligned")
    sampling = zoo["eps"].model.get_model_object("model_sampling")
    sigmas = schedule(host, model, denoise=denoise)
    assert sampling.timestep(sigmas[:-1]).tolist() == timesteps
    assert float(sigmas[-1]) == 0


def test_denoise_zero_is_an_empty_schedule(host, zoo):
    sigmas = schedule(host, zoo["eps"].model, denoise=0.0)
    assert sigmas.shape == (0,)


class TestFixedList:
    """A profile with its own sigmas: never spaced anew."""

    LEVELS = (1.0, 0.937, 0.833, 0.624, 0.0)

    def model(self, host, zoo):
        return with_profile(host, zoo["sd3"], method="Fast", sigmas=self.LEVELS, phases=None, steps=4)

    def test_is_walked_as_it_is(self, host, zoo):
        assert torch.equal(schedule(host, self.model(host, zoo)), torch.tensor(self.LEVELS))

    def test_steps_do_not_respace_it(self, host, zoo, caplog):
        assert torch.equal(schedule(host, self.model(host, zoo), steps=7), torch.tensor(self.LEVELS))
        assert "fixed list of 4 steps, not 7" in caplog.text

    def test_a_spacing_leaves_it(self, host, zoo):
        sigmas = schedule(host, self.model(host, zoo), spacing="trailing")
        torch.testing.assert_close(sigmas, torch.tensor([1, 0.9, 0.75, 0.5, 0]))

    @pytest.mark.parametrize(("denoise", "kept"), [(0.9, 4), (0.7, 3), (0.6, 2), (0.3, 1), (0.01, 1)])
    def test_denoise_enters_at_its_own_level_and_keeps_the_later_ones(self, host, zoo, denoise, kept):
        """Shift 3: a low denoise on a list of high sigmas starts low (faults.md 19)."""
        sigmas = schedule(host, self.model(host, zoo), denoise=denoise)
        assert float(sigmas[0]) == pytest.approx(3 * denoise / (1 + 2 * denoise), abs=1e-4)
        assert torch.equal(sigmas[1:], torch.tensor(self.LEVELS)[-kept:])

    def test_settings_that_leave_the_list_say_so(self, host, zoo):
        model, plan = (
            with_profile(host, zoo["eps"], sigmas=(14.615, 4.0, 1.6, 0.0)),
            planning.make_plan,
        )
        for settings in ({"phases": 4}, {"grid": 50}, {"spacing": "trailing"}):
            assert any("own list of 3 steps is not used" in note for note in plan(model, **settings).notes), settings
        assert not any("own list" in note for note in plan(model).notes)

    def test_a_rounded_first_sigma_becomes_sigma_max(self, host, zoo):
        model = with_profile(host, zoo["eps"], sigmas=(14.615, 4.0, 1.6, 0.0))
        assert float(schedule(host, model)[0]) == float(model.get_model_object("model_sampling").sigma_max)


BAD = [
    ({"denoise": math.nan}, "denoise is nan"),
    ({"denoise": 1.5}, "denoise is 1.5"),
    ({"denoise": -0.1}, "denoise is -0.1"),
    ({"denoise": math.inf}, "denoise is inf"),
    ({"steps": 10000}, "is 10000"),
    ({"steps": -1}, "is -1"),
    ({"phases": 70}, "is 70"),
    ({"spacing": "karras"}, 'spacing is "karras"'),
    ({"terminal": "one"}, 'terminal is "one"'),
    ({"grid": 48}, "solver grid has 48 points"),
    ({"steps": 32, "grid": 20, "spacing": "aligned"}, "do not fit"),
]


@pytest.mark.parametrize(("settings", "found"), BAD)
def test_bad_settings_are_refused_with_found_expected_action(host, zoo, settings, found):
    with pytest.raises(ValueError, match=found) as error:
        schedule(host, zoo["eps"].model, **settings)
    assert type(error.value).__name__ == "PCMError"
    assert "Expected:" in str(error.value) and error.value.action.endswith(".")


def test_cogvideo_is_refused_by_name(host, zoo):
    with pytest.raises(ValueError, match=r"CogVideoX.*V_PREDICTION_DDPM"):
        schedule(host, zoo["cogvideo"].model)


@pytest.mark.parametrize("name", ["IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_image_to_image_models_are_refused_by_name(host, zoo, name):
    import comfy.model_sampling

    parent = getattr(comfy.model_sampling, name, None)
    if parent is None:
        pytest.skip(f"this host has no {name}")
    patched = zoo["eps"].model.clone()
    sampling = type("ModelSampling", (comfy.model_sampling.ModelSamplingDiscrete, parent), {})()
    patched.add_object_patch("model_sampling", sampling)
    with pytest.raises(ValueError, match=rf"image-to-image.*{name}"):
        schedule(host, patched)


def with_sampling(model, name, parents, **methods):
    """A clone with the sampling object of a class that this host does not have."""
    import comfy.model_sampling

    bases = tuple(getattr(comfy.model_sampling, parent) for parent in parents)
    own = type(name, bases, methods)
    clone = model.clone()
    clone.add_object_patch("model_sampling", type("ModelSampling", (own,), {})(model.model.model_config))
    return clone


def test_a_parametrisation_of_a_later_host_is_refused_by_its_name(host, zoo):
    """IMG_TO_IMG_VELOCITY of ComfyUI 0.33: x0 = x - output, and no noise is added."""
    later = with_sampling(
        zoo["eps"].model, "IMG_TO_IMG_VELOCITY", ["ModelSamplingDiscrete", "EPS"],
        calculate_input=lambda self, sigma, noise: noise,
        calculate_denoised=lambda self, sigma, output, x: x - output,
        noise_scaling=lambda self, sigma, noise, latent_image, max_denoise=False: latent_image,
    )  # fmt: skip
    with pytest.raises(ValueError, match="adds noise to this model as IMG_TO_IMG_VELOCITY, which this pack does not"):
        schedule(host, later)


def test_a_later_class_that_only_reads_the_network_otherwise_is_served(host, zoo):
    """As ModelSamplingDiscrete's own lcm and x0: the noise is that of a known class."""
    later = with_sampling(
        zoo["sd3"].model, "LATER", ["ModelSamplingDiscreteFlow", "CONST"],
        calculate_denoised=lambda self, sigma, output, x: x - 0.5 * output,
    )  # fmt: skip
    assert len(schedule(host, later, steps=3)) == 4


def test_what_a_later_sampling_object_holds_stays_when_the_shift_is_set(host, zoo):
    """ModelSamplingAV of ComfyUI 0.33: a shift for the audio half, which set_parameters without it would lose."""
    import comfy.model_sampling

    class ModelSamplingAV(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        def set_parameters(self, shift=1.0, timesteps=1000, multiplier=1000, audio_shift=None):
            super().set_parameters(shift=shift, timesteps=timesteps, multiplier=multiplier)
            self.audio_shift = audio_shift
            self.audio_scale = 1.0 if audio_shift is None else shift / audio_shift

    sampling = ModelSamplingAV(zoo["sd3"].model.model.model_config)
    sampling.set_parameters(shift=12.0, audio_shift=3.0)
    model = zoo["sd3"].model.clone()
    model.add_object_patch("model_sampling", sampling)
    api = host.pack("nodes.host")
    made = api.with_flow_shift(model, 6.0)
    new = made.get_model_object("model_sampling")
    assert type(new) is ModelSamplingAV and (new.audio_shift, new.audio_scale) == (3.0, 2.0)
    assert api.flow_shift(made) == pytest.approx(6.0, rel=1e-4) and sampling.shift == 12.0


def test_the_50_entry_lcm_table_is_refused(host, zoo):
    (patched,) = host.call("ModelSamplingDiscrete", model=zoo["eps"].model, sampling="lcm", zsnr=False)
    with pytest.raises(ValueError, match=r"has 50 entries.*Remove ModelSamplingDiscrete"):
        schedule(host, patched)
