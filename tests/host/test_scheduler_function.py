"""The output scheduler_func, called as the Impact Pack calls it (modules/impact/impact_sampling.py)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_sampler import close

from pcm_core.errors import PCMError
from pcm_core.profiles import PCMProfile, profile_from_name
from phased_consistency.nodes import host as nodes_host

FOUR = profile_from_name("pcm_sd15_smallcfg_4step_converted")


def scheduler(host, model, **settings):
    """SIGMAS and SCHEDULER_FUNC."""
    return host.call("PCMPhaseScheduler", model=model, **settings)


def with_profile(given, profile):
    return replace(given, model=nodes_host.attach_profile(given.model, profile))


def kept(function, model, steps, denoise, sampler_name="pcm"):
    """What a detailer samples: the end of a longer list, as ``ksampler_wrapper`` and ``separated_sample`` cut it."""
    advanced = math.floor(steps / denoise)
    start, total = advanced - steps, function(model, sampler_name, advanced)
    assert len(total) == advanced + 1
    sigmas = total
    if advanced < len(total) - 1:
        sigmas = total[: advanced + 1]
        sigmas[-1] = 0
    assert start < len(sigmas) - 1
    return sigmas[start:] * 1.0


@pytest.mark.parametrize(("steps", "denoise"), [(4, 1.0), (2, 0.5), (3, 0.75), (1, 0.25)])
def test_a_detailer_walks_the_phase_edges(host, zoo, steps, denoise):
    """steps = phases x denoise; the same sigmas as this node's own for that denoise."""
    given = with_profile(zoo["eps"], FOUR)
    _, function = scheduler(host, given.model)
    sigmas, _ = scheduler(host, given.model, denoise=denoise)
    torch.testing.assert_close(kept(function, given.model, steps, denoise), sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("steps", "denoise"), [(20, 0.5), (8, 0.4), (6, 1.0), (3, 0.5), (4, 0.05), (64, 0.5)])
@pytest.mark.parametrize("name", ["eps", "sd3", "flux"])
def test_any_number_of_steps_and_denoise_is_served(host, zoo, name, steps, denoise):
    _, function = scheduler(host, with_profile(zoo[name], PCMProfile(method="PCM", phases=4)).model)
    sigmas = kept(function, zoo[name].model, steps, denoise)
    assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all() and sigmas[-1] == 0


def test_more_steps_lie_between_the_edges(host, zoo):
    given = with_profile(zoo["eps"], FOUR)
    own, function = scheduler(host, given.model)
    six = function(given.model, "euler", 6)
    assert set(own.tolist()) <= set(six.tolist())


def test_the_model_is_the_callers_and_the_settings_are_the_nodes(host, zoo):
    _, function = scheduler(host, zoo["eps"].model, phases=4, spacing="tcd", terminal="alpha0")
    for name in ("eps", "v"):
        right, _ = scheduler(host, zoo[name].model, phases=4, steps=4, spacing="tcd", terminal="alpha0")
        assert torch.equal(function(zoo[name].model, "pcm", 4), right)


def test_a_fixed_list_of_another_length_is_left(host, zoo):
    listed = PCMProfile(method="Hyper-SD", sigmas=(1.0, 0.9, 0.5, 0.0), sampling_class="fixed")
    model = with_profile(zoo["sd3"], listed).model
    _, function = scheduler(host, model)
    assert function(model, "pcm", 3).tolist() == pytest.approx([1, 0.9, 0.5, 0])
    assert len(function(model, "pcm", 5)) == 6


def test_the_caller_may_write_into_what_it_gets(host, zoo):
    """``sigmas[-1] = 0`` on a slice of the list is the list."""
    _, function = scheduler(host, zoo["eps"].model)
    first = function(zoo["eps"].model, "pcm", 4)
    right = first.clone()
    first[:] = 0
    assert torch.equal(function(zoo["eps"].model, "pcm", 4), right)


def test_what_a_detailer_samples_is_the_pcm_samplers_image_to_image(host, zoo):
    given = with_profile(zoo["eps"], FOUR)
    _, function = scheduler(host, given.model)
    latent = given.latent(seed=4)
    common = {"model": given.model, "positive": given.positive, "negative": given.negative, "latent_image": latent}
    (sampler,) = host.call("KSamplerSelect", sampler_name="pcm")
    detail, _ = host.call("SamplerCustom", add_noise=True, noise_seed=9, cfg=1.0, sampler=sampler,
                          sigmas=kept(function, given.model, 2, 0.5), **common)  # fmt: skip
    ours = host.call("PCMSampler", seed=9, cfg="1", denoise=0.5, **common)[0]
    close(detail, ours)


def test_a_tiled_upscale_walks_this_nodes_sigmas(host, zoo):
    """UltimateSDUpscale hands custom_sampler and custom_sigmas to SamplerCustom, one tile after the other."""
    given = with_profile(zoo["eps"], FOUR)
    sigmas, _ = scheduler(host, given.model, denoise=0.5)
    (sampler,) = host.call("SamplerPCM")
    for seed in (1, 2):
        tile = given.latent(seed=seed)
        common = {"model": given.model, "positive": given.positive, "negative": given.negative, "latent_image": tile}
        made, _ = host.call("SamplerCustom", add_noise=True, noise_seed=9, cfg=1.0, sampler=sampler, sigmas=sigmas,
                            **common)  # fmt: skip
        close(made, host.call("PCMSampler", seed=9, cfg="1", denoise=0.5, **common)[0])


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_steps_that_are_none_are_refused(host, zoo, steps):
    _, function = scheduler(host, zoo["eps"].model)
    with pytest.raises(PCMError, match=r"steps\. Expected: a whole number above 0"):
        function(zoo["eps"].model, "pcm", steps)


def test_a_model_that_cannot_be_served_is_refused_in_one_sentence(host, zoo):
    _, function = scheduler(host, zoo["eps"].model)
    for wrong, found in ((zoo["cogvideo"].model, "CogVideoX"), ({"a": 1}, "called with a dict. Expected: a MODEL")):
        with pytest.raises(PCMError, match=found):
            function(wrong, "pcm", 4)


def test_a_note_is_logged_once_for_all_faces(host, zoo, caplog):
    given = with_profile(zoo["eps"], FOUR)
    _, function = scheduler(host, given.model)
    for _ in range(3):
        function(given.model, "pcm", 2)
    assert len([record for record in caplog.records if "PCM Phase Scheduler" in record.message]) <= 1
