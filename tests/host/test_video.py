"""PCM Video Sampler on tiny video models through the host's own loaders."""

from __future__ import annotations

import math

import pytest
import torch

from pcm_core import errors
from pcm_core import video as core_video
from pcm_core.profiles import PCMProfile
from phased_consistency.nodes import host as nodes_host
from phased_consistency.nodes.sampling import plan as planning

FAMILIES = ("eps", "sd15", "wan", "wan22", "hunyuan_video", "ltxv", "ltx2", "mochi")
STEPS = {"eps": 4, "sd15": 4, "wan": 4, "wan22": 4, "hunyuan_video": 6, "ltxv": 7, "ltx2": 8, "mochi": 8}
# Where denoise 0.5 enters: the highest listed sigma at or below the noise level of the middle of the path.
ENTRY = {
    "eps": 1.612886, "sd15": 1.612886, "wan": 0.833333, "wan22": 0.833333, "hunyuan_video": 0.944444, "ltxv": 0.9094,
    "ltx2": 0.909375, "mochi": 0.857143,
}  # fmt: skip
IMAGES = ("sd3", "flux")


class Lab:
    """The tiny models, and the node with the defaults of its widgets."""

    def __init__(self, host, zoo):
        self.host, self.zoo = host, zoo
        self.api, self.plan, self.errors = nodes_host, planning, errors
        self.extra = {}

    def __getitem__(self, name):
        import tiny_video

        if name in tiny_video.FACTORIES:
            if name not in self.extra:
                self.extra[name] = tiny_video.FACTORIES[name](self.zoo.folder)
            return self.extra[name]
        return self.zoo[name]

    def latent(self, name, seed=None):
        return self[name].latent(3 if name in ("eps", "sd15", "linear_beta") else 1, seed)

    def run(self, name, latent=None, model=None, **inputs):
        tiny = self[name]
        inputs = {"positive": tiny.positive, "negative": tiny.negative, **inputs}
        latent = self.latent(name) if latent is None else latent
        return self.host.call("PCMVideoSampler", model=model or tiny.model, latent_image=latent, **inputs)[:2]

    def parts(self, latent):
        return self.api.parts(latent["samples"])

    def watch(self, model):
        """A clone of the model, and the list of (sigma, batch, keyword arguments) it is evaluated at."""
        calls, clone = [], model.clone()

        def wrapper(executor, x, t, *args, **kwargs):
            calls.append((float(t[0]), x, kwargs))
            return executor(x, t, *args, **kwargs)

        clone.add_wrapper_with_key("apply_model", "test", wrapper)
        return clone, calls

    def profile(self, **values):
        return PCMProfile(**{"method": "PCM", "phases": 4, **values})

    def close(self, one, other, **tolerance):
        for a, b in zip(self.parts(one), self.parts(other), strict=True):
            torch.testing.assert_close(a, b, **tolerance)

    def same(self, one, other):
        return all(torch.equal(a, b) for a, b in zip(self.parts(one), self.parts(other), strict=True))


@pytest.fixture(scope="module")
def lab(host, zoo):
    return Lab(host, zoo)


def sigmas_of(calls):
    """Distinct sigmas in the order of evaluation."""
    return list(dict.fromkeys(round(sigma, 6) for sigma, *_ in calls))


def evaluations(calls, batch=1):
    return sum(x.shape[0] for _, x, _ in calls) // batch


# Every video model


@pytest.mark.parametrize("name", FAMILIES)
def test_text_to_video(lab, name):
    import tiny

    latent = lab.latent(name)
    model, calls = lab.watch(lab[name].model)
    before = tiny.fingerprint(latent["samples"]), lab.api.flow_shift(lab[name].model)
    out, report = lab.run(name, latent, model, seed=3, cfg="1")
    again, _ = lab.run(name, latent, seed=3, cfg="1")
    assert [part.shape for part in lab.parts(out)] == [part.shape for part in lab.parts(latent)]
    assert all(part.isfinite().all() and part.std() > 0.01 for part in lab.parts(out))
    assert evaluations(calls, lab.parts(latent)[0].shape[0]) == len(sigmas_of(calls)) == STEPS[name]
    assert lab.same(out, again)
    assert not lab.same(out, lab.run(name, latent, seed=4, cfg="1")[0])
    assert before == (tiny.fingerprint(latent["samples"]), lab.api.flow_shift(lab[name].model))
    assert f"{STEPS[name]} steps" in report


@pytest.mark.parametrize("name", FAMILIES)
def test_video_to_video(lab, name):
    latent = lab.latent(name, seed=7)
    model, calls = lab.watch(lab[name].model)
    inputs = {"seed": 3, "cfg": "1", "denoise": 0.5}
    out, _ = lab.run(name, latent, model, **inputs)
    assert [part.shape for part in lab.parts(out)] == [part.shape for part in lab.parts(latent)]
    assert all(part.isfinite().all() for part in lab.parts(out))
    assert 1 <= len(sigmas_of(calls)) < STEPS[name]
    assert calls[0][0] == pytest.approx(ENTRY[name], rel=1e-4)
    assert lab.same(out, lab.run(name, latent, **inputs)[0])
    assert not lab.same(out, lab.run(name, lab.latent(name, seed=8), **inputs)[0])


@pytest.mark.parametrize("name", ["sd15", "wan", "ltx2"])
def test_denoise_0_returns_the_latent(lab, name):
    latent = lab.latent(name, seed=7)
    model, calls = lab.watch(lab[name].model)
    out, report = lab.run(name, latent, model, denoise=0.0)
    assert lab.same(out, latent) and not calls
    assert "denoise is 0" in report


def test_a_phased_lora_enters_inside_a_phase_and_keeps_its_edges(lab):
    """Without a fixed list denoise enters at its own timestep: entry 600 of the table, 0.601 on a model of shift 1."""
    model, calls = lab.watch(lab.api.with_flow_shift(lab["wan"].model, 1.0))
    model = lab.api.attach_profile(model, lab.profile(steps=4))
    lab.run("wan", lab.latent("wan", seed=7), model, denoise=0.6)
    assert sigmas_of(calls) == pytest.approx([0.601, 0.5, 0.25], abs=1e-5)


# Image to video


@pytest.mark.parametrize("name", ["wan_i2v", "hunyuan_i2v"])
def test_image_to_video_by_conditioning(lab, name):
    outputs = []
    for seed in (1, 1, 2):
        image = lab.latent(name, seed=seed)["samples"]
        mask = torch.ones(1, 1, *image.shape[2:])
        mask[:, :, :1] = 0
        values = {"concat_latent_image": image, "concat_mask": mask}
        conds = [[[text, {**more, **values}] for text, more in c] for c in (lab[name].positive, lab[name].negative)]
        outputs.append(lab.run(name, positive=conds[0], negative=conds[1], cfg="1.5")[0])
    assert outputs[0]["samples"].isfinite().all()
    assert lab.same(outputs[0], outputs[1])
    assert not lab.same(outputs[0], outputs[2])


@pytest.mark.parametrize(("length", "window"), [(9, 0), (25, 13)])
def test_image_to_video_by_the_hosts_own_node(lab, length, window):
    """Wan Image to Video with a real, narrow VAE: the start image changes the clip, whole and in context windows."""
    import tiny_video

    vae, tiny, outputs = tiny_video.wan_vae(), lab["wan_i2v"], []
    for seed in (1, 1, 2):
        image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed))
        positive, negative, latent = lab.host.call(
            "WanImageToVideo", positive=tiny.positive, negative=tiny.negative, vae=vae, width=64, height=64,
            length=length, batch_size=1, start_image=image,
        )  # fmt: skip
        inputs = {"positive": positive, "negative": negative, "window": window, "overlap": 4}
        outputs.append(lab.run("wan_i2v", latent, **inputs)[0])
    assert outputs[0]["samples"].shape == latent["samples"].shape == (1, 16, (length - 1) // 4 + 1, 8, 8)
    assert outputs[0]["samples"].isfinite().all()
    assert lab.same(outputs[0], outputs[1])
    assert not lab.same(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["wan", "wan22", "hunyuan_video", "ltxv", "mochi", "sd15"])
@pytest.mark.parametrize("determinism", [1.0, 0.0])
def test_masks_over_time_keep_what_they_keep(lab, name, determinism):
    import tiny_video

    latent = lab.latent(name, seed=7)
    samples = latent["samples"]
    if name == "sd15":
        latent["noise_mask"] = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
        kept, free = samples[:1], slice(1, None)
    else:
        latent["noise_mask"] = tiny_video.mask_frames(samples, 1)
        kept, free = samples[:, :, :1], (slice(None), slice(None), slice(1, None))
    out = lab.run(name, latent, cfg="1", determinism=determinism)[0]["samples"]
    torch.testing.assert_close(out[:1] if name == "sd15" else out[:, :, :1], kept, atol=1e-5, rtol=1e-4)
    assert (out[free] - samples[free]).abs().mean() > 0.1


def test_masks_of_nested_latents(lab):
    import tiny_video
    from comfy.nested_tensor import NestedTensor

    latent = lab.latent("ltx2", seed=7)
    picture, sound = lab.parts(latent)
    latent["noise_mask"] = NestedTensor([tiny_video.mask_frames(picture, 1), torch.zeros_like(sound)])
    video, audio = lab.parts(lab.run("ltx2", latent)[0])
    torch.testing.assert_close(video[:, :, :1], picture[:, :, :1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(audio, sound, atol=1e-4, rtol=1e-4)
    assert (video[:, :, 1:] - picture[:, :, 1:]).abs().mean() > 0.1


def test_image_conditioning_of_another_length_is_refused(lab):
    image = torch.zeros(1, 16, 5, 8, 8)
    conds = [[text, {**more, "concat_latent_image": image}] for text, more in lab["wan_i2v"].positive]
    with pytest.raises(lab.errors.PCMError, match=r"3 latent frames.*has 5"):
        lab.run("wan_i2v", positive=conds)


def test_shorter_image_conditioning_is_padded_where_the_host_does_that(lab):
    image = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name in ("hunyuan_i2v", "wan"):  # the second takes no images
        conds = [[text, {**more, "concat_latent_image": image}] for text, more in lab[name].positive]
        assert lab.run(name, positive=conds)[0]["samples"].isfinite().all()


# Presets, shift, guidance


@pytest.mark.parametrize(
    ("name", "sigmas", "shift", "cfg"),
    [("hunyuan_video", (1, 0.988372, 0.971429, 0.944444, 0.894737, 0.772727), 17, 1),
     ("mochi", (1, 0.983333, 0.966667, 0.95, 0.933333, 0.916667, 0.9, 0.666667), 6, 1.5)],
)  # fmt: skip
def test_fast_video_sigmas_reach_the_model(lab, name, sigmas, shift, cfg):
    model, calls = lab.watch(lab[name].model)
    _, report = lab.run(name, model=model)
    assert sigmas_of(calls) == pytest.approx(sigmas, abs=1e-4)
    assert f"shift {shift}" in report and f"cfg {cfg}" in report
    assert evaluations(calls) == len(sigmas) * (2 if cfg != 1 else 1)


def test_shift_is_the_linear_one_for_both_kinds_of_model(lab):
    for name, preset in (("wan", "LightX2V-Wan2.1"), ("ltxv", "auto")):
        own = lab.api.flow_shift(lab[name].model)
        model, calls = lab.watch(lab.api.attach_profile(lab[name].model, lab.profile(steps=4)))
        _, report = lab.run(name, model=model, shift=3.0, preset=preset)
        assert sigmas_of(calls) == pytest.approx([1, 0.9, 0.75, 0.5], abs=1e-5), name
        assert "shift 3" in report
        assert lab.api.flow_shift(lab[name].model) == own != 3


def test_wan_preset_equals_a_stock_graph(lab):
    """ModelSamplingSD3 5, euler, simple, 4 steps, cfg 1."""
    tiny = lab["wan"]
    (model,) = lab.host.call("ModelSamplingSD3", model=tiny.model, shift=5.0)
    (stock,) = lab.host.call(
        "KSampler", model=model, seed=11, steps=4, cfg=1.0, sampler_name="euler", scheduler="simple",
        positive=tiny.positive, negative=tiny.negative, latent_image=tiny.latent(), denoise=1.0,
    )  # fmt: skip
    lab.close(lab.run("wan", seed=11)[0], stock, atol=1e-5, rtol=1e-5)


def test_a_model_sampling_node_is_respected_unless_something_is_asked_for(lab):
    (model,) = lab.host.call("ModelSamplingSD3", model=lab["wan"].model, shift=8.0)
    model = lab.api.attach_profile(model, lab.profile(method="LightX2V-Wan2.1", phases=None, shift=5.0))
    for inputs, shift, said in (({}, 8, True), ({"shift": 5.0}, 5, False), ({"preset": "LightX2V-Wan2.1"}, 5, False)):
        watched, calls = lab.watch(model)
        _, report = lab.run("wan", model=watched, **inputs)
        u = torch.tensor([1, 0.75, 0.5, 0.25])
        assert sigmas_of(calls) == pytest.approx((shift * u / (1 + (shift - 1) * u)).tolist(), abs=1e-5)
        assert ("A ModelSampling node set shift 8" in report) == said
        assert ("came with shift 8 from another node; 5 of the preset" in report) == ("preset" in inputs)


def test_a_shift_that_moves_nothing_is_reported(lab):
    _, report = lab.run("mochi", shift=3.0)
    assert "fixed list" in report


def test_embedded_guidance(lab):
    tiny = lab["hunyuan_video"]
    own = [[text, {**values, "guidance": 2.0}] for text, values in tiny.positive]
    for positive, asked, seen in ((tiny.positive, -1.0, 6), (own, -1.0, 2), (own, 4.0, 4)):
        model, calls = lab.watch(tiny.model)
        lab.run("hunyuan_video", model=model, positive=positive, embedded_guidance=asked)
        assert {float(kwargs["guidance"]) for *_, kwargs in calls} == {seen}
    assert "guidance" not in tiny.positive[0][1] and own[0][1]["guidance"] == 2
    _, report = lab.run("wan", embedded_guidance=4.0)
    assert "takes no embedded guidance" in report


def test_cfg_per_phase_skips_negatives(lab):
    model, calls = lab.watch(lab["wan"].model)
    lab.run("wan", model=model, cfg="5, 1, 1, 1")
    assert evaluations(calls) == 5
    with pytest.raises(lab.errors.PCMError, match="cfg"):
        lab.run("wan", cfg="5, 1")


def test_an_assumed_preset_is_said_and_a_lora_is_not_questioned(lab):
    assert "assumed LightX2V-Wan2.1" in lab.run("wan")[1]
    model = lab.api.attach_profile(lab["wan"].model, lab.profile(steps=4))
    assert lab.run("wan", model=model)[1].count("\n") == 0


# AnimateDiff


def test_linear_betas_are_read_from_the_model_and_warned_about(lab, caplog):
    watched, calls = lab.watch(lab["linear_beta"].model)
    model = lab.api.attach_profile(watched, lab.profile(steps=4, base_model="sd15"))
    reports = [lab.run("linear_beta", model=model)[1] for _ in range(2)]
    expected = [25.146115, 6.557213, 2.275963, 0.867020]
    assert sigmas_of(calls) == pytest.approx(expected, rel=2e-5)
    assert all("noise goes up to sigma 25.15" in report for report in reports)
    assert sum("noise goes up to sigma 25.15" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize("determinism", [1.0, 0.0])
def test_shared_frame_noise_makes_equal_frames(lab, determinism):
    """The tiny model has no motion module: frames differ by their noise alone."""
    frames = lab.run("eps", frame_noise="shared", determinism=determinism)[0]["samples"]
    torch.testing.assert_close(frames[1:], frames[:1].expand_as(frames[1:]), atol=1e-5, rtol=1e-5)
    other = lab.run("eps", frame_noise="independent", determinism=determinism)[0]["samples"]
    assert (other[1] - other[0]).abs().mean() > 0.1


def test_mixed_frame_noise_is_in_between(lab):
    def spread(**inputs):
        return float(lab.run("eps", **inputs)[0]["samples"].std(dim=0).mean())

    rho = [spread(frame_noise="mixed", frame_correlation=rho) for rho in (0.0, 0.9, 1.0)]
    assert rho[0] == spread() > rho[1] > rho[2]
    assert rho[2] < 1e-4


# Two experts


def chained(lab, first, second, split, steps, seed, latent, cfg=1.0):
    """Two stock KSamplerAdvanced: leftover noise handed over."""
    tiny, out = lab["wan"], latent
    for model, start, end, noise, left in (
        (first, 0, split, "enable", "enable"), (second, split, 10000, "disable", "disable"),
    ):  # fmt: skip
        (out,) = lab.host.call(
            "KSamplerAdvanced", model=model, add_noise=noise, noise_seed=seed, steps=steps, cfg=cfg,
            sampler_name="euler", scheduler="simple", positive=tiny.positive, negative=tiny.negative,
            latent_image=out, start_at_step=start, end_at_step=end, return_with_leftover_noise=left,
        )  # fmt: skip
    return out


@pytest.mark.parametrize(("boundary", "split"), [(875, 2), (1000, 1), (600, 3)])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_two_experts_equal_the_stock_chain(lab, boundary, split, cfg):
    first, second = (lab.host.call("ModelSamplingSD3", model=lab[n].model, shift=5.0)[0] for n in ("wan", "wan_twin"))
    stock = chained(lab, first, second, split, 4, 21, lab["wan"].latent(), cfg)
    high, high_calls = lab.watch(lab["wan"].model)
    low, low_calls = lab.watch(lab["wan_twin"].model)
    out, report = lab.run("wan", model=high, second_model=low, boundary=boundary, seed=21, cfg=str(cfg))
    lab.close(out, stock, atol=1e-5, rtol=1e-5)
    assert (len(sigmas_of(high_calls)), len(sigmas_of(low_calls))) == (split, 4 - split)
    assert f"{split} of 4 steps on the first" in report


@pytest.mark.parametrize("determinism", [1.0, 0.5, 0.0])
def test_the_hand_over_changes_nothing(lab, determinism):
    """One model as both experts is the model alone, to the bit: one noise, one schedule, one sequence of step noise."""
    model = lab["wan"].model
    alone, _ = lab.run("wan", seed=5, determinism=determinism)
    both, _ = lab.run("wan", seed=5, determinism=determinism, second_model=model)
    assert lab.same(alone, both)


@pytest.mark.parametrize("values", [{"method": "LightX2V-Wan2.2", "phases": None, "shift": 5.0}, {"phases": 4}])
def test_half_a_schedule_is_no_mistake(lab, values, caplog):
    model = lab.api.attach_profile(lab["wan"].model, lab.profile(steps=4, **values))
    lab.run("wan", model=model, second_model=lab["wan_twin"].model)
    assert not [r.getMessage() for r in caplog.records if "made for" in r.getMessage()]
    lab.run("wan", model=model, second_model=lab["wan_twin"].model, cfg="5")
    assert sum("cfg is 5" in record.getMessage() for record in caplog.records) == 1


def test_experts_keep_masks(lab):
    """Chained stock samplers lose the mask's clean latent: the second takes the noised one for it."""
    import tiny_video

    latent = lab.latent("wan", seed=7)
    latent["noise_mask"] = tiny_video.mask_frames(latent["samples"], 1)
    out = lab.run("wan", latent, second_model=lab["wan_twin"].model)[0]["samples"]
    torch.testing.assert_close(out[:, :, :1], latent["samples"][:, :, :1], atol=1e-5, rtol=1e-4)


def test_below_the_boundary_only_the_second_expert_works(lab):
    high, high_calls = lab.watch(lab["wan"].model)
    low, low_calls = lab.watch(lab["wan_twin"].model)
    lab.run("wan", lab.latent("wan", seed=7), high, second_model=low, denoise=0.3)
    assert not high_calls and low_calls


def test_the_second_expert_gets_the_first_ones_shift_and_stays_as_it_was(lab):
    twin = lab["wan_twin"].model
    own = lab.api.flow_shift(twin)
    high, high_calls = lab.watch(lab["wan"].model)
    low, low_calls = lab.watch(twin)
    lab.run("wan", model=high, second_model=low, shift=3.0)
    assert sigmas_of(high_calls + low_calls) == pytest.approx([1, 0.9, 0.75, 0.5], abs=1e-5)
    assert lab.api.flow_shift(twin) == own and lab.api.profile_of(twin) is None


def test_what_the_second_experts_lora_wants_otherwise_is_said_within_one_video_model_too(lab):
    high, low = (
        lab.api.attach_profile(lab[name].model, lab.profile(method="PCM", phases=phases, steps=4, cfg=cfg))
        for name, phases, cfg in (("wan", 4, 1.0), ("wan_twin", 8, 3.0))
    )
    _, report = lab.run("wan", model=high, second_model=low)
    assert "The second model's LoRA (PCM) wants another phases, cfg; used the first's." in report
    assert "wants another" not in lab.run("wan", model=high, second_model=lab["wan_twin"].model)[1]


@pytest.mark.parametrize("name", ["wan22", "wan_i2v", "hunyuan_video", "sd15"])
def test_an_expert_of_another_kind_is_refused(lab, name):
    with pytest.raises(lab.errors.PCMError, match="two models differ"):
        lab.run("wan", second_model=lab[name].model)


@pytest.mark.parametrize("boundary", [-1, 1001, math.nan])
def test_a_boundary_out_of_range_is_refused(lab, boundary):
    with pytest.raises(lab.errors.PCMError, match="boundary"):
        lab.run("wan", second_model=lab["wan_twin"].model, boundary=boundary)


def test_one_step_for_two_experts_is_refused(lab):
    with pytest.raises(lab.errors.PCMError, match="single step"):
        lab.run("wan", second_model=lab["wan_twin"].model, steps=1)


# Windows


@pytest.mark.parametrize(
    ("name", "frames", "window", "overlap", "windows"),
    [("wan", 9, 13, 4, 3), ("eps", 8, 4, 2, 3), ("mochi", 7, 19, 6, 2), ("ltxv", 7, 25, 8, 2)],
)
def test_long_clips_in_windows(lab, name, frames, window, overlap, windows):
    import tiny_video

    tiny = tiny_video.with_frames(lab[name], frames)
    latent = lab["eps"].latent(frames) if name == "eps" else tiny.latent()
    model, calls = lab.watch(lab[name].model)
    inputs = {"window": window, "overlap": overlap, "cfg": "1", "seed": 2}
    out, report = lab.run(name, latent, model, **inputs)
    assert out["samples"].shape == latent["samples"].shape and out["samples"].isfinite().all()
    assert len(calls) == windows * STEPS[name]
    assert "windows of" in report
    assert lab.same(out, lab.run(name, latent, **inputs)[0])
    # One frame of context is put before the later windows of models with a video latent.
    length = lab[name] and core_video.video_model_of(lab.api.base_model_of(model)).latent_frames(window, "")
    assert max(x.shape[0 if name == "eps" else 2] for _, x, _ in calls) <= length + 1


def test_windows_equal_the_hosts_own_node(lab):
    import tiny_video

    tiny = tiny_video.with_frames(lab["wan"], 9)
    (model,) = lab.host.call(
        "ContextWindowsManual", model=tiny.model, context_length=4, context_overlap=1,
        context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2,
        freenoise=False,
    )  # fmt: skip
    ours, _ = lab.run("wan", tiny.latent(), window=13, overlap=4, window_noise="independent")
    theirs, _ = lab.run("wan", tiny.latent(), model, window_noise="independent")
    assert lab.same(ours, theirs)
    _, report = lab.run("wan", tiny.latent(), model, window=13, overlap=4)
    assert "brings its own context windows" in report


def test_shuffled_noise_is_the_hosts_freenoise(lab):
    import tiny_video

    tiny = tiny_video.with_frames(lab["wan"], 11)
    (model,) = lab.host.call(
        "ContextWindowsManual", model=tiny.model, context_length=4, context_overlap=1,
        context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2,
        freenoise=True,
    )  # fmt: skip
    ours, _ = lab.run("wan", tiny.latent(), window=13, overlap=4, seed=9)
    theirs, report = lab.run("wan", tiny.latent(), model, seed=9)
    assert lab.same(ours, theirs) and "window_noise" not in report
    assert "window_noise tiled is not used" in lab.run("wan", tiny.latent(), model, seed=9, window_noise="tiled")[1]


def test_a_clip_that_fits_is_sampled_whole(lab):
    whole, _ = lab.run("wan", seed=2)
    windowed, _ = lab.run("wan", seed=2, window=13, overlap=4)
    assert lab.same(whole, windowed)


@pytest.mark.parametrize("noise", ["shuffled", "tiled"])
@pytest.mark.parametrize("determinism", [1.0, 0.0])
def test_windows_share_their_noise(lab, noise, determinism):
    """Without a motion module a frame depends on its noise alone: windows then hold the same frames."""
    frames = lab.run(
        "eps", lab["eps"].latent(8), window=4, overlap=0, window_noise=noise, determinism=determinism
    )[0]["samples"]  # fmt: skip
    distance = torch.cdist(frames[4:].flatten(1), frames[:4].flatten(1))
    assert (distance.min(dim=1).values < 1e-3).all()
    assert sorted(distance.argmin(dim=1).tolist()) == [0, 1, 2, 3]


def test_windows_with_two_experts(lab):
    import tiny_video

    tiny = tiny_video.with_frames(lab["wan"], 7)
    inputs = {"window": 13, "overlap": 4, "seed": 2, "determinism": 0.0}
    high, high_calls = lab.watch(lab["wan"].model)
    low, low_calls = lab.watch(lab["wan"].model)
    both, _ = lab.run("wan", tiny.latent(), high, second_model=low, **inputs)
    alone, _ = lab.run("wan", tiny.latent(), **inputs)
    assert lab.same(both, alone)
    assert len(high_calls) == len(low_calls) == 4


def test_windows_of_nested_latents(lab):
    import comfy.context_windows
    import tiny_video

    tiny = tiny_video.with_frames(lab["ltx2"], 7)
    if not hasattr(comfy.context_windows.IndexListContextHandler, "_build_window_state"):
        with pytest.raises(lab.errors.PCMError, match="no windows for video with audio"):
            lab.run("ltx2", tiny.latent(), window=25, overlap=8)
        return
    model, calls = lab.watch(lab["ltx2"].model)
    out, _ = lab.run("ltx2", tiny.latent(), model, window=25, overlap=8, determinism=0.0)
    assert all(part.isfinite().all() for part in lab.parts(out))
    assert len(calls) == 2 * STEPS["ltx2"]
    assert lab.same(out, lab.run("ltx2", tiny.latent(), window=25, overlap=8, determinism=0.0)[0])


# Bad input


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_model_is_refused(lab, name):
    with pytest.raises(lab.errors.PCMError, match="image model"):
        lab.run(name, lab[name].latent())


@pytest.mark.parametrize(
    ("inputs", "match"),
    [({"window": 12}, "Use 13"), ({"window": 13, "overlap": 13}, "longer than its overlap"),
     ({"window": 13, "overlap": 40}, "longer than its overlap"), ({"window": 13, "overlap": -5}, "overlap"),
     ({"steps": 65}, "steps"), ({"steps": -1}, "steps"), ({"denoise": math.nan}, "denoise"),
     ({"denoise": 1.5}, "denoise"), ({"shift": math.nan}, "shift"), ({"shift": -1.0}, "shift"),
     ({"cfg": "nan"}, "cfg"), ({"cfg": "a"}, "cfg"), ({"determinism": 2.0}, "determinism"),
     ({"embedded_guidance": math.nan}, "embedded_guidance"), ({"preset": "FastMochi"}, "not for Wan"),
     ({"frame_noise": "mixed", "frame_correlation": math.nan}, "correlation")],
)  # fmt: skip
def test_bad_values_are_refused(lab, inputs, match):
    with pytest.raises(lab.errors.PCMError, match=match):
        lab.run("wan", **inputs)


def test_bad_latents_are_refused(lab):
    with pytest.raises(lab.errors.PCMError, match="batch of 9 images"):
        lab.run("wan", {"samples": torch.zeros(9, 4, 8, 8)})
    with pytest.raises(lab.errors.PCMError, match="in the batch"):
        lab.run("eps", {"samples": torch.zeros(1, 4, 3, 8, 8)})
    with pytest.raises(lab.errors.PCMError, match="empty"):
        lab.run("wan", {"samples": torch.zeros(0, 16, 3, 8, 8)})


def test_shift_on_a_model_without_one_is_refused(lab):
    with pytest.raises(lab.errors.PCMError, match="not a flow model"):
        lab.run("eps", shift=3.0)


def test_cogvideo_is_refused(lab):
    with pytest.raises(lab.errors.PCMError, match="image model, or a video model that is not listed"):
        lab.run("cogvideo")


# In a prompt


@pytest.fixture
def graph(lab):
    """A prompt around the node as it is when dropped on the canvas; two nodes stand for loaders and the end."""
    tiny, nodes, kept = lab["wan"], lab.host.nodes.NODE_CLASS_MAPPINGS, []

    class TestVideoStart:
        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CONDITIONING", "LATENT"), "make", "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {}}

        def make(self):
            return tiny.model, tiny.positive, tiny.latent()

    class TestVideoEnd:
        RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "keep", "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {"latent": ("LATENT",), "report": ("STRING", {"forceInput": True})}}

        def keep(self, latent, report):
            kept.append((latent, report))
            return {}

    def prompt(**inputs):
        required = nodes["PCMVideoSampler"].INPUT_TYPES()["required"]
        widgets = {n: o[0]["default"] for n, (_, *o) in required.items() if o and "default" in o[0]}
        links = {"model": ["a", 0], "positive": ["a", 1], "negative": ["a", 1], "latent_image": ["a", 2]}
        return {
            "a": {"class_type": "TestVideoStart", "inputs": {}},
            "b": {"class_type": "PCMVideoSampler", "inputs": {**widgets, **links, **inputs}},
            "c": {"class_type": "TestVideoEnd", "inputs": {"latent": ["b", 0], "report": ["b", 1]}},
        }

    added = {"TestVideoStart": TestVideoStart, "TestVideoEnd": TestVideoEnd}
    nodes.update(added)
    yield prompt, kept
    for name in added:
        del nodes[name]


def test_a_prompt_runs_and_one_refused_leaves_the_next_alone(lab, graph):
    prompt, kept = graph
    for inputs in ({}, {"second_model": ["a", 0], "window": 12}, {"second_model": ["a", 0]}):
        executor = lab.host.run_prompt(prompt(**inputs))
        refused = inputs.get("window") == 12
        assert executor.success != refused, executor.status_messages
        errors = [data for event, data in executor.status_messages if event == "execution_error"]
        assert [data["exception_message"].strip() for data in errors] == [
            "window is 12. Expected: Wan has clips of 4n + 1 frames. Use 13."
        ] * refused
    assert len(kept) == 2 and lab.same(kept[0][0], kept[1][0])
    assert "second expert" in kept[1][1]
