"""PCM Sampler and SamplerPCM on the host's sampling path, against its stock nodes."""

from __future__ import annotations

import math

import pytest
import torch
from devices import hosts_noise
from tiny import fingerprint

from pcm_core.profiles import PCMProfile
from phased_consistency.nodes import host as nodes_host

FAMILIES = ["eps", "v", "edm", "sd3", "flux", "wan", "hunyuan_video", "ltxv"]


def pcm(host, tiny, **settings):
    """(latent, denoised_output) of PCMSampler."""
    inputs = {"model": tiny.model, "positive": tiny.positive, "negative": tiny.negative, "latent_image": tiny.latent()}
    return host.call("PCMSampler", **{**inputs, "seed": 7, **settings})[:2]


def advanced(host, tiny, sigmas, *, cfg, seed=7, latent=None, model=None, sampler=None):
    """(output, denoised_output) of SamplerCustomAdvanced, with SamplerPCM unless told otherwise."""
    model = model or tiny.model
    (noise,) = host.call("RandomNoise", noise_seed=seed)
    (guider,) = host.call("CFGGuider", model=model, positive=tiny.positive, negative=tiny.negative, cfg=cfg)
    (sampler,) = (sampler,) if sampler else host.call("SamplerPCM")
    latent = latent or tiny.latent()
    return host.call(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )


def stock(host, tiny, *, steps, cfg, seed=7, denoise=1.0, latent=None, sampler="euler", scheduler="simple"):
    (out,) = host.call(
        "KSampler", model=tiny.model, seed=seed, steps=steps, cfg=cfg, sampler_name=sampler, scheduler=scheduler,
        positive=tiny.positive, negative=tiny.negative, latent_image=latent or tiny.latent(), denoise=denoise,
    )  # fmt: skip
    return out


def with_profile(host, tiny, **values):
    profile = PCMProfile(**{"method": "PCM", **values})
    return nodes_host.attach_profile(tiny.model, profile)


class Recorder:
    """A clone of a model that remembers each call: rows in the batch, and the x0 after guidance, on the CPU.

    The clone does not refer to the recorder: a host with a GPU fails where the collector frees a ring of models while
    the host makes room for the next.
    """

    def __init__(self, model):
        rows, sigmas, denoised = self.rows, self.sigmas, self.denoised = [], [], []

        def call(apply, options):
            rows.append(len(options["cond_or_uncond"]))
            return apply(options["input"], options["timestep"], **options["c"])

        def keep(args):
            sigmas.append(float(args["sigma"].flatten()[0]))
            denoised.append(args["denoised"].clone().cpu())
            return args["denoised"]

        self.model = model.clone()
        self.model.set_model_unet_function_wrapper(call)
        self.model.set_model_sampler_post_cfg_function(keep)


def close(a, b, tolerance=1e-5):
    scale = float(b["samples"].abs().max())
    torch.testing.assert_close(a["samples"], b["samples"], rtol=0, atol=tolerance * max(scale, 1))


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_three_paths_give_one_latent(host, zoo, name, phases):
    tiny = zoo[name]
    cfg = 1.0 if name in ("flux", "hunyuan_video") else 3.0
    sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=phases, spacing="trailing")
    own, own_x0 = pcm(host, tiny, steps=phases, spacing="trailing", cfg=str(cfg))
    via, via_x0 = advanced(host, tiny, sigmas, cfg=cfg)
    assert torch.equal(own["samples"], via["samples"])
    assert torch.equal(own_x0["samples"], via_x0["samples"])
    # Euler adds and takes away sigma_max = 80 of noise in float32; the jump to sigma 0 loses nothing.
    close(own, stock(host, tiny, steps=phases, cfg=cfg), 5e-5 if name == "edm" else 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_same_seed_same_bits_and_another_seed_another_picture(host, zoo, name):
    first, again, other = (pcm(host, zoo[name], steps=4, cfg="1", seed=seed)[0]["samples"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def row_by_row(apply, options):
    """Run the network on one row at a time: its matrix kernels round differently for different batch sizes."""
    rows = len(options["input"])

    def pick(value, i):
        return value[i : i + 1] if torch.is_tensor(value) and len(value) == rows else value

    outputs = [
        apply(
            pick(options["input"], i), pick(options["timestep"], i), **{k: pick(v, i) for k, v in options["c"].items()}
        )
        for i in range(rows)
    ]
    return torch.cat(outputs)


@pytest.mark.parametrize("name", ["eps", "v", "sd3", "wan"])
def test_item_3_of_a_batch_is_the_same_alone_with_batch_index(host, zoo, name):
    tiny = zoo[name]
    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(row_by_row)
    settings = {"steps": 4, "cfg": "2"}
    batch = {**tiny.latent(batch=4), "batch_index": [0, 1, 2, 3]}
    alone = {**tiny.latent(), "batch_index": [2]}
    whole, single = (pcm(host, tiny, model=model, latent_image=it, **settings)[0]["samples"] for it in (batch, alone))
    assert torch.equal(whole[2:3], single)
    (plain, _) = pcm(host, tiny, latent_image=batch, **settings)
    close({"samples": plain["samples"][2:3]}, {"samples": single})


@pytest.mark.parametrize("name", FAMILIES)
def test_denoised_output_is_the_models_last_x0(host, zoo, name):
    tiny = zoo[name]
    recorder = Recorder(tiny.model)
    (out, x0) = pcm(host, tiny, model=recorder.model, steps=4, cfg="1", end_step=3, return_with_leftover_noise=True)
    assert len(recorder.denoised) == 3
    expected = tiny.model.model.process_latent_out(recorder.denoised[-1])
    assert torch.equal(x0["samples"], expected)
    assert not torch.allclose(out["samples"], expected, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"determinism": 0.0}, {"gamma": 0.5}, {"terminal": "alpha0"}])
@pytest.mark.parametrize("name", ["eps", "sd3"])
def test_nothing_the_caller_owns_is_written(host, zoo, name, settings):
    tiny = zoo[name]
    latent = {**tiny.latent(batch=2, seed=1), "noise_mask": torch.ones(1, 8, 8).tril(), "batch_index": [4, 1]}
    inputs = {"latent_image": latent, "positive": tiny.positive, "negative": tiny.negative}
    before = fingerprint(inputs)
    pcm(host, tiny, steps=4, cfg="2", denoise=0.7, **inputs, **settings)
    assert fingerprint(inputs) == before
    sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=4)
    (before, latent_before) = fingerprint(sigmas), fingerprint(latent)
    advanced(host, tiny, sigmas, cfg=2.0, latent=latent)
    assert (fingerprint(sigmas), fingerprint(latent)) == (before, latent_before)


class FixedNoise:
    """A NOISE that hands out a tensor of its owner, as packs with noise of their own do."""

    def __init__(self, noise):
        self.seed, self.noise = 7, noise

    def generate_noise(self, latent):
        return self.noise


@pytest.mark.parametrize("determinism", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("name", ["eps", "v", "edm", "sd3", "flux", "wan", "ltxv"])
def test_noise_and_sigmas_are_not_written(host, zoo, name, determinism):
    tiny = zoo[name]
    latent = tiny.latent(seed=1)
    noise = FixedNoise(torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(2)))
    sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=3, denoise=0.8)
    (guider,) = host.call("PCMGuider", model=tiny.model, positive=tiny.positive, negative=tiny.negative, cfg="2, 1, 1")
    (sampler,) = host.call("SamplerPCM", determinism=determinism)
    inputs = [noise.noise, sigmas, latent, tiny.positive, tiny.negative]
    before = fingerprint(inputs)
    results = [
        host.call(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
        )
        for _ in range(2)
    ]
    assert fingerprint(inputs) == before
    assert torch.equal(results[0][0]["samples"], results[1][0]["samples"])
    assert torch.equal(results[0][1]["samples"], results[1][1]["samples"])


@pytest.mark.parametrize("name", ["eps", "sd3", "wan", "ltx2"])
def test_denoise_zero_returns_the_latent(host, zoo, name):
    tiny = zoo[name]
    recorder = Recorder(tiny.model)
    latent = tiny.latent(seed=5)
    (out, x0) = pcm(host, tiny, model=recorder.model, denoise=0.0, latent_image=latent)
    assert fingerprint(out["samples"]) == fingerprint(x0["samples"]) == fingerprint(latent["samples"])
    assert recorder.rows == []


def test_nested_video_and_audio(host, zoo):
    tiny = zoo["ltx2"]
    (out, x0) = pcm(host, tiny, steps=2, cfg="1")
    sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=2)
    (euler,) = host.call("KSamplerSelect", sampler_name="euler")
    (expected, _) = advanced(host, tiny, sigmas, cfg=1.0, sampler=euler)
    parts = nodes_host.parts
    assert [tuple(p.shape) for p in parts(out["samples"])] == [(1, 128, 3, 4, 4), (1, 8, 10, 16)]
    for mine, theirs, last in zip(parts(out["samples"]), parts(expected["samples"]), parts(x0["samples"]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(mine, last, rtol=0, atol=1e-6)


def test_an_empty_latent_of_other_channels_is_fixed_as_the_host_does(host, zoo):
    latent = {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}
    (out, x0) = pcm(host, zoo["sd3"], steps=2, cfg="1", latent_image=latent)
    assert out["samples"].shape == x0["samples"].shape == (1, 16, 8, 8)
    assert set(out) == set(x0) == {"samples"}
    close(out, stock(host, zoo["sd3"], steps=2, cfg=1.0))
    (flat, _) = pcm(host, zoo["wan"], steps=1, cfg="1", latent_image={"samples": torch.zeros(1, 16, 8, 8)})
    assert flat["samples"].shape == (1, 16, 1, 8, 8)


@pytest.mark.parametrize("name", ["eps", "sd3"])
def test_the_mask_keeps_what_it_hides(host, zoo, name):
    tiny = zoo[name]
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    latent = {**tiny.latent(seed=2), "noise_mask": mask}
    (out, _) = pcm(host, tiny, steps=4, cfg="1", latent_image=latent)
    close(out, stock(host, tiny, steps=4, cfg=1.0, latent=latent))
    torch.testing.assert_close(out["samples"][..., :4], latent["samples"][..., :4], rtol=0, atol=1e-5)
    assert not torch.allclose(out["samples"][..., 4:], latent["samples"][..., 4:], atol=0.1)
    assert torch.equal(out["noise_mask"], mask)


@pytest.mark.parametrize("settings", [{"determinism": 0.0}, {"gamma": 0.5}, {"terminal": "alpha0"}, {"denoise": 0.4}])
@pytest.mark.parametrize("name", ["eps", "v", "sd3", "wan"])
def test_denoised_output_on_every_other_path(host, zoo, name, settings):
    """Also through SamplerCustomAdvanced, and with a schedule cut in two."""
    tiny = zoo[name]
    out = tiny.model.model.process_latent_out
    recorder = Recorder(tiny.model)
    (_, x0) = pcm(host, tiny, model=recorder.model, steps=4, cfg="2", latent_image=tiny.latent(seed=1), **settings)
    assert torch.equal(x0["samples"], out(recorder.denoised[-1]))
    schedule = {key: settings[key] for key in ("terminal", "denoise") if key in settings}
    noise = {key: settings[key] for key in ("determinism", "gamma") if key in settings}
    sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=4, **schedule)
    (sampler,) = host.call("SamplerPCM", **noise)
    for part in host.call("SplitSigmas", sigmas=sigmas, step=1):
        recorder = Recorder(tiny.model)
        (_, x0) = advanced(host, tiny, part, cfg=2.0, model=recorder.model, sampler=sampler)
        assert torch.equal(x0["samples"], out(recorder.denoised[-1])) and len(recorder.denoised) == len(part) - 1


class TestProfile:
    def test_what_was_overridden_is_said_once(self, host, zoo, caplog):
        model = with_profile(host, zoo["eps"], phases=4, steps=4)
        pcm(host, zoo["eps"], model=model, steps=8, spacing="aligned")
        notes = [record.message for record in caplog.records if "PCM Sampler" in record.message]
        assert sorted(notes) == [
            "PCM Sampler: 8 steps were asked of a 4-phase model; ran its 4 phase jumps.",
            "PCM Sampler: spacing is aligned where the LoRA says trailing.",
        ]
        caplog.clear()
        pcm(host, zoo["eps"], model=model, end_step=2)  # part of the LoRA's own schedule is nothing to report
        assert not [record for record in caplog.records if "PCM Sampler" in record.message]
        pcm(host, zoo["eps"], model=model, start_step=2, cfg="3")
        assert [record.message for record in caplog.records if "PCM Sampler" in record.message] == [
            "PCM Sampler: cfg is 3, and PCM is made for 1: it burns and takes longer."
        ]
        caplog.clear()
        pcm(host, zoo["eps"], model=model, steps=8, spend_extra_steps=True, cfg="3")
        notes = [record.message for record in caplog.records if "PCM Sampler" in record.message]
        assert len(notes) == 2 and "cfg is 3" in notes[0] and "8 steps" in notes[1]

    def test_everything_on_auto_comes_from_the_lora(self, host, zoo):
        tiny = zoo["eps"]
        model = with_profile(host, tiny, phases=8, steps=8, cfg=1.0, spacing="aligned", grid=50)
        recorder = Recorder(model)
        pcm(host, tiny, model=recorder.model)
        assert recorder.rows == [1] * 8  # cfg exactly 1: no negative pass
        sampling = tiny.model.get_model_object("model_sampling")
        assert sampling.timestep(torch.tensor(recorder.sigmas)).tolist() == [999, 859, 739, 619, 499, 359, 239, 119]

    def test_cfg_above_1_runs_the_negative(self, host, zoo):
        recorder = Recorder(with_profile(host, zoo["eps"], phases=4, cfg=3.0))
        (auto, _) = pcm(host, zoo["eps"], model=recorder.model)
        assert recorder.rows == [2] * 4
        close(auto, stock(host, zoo["eps"], steps=4, cfg=3.0))

    @hosts_noise
    def test_an_lcm_like_file_renoises(self, host, zoo):
        tiny = zoo["eps"]
        model = with_profile(host, tiny, method="LCM", sampling_class="renoised", determinism=0.0, steps=4)
        (auto, _) = pcm(host, tiny, model=model)
        close(auto, stock(host, tiny, steps=4, cfg=1.0, sampler="lcm"))
        (deterministic, _) = pcm(host, tiny, model=model, determinism=1.0)
        close(deterministic, stock(host, tiny, steps=4, cfg=1.0))

    def test_gamma_of_a_profile_is_used_by_both_nodes(self, host, zoo):
        tiny = zoo["eps"]
        model = with_profile(host, tiny, method="TCD", gamma=0.3, steps=4, spacing="tcd")
        (auto, _) = pcm(host, tiny, model=model)
        (explicit, _) = pcm(host, tiny, steps=4, spacing="tcd", gamma=0.3, cfg="1")
        sigmas, *_ = host.call("PCMPhaseScheduler", model=model)
        (via, _) = advanced(host, tiny, sigmas, cfg=1.0, model=model)
        assert torch.equal(auto["samples"], explicit["samples"])
        assert torch.equal(auto["samples"], via["samples"])

    def test_files_that_need_another_sampler_are_refused(self, host, zoo):
        model = with_profile(host, zoo["eps"], method="Odd", sampling_class="unsupported", note="Use the Odd nodes.")
        with pytest.raises(ValueError, match=r"method Odd.*Use the Odd nodes\."):
            pcm(host, zoo["eps"], model=model)


class TestAlpha0:
    """The last jump stops at timestep 0 (pcm.md 1.6, 9.1)."""

    def euler(self, host, tiny, sigmas):
        (euler,) = host.call("KSamplerSelect", sampler_name="euler")
        return advanced(host, tiny, sigmas, cfg=1.0, sampler=euler)[0]

    @pytest.mark.parametrize("name", ["eps", "v"])
    def test_is_scaled_to_variance_preserving(self, host, zoo, name):
        """0.99957491 is the square root of alphas_cumprod[0] of SD, so the latent equals diffusers' DDIM."""
        tiny = zoo[name]
        sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=4, terminal="alpha0")
        assert float(sigmas[-1]) == pytest.approx(0.0291672, rel=1e-5)
        expected = {"samples": self.euler(host, tiny, sigmas)["samples"] * 0.99957491}
        (own, _) = pcm(host, tiny, steps=4, terminal="alpha0", cfg="1")
        close(own, expected, 2e-6)
        close(advanced(host, tiny, sigmas, cfg=1.0)[0], expected, 2e-6)

    def test_tables_of_10000_entries_end_at_their_tenth(self, host, zoo):
        """Stable Cascade's table has ten entries for each timestep."""
        from dataclasses import replace

        (model,) = host.call("ModelSamplingStableCascade", model=zoo["eps"].model, shift=2.0)
        tiny, table = replace(zoo["eps"], model=model), nodes_host.sigma_table(model).sigmas
        sigmas, *_ = host.call("PCMPhaseScheduler", model=model, steps=4, terminal="alpha0")
        assert len(table) == 10000 and float(sigmas[-1]) == table[9]
        (own, _) = pcm(host, tiny, steps=4, terminal="alpha0", cfg="1")
        expected = self.euler(host, tiny, sigmas)["samples"] * (1 + table[9] ** 2) ** -0.5
        close(own, {"samples": expected}, 2e-6)

    def test_is_left_to_the_host_on_flow_models(self, host, zoo):
        tiny = zoo["sd3"]
        sigmas, *_ = host.call("PCMPhaseScheduler", model=tiny.model, steps=4, terminal="alpha0")
        (own, _) = pcm(host, tiny, steps=4, terminal="alpha0", cfg="1")
        close(own, self.euler(host, tiny, sigmas))


class TestRanges:
    """start_step, end_step and leftover noise, as KSamplerAdvanced has them."""

    def stock(self, host, tiny, latent, start, end, *, add_noise, leftover):
        (out,) = host.call(
            "KSamplerAdvanced", model=tiny.model, add_noise=add_noise, noise_seed=7, steps=4, cfg=2.0,
            sampler_name="euler", scheduler="simple", positive=tiny.positive, negative=tiny.negative,
            latent_image=latent, start_at_step=start, end_at_step=end, return_with_leftover_noise=leftover,
        )  # fmt: skip
        return out

    @pytest.mark.parametrize("name", ["eps", "v", "sd3", "wan"])
    def test_two_halves_make_the_whole(self, host, zoo, name):
        tiny = zoo[name]
        (whole, _) = pcm(host, tiny, steps=4, cfg="2")
        (half, _) = pcm(host, tiny, steps=4, cfg="2", end_step=2, return_with_leftover_noise=True)
        close(half, self.stock(host, tiny, tiny.latent(), 0, 2, add_noise="enable", leftover="enable"))
        (rest, _) = pcm(host, tiny, steps=4, cfg="2", start_step=2, add_noise=False, latent_image=half)
        close(rest, whole)
        close(rest, self.stock(host, tiny, half, 2, 10000, add_noise="disable", leftover="disable"))

    def test_stopping_early_without_leftover_noise_finishes_there(self, host, zoo):
        tiny = zoo["eps"]
        (out, _) = pcm(host, tiny, steps=4, cfg="2", end_step=2)
        close(out, self.stock(host, tiny, tiny.latent(), 0, 2, add_noise="enable", leftover="disable"))

    def test_starting_after_the_end_returns_the_latent(self, host, zoo):
        latent = zoo["eps"].latent(seed=3)
        (out, _) = pcm(host, zoo["eps"], steps=4, start_step=4, latent_image=latent)
        assert torch.equal(out["samples"], latent["samples"])


BAD = [
    ({"cfg": "nan"}, 'cfg contains "nan"'),
    ({"cfg": "-1"}, 'cfg contains "-1"'),
    ({"cfg": "5, 1"}, "cfg has 2 values for a model of 4 phases"),
    ({"cfg": "high"}, 'cfg contains "high"'),
    ({"denoise": math.nan}, "denoise is nan"),
    ({"determinism": math.nan}, "determinism is nan"),
    ({"determinism": 1.5}, "determinism is 1.5"),
    ({"gamma": -0.5}, "gamma is -0.5"),
    ({"gamma": 1.5}, "gamma is 1.5"),
    ({"gamma": math.nan}, "gamma is nan"),
    ({"cfg": "inf"}, 'cfg contains "inf"'),
    ({"cfg": "5, 1, 1, 1, 1"}, "cfg has 5 values for a model of 4 phases"),
    ({"gamma": 0.3, "determinism": 0.5}, "determinism is 0.5 and gamma is 0.3"),
    ({"steps": 10000}, "is 10000"),
    ({"start_step": 3, "end_step": 3}, "start_step is 3 and end_step is 3"),
    ({"start_step": -1}, "start_step is -1"),
    ({"latent_image": {"samples": torch.zeros(0, 4, 8, 8)}}, r"latent is empty.*\(0, 4, 8, 8\)"),
    ({"latent_image": {"samples": torch.zeros(1, 4, 0, 8)}}, r"latent is empty.*\(1, 4, 0, 8\)"),
]


@pytest.mark.parametrize(("settings", "found"), BAD)
def test_bad_settings_are_refused(host, zoo, settings, found):
    with pytest.raises(ValueError, match=found) as error:
        pcm(host, zoo["eps"], **{"steps": 4, **settings})
    assert type(error.value).__name__ == "PCMError"
    assert "Expected:" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"determinism": -0.5}, "determinism is -0.5"),
        ({"gamma": 0.3, "determinism": 0.5}, "determinism is 0.5 and gamma is 0.3"),
    ],
)
def test_sampler_pcm_refuses_bad_noise_before_anything_runs(host, settings, found):
    with pytest.raises(ValueError, match=rf"{found}.*Expected: .*(Use|Set)"):
        host.call("SamplerPCM", **settings)


def test_models_pcm_cannot_serve_are_refused_by_name(host, zoo):
    for call in (pcm, lambda h, t: advanced(h, t, torch.tensor([1.0, 0.0]), cfg=1.0)):
        with pytest.raises(ValueError, match="CogVideoX"):
            call(host, zoo["cogvideo"])


@pytest.mark.parametrize("levels", [[1.0], [5.0, 6.0, 0.0], [5.0, 5.0, 0.0], [5.0, 0.0, -1.0], [math.nan, 1.0, 0.0]])
def test_schedules_that_do_not_descend_are_refused(host, zoo, levels):
    with pytest.raises(ValueError, match=r"Expected: (finite sigmas|at least two)"):
        advanced(host, zoo["eps"], torch.tensor(levels), cfg=1.0)


def test_an_empty_schedule_returns_the_latent(host, zoo):
    latent = zoo["eps"].latent(seed=4)
    (out, _) = advanced(host, zoo["eps"], torch.zeros(0), cfg=1.0, latent=latent)
    assert torch.equal(out["samples"], latent["samples"])
