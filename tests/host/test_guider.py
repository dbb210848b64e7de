"""PCM Guider: cfg by phase, counted in model calls, beside the host's own guiders and patches."""

from __future__ import annotations

import pytest
import torch
from test_sampler import Recorder, close, pcm, stock, with_profile


def guided(host, tiny, guider, sigmas, *, seed=7, latent=None):
    """SamplerCustomAdvanced with SamplerPCM and the guider."""
    (noise,) = host.call("RandomNoise", noise_seed=seed)
    (sampler,) = host.call("SamplerPCM")
    latent = latent or tiny.latent()
    return host.call(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )


def pcm_guider(host, tiny, model, cfg, **settings):
    inputs = {"model": model, "positive": tiny.positive, "negative": tiny.negative, "cfg": cfg}
    (guider,) = host.call("PCMGuider", **inputs, **settings)
    return guider


def simple(host, model, steps):
    (sigmas,) = host.call("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0)
    return sigmas


@pytest.mark.parametrize("name", ["eps", "v", "sd3", "wan"])
def test_phases_at_one_skip_the_negative_pass(host, zoo, name):
    tiny = zoo[name]
    recorder = Recorder(tiny.model)
    guider = pcm_guider(host, tiny, recorder.model, "5, 1, 1, 1")
    (out, _) = guided(host, tiny, guider, simple(host, tiny.model, 4))
    assert recorder.rows == [2, 1, 1, 1]
    again = Recorder(tiny.model)
    (own, _) = pcm(host, tiny, model=again.model, steps=4, cfg="5, 1, 1, 1")
    assert again.rows == [2, 1, 1, 1]
    assert torch.equal(out["samples"], own["samples"])


@pytest.mark.parametrize("name", ["eps", "sd3"])
def test_one_value_is_the_hosts_cfg_guider(host, zoo, name):
    tiny = zoo[name]
    sigmas = simple(host, tiny.model, 4)
    (host_guider,) = host.call("CFGGuider", model=tiny.model, positive=tiny.positive, negative=tiny.negative, cfg=3.0)
    mine = guided(host, tiny, pcm_guider(host, tiny, tiny.model, "3"), sigmas)
    theirs = guided(host, tiny, host_guider, sigmas)
    assert torch.equal(mine[0]["samples"], theirs[0]["samples"])


@pytest.mark.parametrize("name", ["eps", "v", "sd3", "flux", "wan", "ltxv"])
def test_cfg_per_phase_is_what_stock_samplers_do_one_phase_at_a_time(host, zoo, name):
    """Four KSamplerAdvanced runs of one step each, each with its own cfg."""
    tiny = zoo[name]
    latent, values = tiny.latent(), (5.0, 2.0, 1.0, 3.0)
    for step, cfg in enumerate(values):
        (latent,) = host.call(
            "KSamplerAdvanced", model=tiny.model, add_noise="enable" if step == 0 else "disable", noise_seed=7,
            steps=4, cfg=cfg, sampler_name="euler", scheduler="simple", positive=tiny.positive,
            negative=tiny.negative, latent_image=latent, start_at_step=step, end_at_step=step + 1,
            return_with_leftover_noise="enable",
        )  # fmt: skip
    (own, _) = pcm(host, tiny, steps=4, cfg="5, 2, 1, 3")
    close(own, latent)


class TestPhaseOfForeignSigmas:
    """The guider knows the model's table, not the schedule that runs."""

    @pytest.mark.parametrize(
        ("scheduler", "steps", "rows"),
        [
            ("simple", 8, [2, 2, 1, 1, 1, 1, 2, 2]),  # 999 874 | 749 624 | 499 374 | 249 124
            ("sgm_uniform", 8, [2, 2, 1, 1, 1, 1, 2, 2]),  # one timestep above: 750.., 500.., 250..
            ("karras", 4, [2, 1, 2, 2]),  # 999 | 687 | 146 0
            ("ddim_uniform", 4, [2, 1, 1, 2]),  # 751: still the first phase | 501: the second | 251: the third | 1
        ],
    )
    def test_by_noise_level(self, host, zoo, scheduler, steps, rows):
        tiny = zoo["eps"]
        recorder = Recorder(tiny.model)
        guider = pcm_guider(host, tiny, recorder.model, "5, 1, 1, 5")
        (sigmas,) = host.call("BasicScheduler", model=tiny.model, scheduler=scheduler, steps=steps, denoise=1.0)
        guided(host, tiny, guider, sigmas)
        assert recorder.rows == rows

    def test_sixteen_phases_on_simple_which_rounds_differently(self, host, zoo):
        tiny = zoo["eps"]
        recorder = Recorder(tiny.model)
        values = ["5" if i % 2 else "1" for i in range(16)]
        guided(host, tiny, pcm_guider(host, tiny, recorder.model, ",".join(values)), simple(host, tiny.model, 16))
        assert recorder.rows == [2 if v == "5" else 1 for v in values]

    def test_img2img_starts_in_the_phase_of_its_noise(self, host, zoo):
        tiny = zoo["sd3"]
        recorder = Recorder(tiny.model)
        pcm(host, tiny, model=recorder.model, steps=4, cfg="5, 1, 5, 1", denoise=0.6, latent_image=tiny.latent(seed=1))
        assert recorder.rows == [1, 2, 1]  # 600, 499, 249

    def test_a_fixed_list_has_one_phase_per_step(self, host, zoo):
        tiny = zoo["sd3"]
        recorder = Recorder(with_profile(host, tiny, method="Fast", sigmas=(1.0, 0.937, 0.833, 0.624, 0.0)))
        pcm(host, tiny, model=recorder.model, cfg="1, 5, 1, 5")
        assert recorder.rows == [1, 2, 1, 2]


class TestHostSemantics:
    def test_disable_cfg1_optimization_runs_the_negative_everywhere(self, host, zoo):
        tiny = zoo["eps"]
        recorder = Recorder(tiny.model)
        recorder.model.set_model_sampler_cfg_function(lambda args: args["cond"], disable_cfg1_optimization=True)
        pcm(host, tiny, model=recorder.model, steps=4, cfg="5, 1, 1, 1")
        assert recorder.rows == [2] * 4

    def test_cfg_override_wins_over_the_phases(self, host, zoo):
        if "CFGOverride" not in host.nodes.NODE_CLASS_MAPPINGS:
            pytest.skip("this host has no CFGOverride")
        tiny = zoo["eps"]
        recorder = Recorder(tiny.model)
        (model,) = host.call("CFGOverride", model=recorder.model, cfg=4.0, start_percent=0.6, end_percent=1.0)
        pcm(host, tiny, model=model, steps=4, cfg="5, 1, 1, 1")
        assert recorder.rows == [2, 1, 1, 2]

    def test_perp_neg_guider_is_untouched(self, host, zoo):
        """SamplerPCM under a guider of another kind equals euler under the same guider."""
        tiny = zoo["eps"]
        (guider,) = host.call(
            "PerpNegGuider", model=tiny.model, positive=tiny.positive, negative=tiny.negative,
            empty_conditioning=tiny.cond(3), cfg=4.0, neg_scale=1.0,
        )  # fmt: skip
        (noise,) = host.call("RandomNoise", noise_seed=7)
        (euler,) = host.call("KSamplerSelect", sampler_name="euler")
        sigmas = simple(host, tiny.model, 4)
        (theirs, _) = host.call(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=euler, sigmas=sigmas,
            latent_image=tiny.latent(),
        )  # fmt: skip
        close(guided(host, tiny, guider, sigmas)[0], theirs)

    def test_auto_is_the_lora_cfg(self, host, zoo):
        tiny = zoo["eps"]
        model = with_profile(host, tiny, phases=4, cfg=3.0)
        (out, _) = guided(host, tiny, pcm_guider(host, tiny, model, "auto"), simple(host, tiny.model, 4))
        close(out, stock(host, tiny, steps=4, cfg=3.0))


@pytest.mark.parametrize(
    ("cfg", "found"), [("5, 1", "2 values for a model of 4 phases"), ("nan", "nan"), ("-1", "-1"), ("x", '"x"')]
)
def test_bad_cfg_is_refused(host, zoo, cfg, found):
    with pytest.raises(ValueError, match=found) as error:
        pcm_guider(host, zoo["eps"], with_profile(host, zoo["eps"], phases=4), cfg)
    assert type(error.value).__name__ == "PCMError"
