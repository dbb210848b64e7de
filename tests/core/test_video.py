"""Video models, their presets, expert edges and clip noise, without a host."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcm_core import video
from pcm_core.errors import PCMError
from pcm_core.profiles import PCMProfile, profile_from_name
from pcm_core.sigma_table import SigmaTable
from pcm_core.video.noise import ClipNoise, Windows, window_order

FAST_HUNYUAN = (1, 0.988372, 0.971429, 0.944444, 0.894737, 0.772727, 0)
FAST_MOCHI = (1, 0.983333, 0.966667, 0.95, 0.933333, 0.916667, 0.9, 0.666667, 0)


def flow_table(shift: float) -> SigmaTable:
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    return SigmaTable.of((shift * u / (1 + (shift - 1) * u)).float())


# Video models and presets


def test_every_preset_is_a_release_that_the_profiles_know():
    for video_model in video.video_models().values():
        assert not video_model.default or video_model.default in video_model.presets
        assert set(video_model.uniform) <= set(video_model.presets)
        for name in video_model.presets:
            profile = video_model.preset(name)
            assert name.startswith(profile.method)
            assert profile.base_model in video_model.bases
            assert profile.sampling_class not in ("X", "1")
    assert len(set(video.preset_names())) == len(video.preset_names())


def test_bases_belong_to_one_video_model():
    bases = [base for video_model in video.video_models().values() for base in video_model.bases]
    assert len(bases) == len(set(bases))


@pytest.mark.parametrize(
    ("base", "name", "stride", "axis"),
    [("sd15", "AnimateDiff", 1, 0), ("wan", "Wan", 4, 2), ("hunyuan-video", "HunyuanVideo", 4, 2),
     ("hunyuan-video-1.5", "HunyuanVideo 1.5", 4, 2), ("mochi", "Mochi", 6, 2), ("ltxv", "LTXV", 8, 2),
     ("ltx-2", "LTX-2", 8, 2)],
)  # fmt: skip
def test_video_model_of(base, name, stride, axis):
    video_model = video.video_model_of(base)
    assert (video_model.name, video_model.stride, video_model.frames_axis) == (name, stride, axis)


@pytest.mark.parametrize("base", ["sd3", "flux1", "qwen-image", "kandinsky5image", "", "wan2"])
def test_image_models_are_refused(base):
    with pytest.raises(PCMError, match="image model"):
        video.video_model_of(base)


def test_choose_takes_the_lora_then_the_default():
    wan = video.video_model_of("wan")
    lora = PCMProfile(method="PCM", phases=4, steps=4)
    assert video.choose(wan, lora) == (lora, ())
    for attached in (None, PCMProfile()):
        profile, notes = video.choose(wan, attached)
        assert profile.method == "LightX2V-Wan2.1" and "LightX2V-Wan2.1" in notes[0]
    profile, notes = video.choose(video.video_model_of("sd15"), None)
    assert not profile.known and notes == ()


def test_choose_by_name_overrides_the_lora_and_says_so():
    wan = video.video_model_of("wan")
    profile, notes = video.choose(wan, PCMProfile(method="PCM"), "FastWan")
    assert profile.sigmas == (1, 0.757, 0.522, 0) and profile.determinism == 0
    assert len(notes) == 1
    assert video.choose(wan, PCMProfile(method="FastWan"), "FastWan")[1] == ()
    assert video.choose(wan, None, "FastWan")[1] == ()


@pytest.mark.parametrize("name", ["FastHunyuan", "nonsense"])
def test_a_preset_of_another_video_model_is_refused(name):
    with pytest.raises(PCMError, match="FastWan"):
        video.choose(video.video_model_of("wan"), None, name)


# Schedules


def test_fast_hunyuan_on_its_shift():
    video_model = video.video_model_of("hunyuan-video")
    profile = video.with_sigmas(video_model, video_model.preset("FastHunyuan"), flow_table(17))
    assert profile.sigmas == pytest.approx(FAST_HUNYUAN, abs=1e-5)
    assert (profile.steps, profile.shift, profile.embedded_guidance, profile.cfg) == (6, 17, 6, 1)


def test_fast_hunyuan_follows_steps_and_shift():
    video_model = video.video_model_of("hunyuan-video")
    profile = video.with_sigmas(video_model, video_model.preset("FastHunyuan"), flow_table(15), 4)
    exact = [15 * u / (1 + 14 * u) for u in (1, 0.75, 0.5, 0.25, 0)]
    assert profile.sigmas == pytest.approx(exact, abs=1e-5) and profile.steps == 4


def test_fast_hunyuan_from_a_lora_is_spaced_alike():
    video_model, lora = video.video_model_of("hunyuan-video"), profile_from_name("hyvideo_FastVideo_LoRA-fp8")
    assert lora is not None and lora.method == "FastHunyuan"
    assert video.with_sigmas(video_model, lora, flow_table(17)).sigmas == pytest.approx(FAST_HUNYUAN, abs=1e-5)


def test_fast_mochi():
    video_model = video.video_model_of("mochi")
    profile = video.with_sigmas(video_model, video_model.preset("FastMochi"), flow_table(6))
    assert profile.sigmas == pytest.approx(FAST_MOCHI, abs=1e-5)
    assert profile.cfg == 1.5


@pytest.mark.parametrize("steps", [-1, 65, 10000])
def test_steps_out_of_range(steps):
    video_model = video.video_model_of("mochi")
    with pytest.raises(PCMError, match="steps"):
        video.with_sigmas(video_model, video_model.preset("FastMochi"), flow_table(6), steps)


# Experts


@pytest.mark.parametrize(
    ("boundary", "edge", "first"), [(875, 0.833333, 2), (900, 0.9375, 1), (1000, 0.9375, 1), (0, 0.625, 3)]
)
def test_expert_edge_is_the_nearest(boundary, edge, first):
    found, note = video.expert_edge((1, 0.9375, 0.833333, 0.625, 0), boundary, flow_table(5))
    assert found == edge
    assert f"{first} of 4 steps" in note and f"boundary {boundary}" in note


def test_expert_edge_tie_goes_to_the_noisier():
    assert video.expert_edge((1, 0.75, 0.5, 0), 625, flow_table(1))[0] == 0.75


def test_expert_edge_on_a_table_of_timesteps(sd_table):
    sigmas = [float(sd_table[t]) for t in (999, 749, 499, 249)] + [0.0]
    assert video.expert_edge(sigmas, 520, SigmaTable.of(sd_table))[0] == pytest.approx(float(sd_table[499]))


@pytest.mark.parametrize("boundary", [-1, 1000.5, math.nan, math.inf])
def test_boundary_out_of_range(boundary):
    with pytest.raises(PCMError, match="boundary"):
        video.expert_edge((1, 0.5, 0), boundary, flow_table(5))


def test_one_step_has_no_edge():
    with pytest.raises(PCMError, match="single step"):
        video.expert_edge((1, 0), 875, flow_table(5))


# Clips


@pytest.mark.parametrize(
    ("base", "frames", "latent"),
    [("wan", 1, 1), ("wan", 81, 21), ("ltxv", 121, 16), ("mochi", 163, 28), ("sd15", 16, 16)],
)
def test_latent_frames(base, frames, latent):
    assert video.video_model_of(base).latent_frames(frames, "window") == latent


@pytest.mark.parametrize(
    ("base", "frames", "use"),
    [("wan", 80, 81), ("hunyuan-video", 24, 25), ("hunyuan-video-1.5", 120, 121), ("ltxv", 100, 97),
     ("ltx-2", 120, 121), ("mochi", 84, 85), ("cosmosvideo", 120, 121), ("cosmospredict2", 92, 93),
     ("kandinsky5", 120, 121), ("mochi", 0, 1), ("sd15", 0, 1)],
)  # fmt: skip
def test_a_frame_count_the_video_model_cannot_have(base, frames, use):
    video_model = video.video_model_of(base)
    with pytest.raises(PCMError, match=f"Use {use}\\.") as error:
        video_model.latent_frames(frames, "window")
    assert f"window is {frames}. Expected: {video_model.name} has clips of" in str(error.value)
    video_model.latent_frames(use, "window")


def test_check_latent():
    batch, clip = video.video_model_of("sd15"), video.video_model_of("wan")
    batch.check_latent((16, 4, 8, 8))
    clip.check_latent((1, 16, 3, 8, 8))
    clip.check_latent((2, 16, 3, 8, 8))
    clip.check_latent((1, 4, 8, 8))  # one picture; the host adds the axis
    with pytest.raises(PCMError, match="in the batch"):
        batch.check_latent((1, 4, 16, 8, 8))
    with pytest.raises(PCMError, match="batch of 16 images"):
        clip.check_latent((16, 4, 8, 8))


# Noise


@given(st.integers(1, 80), st.integers(1, 24), st.data(), st.sampled_from(["shuffled", "tiled"]))
def test_every_window_sees_the_same_noise(frames, length, data, arrangement):
    windows = Windows(length=length, overlap=data.draw(st.integers(0, length - 1)))
    order = window_order(frames, windows, arrangement, seed=3)
    assert len(order) == frames and order[:length] == list(range(min(length, frames)))
    stride = length - windows.overlap
    for start in range(0, frames - length + 1, stride):
        assert sorted(order[start : start + length]) == list(range(length))


def test_window_order_tiled_repeats():
    assert window_order(10, Windows(length=4, overlap=1), "tiled", 0) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert window_order(6, Windows(length=4, overlap=1), "independent", 0) == [0, 1, 2, 3, 4, 5]


def test_window_order_depends_on_the_seed():
    windows = Windows(length=16, overlap=4)
    orders = [tuple(window_order(64, windows, "shuffled", seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("length", "overlap"), [(4, 4), (4, 5), (0, 0), (4, -1)])
def test_windows_must_be_longer_than_their_overlap(length, overlap):
    with pytest.raises(PCMError, match="longer than its overlap"):
        Windows(length=length, overlap=overlap)


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.7, 1.0])
def test_correlation_keeps_the_variance(axis, rho):
    noise = torch.randn((6, 3, 5, 60, 60), generator=torch.Generator().manual_seed(0))
    (mixed,) = ClipNoise(axis=axis, seed=0, correlation=rho)([noise])
    assert mixed.shape == noise.shape
    assert float(mixed.var()) == pytest.approx(1, abs=0.03)
    frames = mixed.unbind(axis)
    measured = torch.stack([(a * b).mean() for a, b in itertools.combinations(frames, 2)])
    assert float(measured.mean()) == pytest.approx(rho, abs=0.03)
    if rho == 0:
        assert torch.equal(mixed, noise)
    if rho == 1:
        assert all(torch.equal(frame, frames[0]) for frame in frames)


def test_clip_noise_is_a_function_of_seed_and_call():
    noise = torch.randn((4, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    one, two, other = (ClipNoise(axis=0, seed=seed, correlation=0.5) for seed in (5, 5, 6))
    first, second = one([noise])[0], one([noise])[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, two([noise])[0]) and torch.equal(second, two([noise])[0])
    assert not torch.equal(first, other([noise])[0])


def test_clip_noise_scales_windows_to_the_audio():
    video_part, audio = torch.arange(16.0).view(1, 1, 16), torch.arange(32.0).view(1, 1, 32)
    noise = ClipNoise(axis=2, seed=0, windows=Windows(length=4, overlap=2), arrangement="tiled")
    arranged = noise([video_part, audio])
    assert arranged[0].flatten().tolist() == [i % 4 for i in range(16)]
    assert arranged[1].flatten().tolist() == [i % 8 for i in range(32)]


def test_clip_noise_leaves_its_input_alone():
    noise = torch.randn((8, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    before = noise.clone()
    ClipNoise(axis=0, seed=0, correlation=1, windows=Windows(length=4, overlap=1))([noise])
    assert torch.equal(noise, before)


@pytest.mark.parametrize("rho", [-0.1, 1.1, math.nan])
def test_correlation_out_of_range(rho):
    with pytest.raises(PCMError, match="correlation"):
        ClipNoise(axis=0, seed=0, correlation=rho)
