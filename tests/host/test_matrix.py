"""Six families, every way people sample: finite, the same bits twice, and the promised number of evaluations."""

from __future__ import annotations

import pytest
import torch
from devices import hosts_noise
from test_sampler import Recorder, advanced, close, pcm, stock
from tiny import fingerprint

from pcm_core import sampling as core_sampling
from phased_consistency.nodes import host as nodes_host

FAMILIES = ["eps", "v", "sd3", "flux", "wan", "ltxv"]


def half_mask(tiny):
    """1 on the right half of the picture."""
    mask = torch.zeros(1, *tiny.shapes[0][-2:])
    mask[..., mask.shape[-1] // 2 :] = 1
    return mask


def run(host, tiny, **settings):
    """PCMSampler twice: the result, the batch rows of each evaluation, and the last x0 the model made."""
    results = []
    for _ in range(2):
        recorder = Recorder(tiny.model)
        out, x0 = pcm(host, tiny, model=recorder.model, **{"steps": 4, "cfg": "1", **settings})
        results.append((out, x0, recorder))
    (first, first_x0, recorder), (second, second_x0, _) = results
    assert torch.equal(first["samples"], second["samples"]) and torch.equal(first_x0["samples"], second_x0["samples"])
    assert torch.isfinite(first["samples"]).all()
    last = recorder.denoised[-1]
    if "noise_mask" in first:  # the host puts the latent back where the mask hides it, in the x0 too
        mask, latent = first["noise_mask"], settings["latent_image"]["samples"].to(tiny.model.load_device)
        last = last * mask + tiny.model.model.process_latent_in(latent).cpu() * (1 - mask)
    last = tiny.model.model.process_latent_out(last)
    assert torch.equal(first_x0["samples"], last), "denoised_output is not the model's last x0"
    return first, recorder.rows


@pytest.mark.parametrize("name", FAMILIES)
class TestFamily:
    def test_txt2img(self, host, zoo, name):
        out, rows = run(host, zoo[name])
        assert rows == [1] * 4
        close(out, stock(host, zoo[name], steps=4, cfg=1.0))

    @pytest.mark.parametrize(("denoise", "evaluations"), [(0.3, 2), (0.6, 3), (1.0, 4)])
    def test_img2img(self, host, zoo, name, denoise, evaluations):
        """Enters at timesteps 300, 600 and 999 and keeps 249, 499 and 749."""
        latent = zoo[name].latent(seed=3)
        before = fingerprint(latent)
        out, rows = run(host, zoo[name], denoise=denoise, latent_image=latent)
        assert rows == [1] * evaluations
        assert fingerprint(latent) == before
        sigmas, *_ = host.call("PCMPhaseScheduler", model=zoo[name].model, steps=4, denoise=denoise)
        (euler,) = host.call("KSamplerSelect", sampler_name="euler")
        close(out, advanced(host, zoo[name], sigmas, cfg=1.0, latent=latent, sampler=euler)[0])

    def test_inpaint(self, host, zoo, name):
        tiny = zoo[name]
        latent = {**tiny.latent(seed=3), "noise_mask": half_mask(tiny)}
        out, rows = run(host, tiny, latent_image=latent)
        assert rows == [1] * 4
        close(out, stock(host, tiny, steps=4, cfg=1.0, latent=latent))
        width = latent["samples"].shape[-1] // 2
        kept = out["samples"][..., :width] - latent["samples"][..., :width]
        assert kept.abs().max() < 1e-4 * latent["samples"].abs().max()
        assert (out["samples"] - latent["samples"])[..., width:].abs().max() > 0.1

    def test_second_pass(self, host, zoo, name):
        """High-res fix: the first result, twice as large, from the middle edge on."""
        tiny = zoo[name]
        first, _ = run(host, tiny)
        large = {"samples": first["samples"].repeat_interleave(2, -1).repeat_interleave(2, -2)}
        out, rows = run(host, tiny, denoise=0.5, latent_image=large)
        assert rows == [1] * 2  # 499, 249
        assert out["samples"].shape == large["samples"].shape
        close(out, stock(host, tiny, steps=2, cfg=1.0, denoise=0.5, latent=large))

    def test_split_sigmas(self, host, zoo, name):
        tiny = zoo[name]
        sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=4)
        before = fingerprint(sigmas)
        (high, low) = host.call("SplitSigmas", sigmas=sigmas, step=2)
        whole, _ = run(host, tiny, spacing="trailing")
        (half, _) = advanced(host, tiny, high, cfg=1.0)
        (noise,) = host.call("DisableNoise")
        (guider,) = host.call("BasicGuider", model=tiny.model, conditioning=tiny.positive)
        (sampler,) = host.call("SamplerPCM")
        (out, _) = host.call(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=low, latent_image=half
        )
        close(out, whole)
        close(out, stock(host, tiny, steps=4, cfg=1.0))
        close(half, pcm(host, tiny, steps=4, cfg="1", end_step=2, return_with_leftover_noise=True)[0])
        assert fingerprint(sigmas) == before

    def test_cfg_per_phase(self, host, zoo, name):
        out, rows = run(host, zoo[name], cfg="3, 1, 1, 2")
        assert rows == [2, 1, 1, 2]
        plain, _ = run(host, zoo[name])
        assert not torch.allclose(out["samples"], plain["samples"], atol=1e-3)

    @pytest.mark.parametrize("determinism", [0.0, 0.5, 1.0])
    def test_stochasticity(self, host, zoo, name, determinism):
        tiny = zoo[name]
        out, rows = run(host, tiny, determinism=determinism)
        assert rows == [1] * 4
        plain, _ = run(host, tiny)
        assert torch.equal(out["samples"], plain["samples"]) == (determinism == 1)

    @hosts_noise
    def test_r_0_is_the_hosts_lcm(self, host, zoo, name):
        (own, _) = pcm(host, zoo[name], steps=4, cfg="1", determinism=0.0)
        close(own, stock(host, zoo[name], steps=4, cfg=1.0, sampler="lcm"), 2e-5)


class TestNoise:
    @hosts_noise
    @pytest.mark.parametrize("name", ["eps", "v", "sd3", "wan"])
    def test_r_0_is_the_hosts_lcm_in_a_batch(self, host, zoo, name):
        tiny = zoo[name]
        (own, _) = pcm(host, tiny, steps=4, cfg="2", determinism=0.0, latent_image=tiny.latent(batch=3))
        close(own, stock(host, tiny, steps=4, cfg=2.0, sampler="lcm", latent=tiny.latent(batch=3)), 2e-5)

    @hosts_noise
    def test_noise_scale_of_a_flow_model_is_the_hosts(self, host, zoo):
        tiny = zoo["sd3"]
        sampling = type(tiny.model.get_model_object("model_sampling"))(tiny.model.model.model_config)
        if not hasattr(sampling, "set_noise_scale"):
            pytest.skip("this host has no noise_scale")
        sampling.set_noise_scale(8.0)
        scaled = tiny.model.clone()
        scaled.add_object_patch("model_sampling", sampling)
        (own, _) = pcm(host, tiny, model=scaled, steps=4, cfg="1", determinism=0.0)
        (lcm,) = host.call("KSamplerSelect", sampler_name="lcm")
        sigmas, *_ = host.call("PCMPhaseScheduler", model=scaled, steps=4)
        close(own, advanced(host, tiny, sigmas, cfg=1.0, model=scaled, sampler=lcm)[0], 2e-5)
        (plain, _) = pcm(host, tiny, steps=4, cfg="1", determinism=0.0)
        assert not torch.allclose(own["samples"], plain["samples"], atol=1e-2)

    @pytest.mark.parametrize("settings", [{"determinism": 0.0}, {"determinism": 0.5}, {"gamma": 1.0}, {"gamma": 0.3}])
    @pytest.mark.parametrize("name", ["eps", "sd3"])
    def test_the_last_step_is_noise_free(self, host, zoo, name, settings):
        """One step is the last step, also where it stops above sigma 0."""
        (plain, _) = pcm(host, zoo[name], steps=1, cfg="1")
        assert torch.equal(pcm(host, zoo[name], steps=1, cfg="1", **settings)[0]["samples"], plain["samples"])
        stop = {"steps": 4, "cfg": "1", "end_step": 1, "return_with_leftover_noise": True}
        (plain, _) = pcm(host, zoo[name], **stop)
        assert torch.equal(pcm(host, zoo[name], **stop, **settings)[0]["samples"], plain["samples"])

    @pytest.mark.parametrize("name", ["eps", "sd3"])
    def test_gamma_0_and_r_1_are_the_deterministic_bits(self, host, zoo, name):
        results = [
            pcm(host, zoo[name], steps=4, cfg="1", **settings)[0]["samples"]
            for settings in ({}, {"determinism": 1.0}, {"gamma": 0.0})
        ]
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])

    def test_noise_comes_from_the_seed_alone(self, host, zoo):
        settings = {"steps": 4, "cfg": "1", "determinism": 0.5}
        (first, _) = pcm(host, zoo["eps"], **settings)
        torch.rand(7)
        (again, _) = pcm(host, zoo["eps"], **settings)
        assert torch.equal(first["samples"], again["samples"])
        (other, _) = pcm(host, zoo["eps"], **settings, seed=8)
        assert not torch.allclose(first["samples"], other["samples"], atol=1e-2)

    def test_tcd_gamma_is_eq_44_at_that_timestep(self, host, zoo):
        """pcm.md 3.2: gamma .3 from 759 goes to 531: r = .177754; one value per step."""
        tiny, sampling = zoo["eps"], core_sampling
        sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=4, spacing="tcd")
        table = nodes_host.sigma_table(tiny.model)
        rates = sampling.gamma_to_determinism(0.3, sigmas, table)
        assert rates == pytest.approx((0.177754, 0.372067, 0.536617, 1.0), abs=2e-6)


class TestInterrupt:
    @pytest.mark.parametrize("step", [1, 2, 3, 4])
    @pytest.mark.parametrize("name", ["eps", "sd3"])
    def test_leaves_weights_and_the_next_run_alone(self, host, zoo, name, step):
        """Also with a LoRA-like weight patch on the model that is interrupted."""
        import comfy.model_management

        tiny = zoo[name]
        patched = tiny.model.clone()
        matrices = {key: value for key, value in tiny.model.model.state_dict().items() if value.ndim == 2}
        patched.add_patches({key: ("diff", (value * 0.5,)) for key, value in matrices.items()})
        settings = {"steps": 4, "cfg": "1"}
        with_patch, _ = pcm(host, tiny, model=patched, **settings)
        base, _ = pcm(host, tiny, **settings)
        assert not torch.allclose(base["samples"], with_patch["samples"], atol=1e-2)
        weights = fingerprint(dict(tiny.model.model.state_dict()))
        calls = []

        def interrupt(args):
            calls.append(0)
            if len(calls) == step:
                comfy.model_management.interrupt_current_processing(True)
            return args["denoised"]

        stopped = patched.clone()
        stopped.set_model_sampler_post_cfg_function(interrupt)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            pcm(host, tiny, model=stopped, **{**settings, "steps": 5})
        assert len(calls) == step
        assert torch.equal(pcm(host, tiny, **settings)[0]["samples"], base["samples"])
        assert fingerprint(dict(tiny.model.model.state_dict())) == weights
        assert torch.equal(pcm(host, tiny, model=patched, **settings)[0]["samples"], with_patch["samples"])
