"""Sampling classes of hosts newer than 0.30.0, as stand-ins: what they carry is kept, or they are refused by name."""

from __future__ import annotations

import comfy.model_sampling
import pytest

from phased_consistency.nodes import host as nodes_host


class AV(comfy.model_sampling.ModelSamplingDiscreteFlow):
    """Video and audio with a shift of their own, as ModelSamplingAV of ComfyUI 0.33 has them."""

    def set_parameters(self, shift=1.0, timesteps=1000, multiplier=1000, audio_shift=None):
        self.audio_shift = audio_shift
        super().set_parameters(shift=shift, timesteps=timesteps, multiplier=multiplier)

    @property
    def audio_scale(self):
        return 1.0 if self.audio_shift is None else self.shift / self.audio_shift


class Velocity(comfy.model_sampling.CONST):
    """x0 = x - output without noise, as IMG_TO_IMG_VELOCITY of ComfyUI 0.33 and later."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image


class Secretive(comfy.model_sampling.ModelSamplingDiscreteFlow):
    """A setting that cannot be read again."""

    def set_parameters(self, shift=1.0, timesteps=1000, multiplier=1000, warp=1.0):
        self._hidden = warp
        super().set_parameters(shift=shift, timesteps=timesteps, multiplier=multiplier)


def patched(zoo, base, kind, **settings):
    model = zoo["sd3"].model.clone()
    sampling = type("ModelSampling", (base, kind), {})(model.model.model_config)
    if settings:
        sampling.set_parameters(**settings)
    model.add_object_patch("model_sampling", sampling)
    return model


def test_the_audio_shift_stays_when_the_shift_is_set(zoo):
    model = patched(zoo, AV, comfy.model_sampling.CONST, shift=12.0, audio_shift=3.0)
    assert model.get_model_object("model_sampling").audio_scale == 4
    changed = nodes_host.with_flow_shift(model, 6.0)
    sampling = changed.get_model_object("model_sampling")
    assert (sampling.shift, sampling.audio_shift, sampling.audio_scale) == (6.0, 3.0, 2.0)
    assert model.get_model_object("model_sampling").shift == 12.0
    sampling = nodes_host.with_flow_shift(model, 6.0, 1.5).get_model_object("model_sampling")
    assert (sampling.audio_shift, sampling.audio_scale) == (1.5, 4.0)


def test_a_model_with_another_audio_shift_has_not_the_shifts_that_are_asked(zoo):
    model = patched(zoo, AV, comfy.model_sampling.CONST, shift=12.0, audio_shift=3.0)
    assert nodes_host.has_shift(model, 12.0) and nodes_host.has_shift(model, 12.0, 3.0)
    assert not nodes_host.has_shift(model, 12.0, 6.0)


def test_a_setting_that_cannot_be_read_is_refused_by_name(zoo):
    model = patched(zoo, Secretive, comfy.model_sampling.CONST)
    with pytest.raises(ValueError, match=r'Secretive does not say what its setting "warp" is'):
        nodes_host.with_flow_shift(model, 6.0)


def test_an_unknown_parametrization_is_refused_by_name(host, zoo):
    """In our nodes, and in the host's by the name ``pcm``."""
    model, given = patched(zoo, comfy.model_sampling.ModelSamplingDiscreteFlow, Velocity), zoo["sd3"]
    for call in (
        lambda: host.call("PCMPhaseScheduler", model=model, steps=4),
        lambda: host.call("KSampler", model=model, seed=0, steps=4, cfg=1.0, sampler_name="pcm", scheduler="simple",
                          positive=given.positive, negative=given.negative, latent_image=given.latent(), denoise=1.0),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"noise to this model as Velocity.*Expected: an eps, v, EDM or flow model"
        ):
            call()


def test_every_noise_of_the_host_is_known_or_refused_by_a_name_of_its_own(host):
    """So that none of a new host is served because nobody looked."""
    from phased_consistency.nodes.host import model as own

    named = {name for name, value in vars(comfy.model_sampling).items()
             if isinstance(value, type) and {"noise_scaling", "calculate_input"} & vars(value).keys()}  # fmt: skip
    looked_at = {*own._SERVED, *own._REFUSED}
    assert named and named <= looked_at, named - looked_at
