"""Load PCM LoRA on the real host: what it sets, what it keeps, what it refuses."""

from __future__ import annotations

import math
import os

import pytest
import torch
from safetensors.torch import save_file

from pcm_core.errors import PCMError
from pcm_core.profiles import profile_from_name
from phased_consistency.nodes import host as nodes_host
from phased_consistency.nodes.host import lora as host_lora
from phased_consistency.nodes.sampling.settings import configure


@pytest.fixture
def error(host):
    return PCMError


def weights(model):
    state = model.model.state_dict()
    return [
        key for key, w in state.items() if key.startswith("diffusion_model.") and key.endswith("weight") and w.ndim == 2
    ]


def put(host, model, name, count=2, alpha=None, metadata=None, value=0.3):
    """A small LoRA in the host's own names under a file name that says something."""
    state, tensors = model.model.state_dict(), {}
    for key in weights(model)[:count]:
        stem = key.removesuffix(".weight")
        tensors[f"{stem}.lora_up.weight"] = torch.full((state[key].shape[0], 2), value)
        tensors[f"{stem}.lora_down.weight"] = torch.full((2, state[key].shape[1]), value)
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    path = host.base / "models" / "loras" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return f"{name}.safetensors"


def load(host, model, name, strength=1.0, allow_partial=False):
    inputs = {"lora_name": name, "strength": strength, "allow_partial": allow_partial}
    return host.call("PCMLoraLoader", model=model, **inputs)[:2]


def change(host, before, after, key):
    """What was added to a weight, beyond what the model before already had."""
    import comfy.lora

    weight = before.model.state_dict()[key].float()
    with_lora = comfy.lora.calculate_weight(after.patches.get(key, []), weight.clone(), key)
    return with_lora - comfy.lora.calculate_weight(before.patches.get(key, []), weight.clone(), key)


# What it sets

# Every P and D row of the table: the list its authors give, or equal steps at their shift; the final 0 is left out.
VP = {
    2: (999, 499), 4: (999, 749, 499, 249), 8: (999, 874, 749, 624, 499, 374, 249, 124),
    12: (999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82),  # rounded as diffusers does
    16: (999, 937, 874, 811, 749, 687, 624, 561, 499, 437, 374, 311, 249, 187, 124, 61),
}  # fmt: skip
FLUX = math.exp(1.15)  # the shift of Flux, Qwen-Image and Krea 2 where nothing sets another
FOUR_AT_5 = (1, 0.9375, 0.83333, 0.625)
EIGHT_AT_3 = (1, 0.95455, 0.9, 0.83333, 0.75, 0.64286, 0.5, 0.3)
FLUX_8 = (1, 0.95672, 0.90453, 0.84035, 0.75951, 0.65457, 0.51284, 0.3109)
LTX = (1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)


def even(steps, shift):
    """Equal steps of u = 1 .. 0, shifted."""
    us = [i / steps for i in range(steps, 0, -1)]
    return tuple(shift * u / (1 + (shift - 1) * u) for u in us)


SCHEDULES = [
    ("sd15", "pcm_sd15_smallcfg_4step_converted", VP[4]), ("sd15", "pcm_sd15_smallcfg_2step_converted", VP[2]),
    ("sd15", "pcm_sd15_normalcfg_8step_converted", VP[8]), ("sd15", "Hyper-SD15-8steps-lora", VP[8]),
    ("sd15", "Hyper-SD15-4steps-lora", VP[4]), ("sd15", "Hyper-SD15-8steps-CFG-lora", VP[8]),
    ("sdxl", "pcm_sdxl_normalcfg_8step_converted_fp16", VP[8]), ("sdxl", "sdxl_lightning_4step_lora", VP[4]),
    ("sdxl", "sdxl_lightning_2step_lora", VP[2]), ("sdxl", "Hyper-SDXL-8steps-lora", VP[8]),
    ("sdxl", "phasedxl", VP[4]), ("sdxl", "perflow-sdxl-base", VP[4]),
    ("sd15", "Rectified-Diffusion/phased", VP[4]), ("sd15", "pcm_sd15_normalcfg_4step_converted", VP[4]),
    ("sd15", "pcm_sd15_normalcfg_16step_converted", VP[16]), ("sdxl", "Hyper-SDXL-12steps-CFG-lora", VP[12]),
    ("linear_beta", "animatediff_lightning_4step_comfyui", (25.14611, 6.55721, 2.27596, 0.86702)),
    ("sd3", "pcm_deterministic_2step_shift1", (1, 0.5)),
    ("sd3", "pcm_deterministic_4step_shift1", (1, 0.75, 0.5, 0.25)),
    ("sd3", "pcm_deterministic_4step_shift3", (1, 0.9, 0.75, 0.5)),
    ("sd3", "TensorArt-SD3.5-Large-TurboX", (1, 0.97222, 0.9375, 0.89286, 0.83333, 0.75, 0.625, 0.41667)),
    ("sd3", "lora_sd3.5m_turbo_8steps", EIGHT_AT_3), ("sd3", "Hyper-SD3-4steps-CFG-lora", (1, 0.9, 0.75, 0.5)),
    ("sd3", "Hyper-SD3-8steps-CFG-lora", EIGHT_AT_3), ("sd3", "sd3.5_large_turbo", (1, 0.9, 0.75, 0.5)),
    ("flux", "Hyper-FLUX.1-dev-8steps-lora", FLUX_8), ("flux", "flux.1-turbo-alpha-lora", FLUX_8),
    ("flux", "Hyper-FLUX.1-dev-16steps-lora", even(16, FLUX)),
    ("flux", "TDD-FLUX.1-dev-lora-beta", FLUX_8), ("flux", "flux1-schnell-lora", (1, 0.75, 0.5, 0.25)),
    ("flux_schnell", "flux1-schnell-fp8", (1, 0.75, 0.5, 0.25)),
    ("qwen_image", "Qwen-Image-Lightning-4steps-V2.0-bf16", (1, 0.9, 0.75, 0.5)),
    ("qwen_image", "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16", EIGHT_AT_3),
    ("qwen_image", "FireRed-Image-Edit-1.0-Lightning-8steps-v1.0", EIGHT_AT_3),
    ("qwen_image", "Wuli-Qwen-Image-2512-Turbo-LoRA-2steps-V1.0-bf16", (1, 0.75)),
    ("qwen_image", "Qwen-Image-2.1-Lightning", even(4, FLUX)),
    ("qwen_image", "qwen_image_distill_full_bf16", even(15, FLUX)),
    ("flux2", "flux.2-turbo-lora", (1, 0.94739, 0.88248, 0.80028, 0.69282, 0.54619, 0.33467, 0.00299)),
    ("flux2", "flux-2-klein-4b", (1, 0.96738, 0.90814, 0.7672)),
    ("z_image", "z_image_turbo_distill_patch_lora_bf16", EIGHT_AT_3), ("z_image", "z_image_turbo_bf16", EIGHT_AT_3),
    ("ernie_image", "ernie-image-turbo", EIGHT_AT_3), ("krea2", "krea2_turbo_lora_rank_64_bf16", FLUX_8),
    ("lens", "lens_turbo_bf16", even(4, FLUX)), ("mage_flow", "mage_flow_turbo_bf16", even(4, 6)),
    ("wan", "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16", FOUR_AT_5),
    ("wan", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", FOUR_AT_5),
    ("wan", "Wan22_A14B_T2V_LOW_Lightning_4steps_lora_250928_rank64_fp16", FOUR_AT_5),
    ("wan", "Wan21_AccVid_T2V_14B_lora_rank32_fp16",
     (1, 0.97826, 0.95238, 0.92105, 0.88235, 0.83333, 0.76923, 0.68182, 0.55556, 0.35714)),
    ("wan", "Wan2.1_T2V_14B_FusionX_LoRA", even(10, 2)),
    ("wan", "Wan_2_1_I2V_14B_ChronoEdit_distill_lora_rank32", even(8, 2)),
    ("wan", "minimax_h3_fl2v_turbo_4step_v1.0_768p_bf16", (1, 0.94737, 0.85714, 0.66667)),  # the video half
    ("wan", "minimax_h3_ref2v_turbo_4step_v0.1_bf16", (1, 0.97297, 0.92308, 0.8)),
    ("wan", "minimax_h3_fl2v_turbo_8step_v1_bf16", (1, 0.98824, 0.97297, 0.95238, 0.92308, 0.87805, 0.8, 0.63158)),
    ("hunyuan_video15", "hy1.5_t2v_480p_lightx2v_4step_bf16", FOUR_AT_5),
    ("hunyuan_video15", "hunyuanvideo1.5_480p_i2v_step_distilled_fp16", even(12, 7)),
    ("hunyuan_video15", "hunyuanvideo1.5_720p_sr_distilled_fp16", even(6, 2)),
    ("hunyuan_video15", "hunyuanvideo1.5_1080p_sr_distilled_fp16", even(8, 2)),
    ("hunyuan_video", "hyvideo_FastVideo_LoRA-fp8", (1, 0.988372, 0.971429, 0.944444, 0.894737, 0.772727)),
    ("hunyuan_video", "accvideo-t2v-5-steps_fp8_e4m3fn", (1, 0.96552, 0.91304, 0.82353, 0.63636)),
    ("mochi", "FastMochi", (1, 0.983333, 0.966667, 0.95, 0.933333, 0.916667, 0.9, 0.666667)),
    ("ltx2", "ltx-2-19b-distilled-lora-384", LTX), ("ltx2", "ltx-2.3-22b-distilled-lora-384-1.1", LTX),
    ("ltxv", "ltxv-13b-0.9.8-distilled", (1, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725)),
]  # fmt: skip


@pytest.mark.parametrize(("family", "name", "listed"), SCHEDULES, ids=[row[1] for row in SCHEDULES])
def test_the_sigmas_that_reach_the_sampler_are_the_listed_ones(host, zoo, family, name, listed):
    model = zoo[family].model
    if profile_from_name(name) is None:  # a checkpoint
        loaded, profile, _ = configure(model, profile_from_name(name, "checkpoint"))
        report = f"profile: {profile.method}"
    else:
        loaded, report = load(host, model, put(host, model, name, alpha=2.0))
    sigmas, *_ = host.call("PCMPhaseScheduler", model=loaded)
    if isinstance(listed[0], int) and listed[0] > 1:
        table = nodes_host.sigma_table(model)
        listed = [table.sigma(t) for t in listed]
    assert sigmas[:-1].tolist() == pytest.approx(list(listed), abs=1e-4)
    profile = nodes_host.profile_of(loaded)
    assert profile.terminal == "alpha0" or sigmas[-1] == 0
    seen = []

    def record(_, x, steps, *args, **options):
        seen.extend(steps.tolist())
        return x

    sampler = nodes_host.ksampler(record)
    tiny = zoo[family]
    (guider,) = host.call("BasicGuider", model=loaded, conditioning=tiny.positive)
    (noise,) = host.call("DisableNoise")
    host.call(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=tiny.latent()
    )
    assert seen == sigmas.tolist()
    assert f"profile: {profile.method}" in report


@pytest.mark.parametrize(
    ("family", "name", "shift"),
    [("sd3", "pcm_deterministic_4step_shift1", 1.0), ("wan", "lightx2v_T2V_14B_rank64", 5.0),
     ("flux", "Qwen-Image-Lightning-4steps-V2.0", 3.0), ("ltxv", "flux1-schnell-lora", 1.0)],
)  # fmt: skip
def test_shift_is_patched_on_a_clone_and_said(host, zoo, family, name, shift):
    model, h = zoo[family].model, nodes_host
    before = h.flow_shift(model)
    loaded, report = load(host, model, put(host, model, name))
    assert h.flow_shift(loaded) == pytest.approx(shift) and h.flow_shift(model) == before
    assert f"The model's shift was {before:.4g}" in report
    table = torch.tensor(h.sigma_table(loaded).sigmas)
    u = torch.arange(1, len(table) + 1) / len(table)
    assert torch.allclose(table, shift * u / (1 + (shift - 1) * u), atol=1e-6)
    assert (
        type(loaded.get_model_object("model_sampling")).__bases__
        == type(model.get_model_object("model_sampling")).__bases__
    )


def test_strength_one_means_what_the_authors_intend(host, zoo):
    model, key = zoo["flux"].model, weights(zoo["flux"].model)[0]
    full, _ = load(host, model, put(host, model, "plain_style"))
    hyper, report = load(host, model, put(host, model, "Hyper-FLUX.1-dev-8steps-lora"))
    assert torch.allclose(change(host, model, hyper, key), change(host, model, full, key) * 0.125, atol=1e-6)
    assert "strength 1 x 0.125" in report
    half, report = load(host, model, put(host, model, "Hyper-FLUX.1-dev-8steps-lora"), strength=0.125)
    assert torch.allclose(change(host, model, half, key), change(host, model, full, key) / 64, atol=1e-6)
    assert "comes on top" in report


def test_wan22_lightning_without_alpha_is_an_eighth(host, zoo):
    model, key, name = zoo["wan"].model, weights(zoo["wan"].model)[0], "wan2.2_t2v_lightx2v_4steps_lora_high_noise"
    with_alpha, _ = load(host, model, put(host, model, name, alpha=2.0))
    without, report = load(host, model, put(host, model, name))
    assert torch.allclose(change(host, model, without, key) * 8, change(host, model, with_alpha, key), atol=1e-6)
    assert "the file has no alpha" in report


@pytest.mark.parametrize("strength", [0.5, -1.0, 2.0])
def test_strength_scales(host, zoo, strength):
    model, key, name = zoo["sd3"].model, weights(zoo["sd3"].model)[0], put(host, zoo["sd3"].model, "plain_style")
    one, _ = load(host, model, name)
    other, _ = load(host, model, name, strength=strength)
    assert torch.allclose(change(host, model, other, key), change(host, model, one, key) * strength, atol=1e-6)


def test_a_one_call_family_starts_where_its_timestep_says(host, zoo):
    """Its timestep is looked up in the model's own table; a shift means nothing to a model without one."""
    model, h = zoo["sdxl"].model, nodes_host
    loaded, report = load(host, model, put(host, model, "dmd2_sdxl_1step_lora"))
    assert h.profile_of(loaded).sigmas == (pytest.approx(1.160578, abs=1e-4), 0.0) and "sigmas: 1.16" in report
    metadata = {"pcm_phases": "2", "pcm_shift": "3.0"}
    loaded, report = load(host, model, put(host, model, "shifted", metadata=metadata))
    assert h.profile_of(loaded).shift is None and "shift: " not in report


def test_demo_metadata_configures_everything(host, zoo):
    model = zoo["sd3"].model
    metadata = {"pcm_phases": "8", "pcm_spacing": "aligned", "pcm_grid": "40", "pcm_cfg": "1.0", "pcm_shift": "3.0"}
    loaded, report = load(host, model, put(host, model, "whatever", metadata=metadata))
    profile = nodes_host.profile_of(loaded)
    assert (profile.phases, profile.spacing, profile.grid, profile.steps) == (8, "aligned", 40, 8)
    assert "phases: 8 (metadata)" in report
    assert host.call("PCMPhaseScheduler", model=loaded)[0].shape == (9,)


# Stacking


def test_other_loras_keep_the_settings_in_either_order(host, zoo):
    model, h = zoo["sd3"].model, nodes_host
    pcm, style = put(host, model, "pcm_deterministic_4step_shift3"), put(host, model, "my_style_lora", value=0.2)
    first, _ = load(host, model, pcm)
    both, report = load(host, first, style)
    assert h.profile_of(both).method == "PCM" and "stay in force" in report
    (stock,) = host.call("LoraLoaderModelOnly", model=both, lora_name=style, strength_model=0.5)
    assert h.profile_of(stock).phases == 4
    after, _ = load(host, load(host, model, style)[0], pcm)
    assert h.profile_of(after).phases == 4
    key = weights(model)[0]
    assert torch.allclose(change(host, model, both, key), change(host, model, after, key), atol=1e-6)
    unknown, report = load(host, model, style)
    assert h.profile_of(unknown) is None and "profile: unknown" in report


def test_a_second_pcm_lora_explains_itself(host, zoo, error):
    model = zoo["sd3"].model
    first, _ = load(host, model, put(host, model, "pcm_deterministic_4step_shift3"))
    with pytest.raises(error, match=r"already carries one of PCM.*one few-step LoRA per model"):
        load(host, first, put(host, model, "Hyper-SD3-8steps-CFG-lora"))


# What it refuses


def test_wrong_family_names_both(host, zoo, error):
    name = put(host, zoo["sdxl"].model, "pcm_sdxl_smallcfg_4step", count=40)
    for partial in (False, True):
        with pytest.raises(error, match=r"LoRA for SDXL; the model is Stable Diffusion 1\.5"):
            load(host, zoo["sd15"].model, name, allow_partial=partial)


def test_incomplete_is_refused_or_said(host, zoo, error):
    model = zoo["sd3"].model
    name = put(host, model, "plain_style")
    path = host.base / "models" / "loras" / name
    from safetensors.torch import load_file

    extra = {"diffusion_model.joint_blocks.77.x_block.attn.proj.lora_up.weight": torch.ones(4, 2),
             "diffusion_model.joint_blocks.77.x_block.attn.proj.lora_down.weight": torch.ones(2, 4)}  # fmt: skip
    save_file({**{k: v.clone() for k, v in load_file(path).items()}, **extra}, path)
    with pytest.raises(error, match=r"only 4 of 6 tensors fit.*joint_blocks\.77"):
        load(host, model, name)
    _, report = load(host, model, name, allow_partial=True)
    assert "4 of 6 applied" in report and "missing blocks: diffusion_model.joint_blocks.77" in report


@pytest.mark.parametrize("name", ["perflow-sd15"])
def test_families_without_a_sigma_list_are_refused(host, zoo, error, name):
    with pytest.raises(error, match=r"Use the|cannot sample"):
        load(host, zoo["sd15"].model, put(host, zoo["sd15"].model, name))


def test_a_lora_of_a_rectified_flow_brings_its_sampling_object(host, zoo):
    model, _ = load(host, zoo["sd15"].model, put(host, zoo["sd15"].model, "instaflow_lora"))
    assert host.pack("nodes.host").is_flow(model)


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "/etc/passwd", "missing.safetensors", "a\\..\\b.safetensors", ""]
)
def test_paths_outside_the_folder(host, zoo, error, name):
    (host.base / "models" / "secret.safetensors").write_bytes(b"x")
    with pytest.raises(error, match="There is no LoRA"):
        load(host, zoo["sd3"].model, name)


@pytest.mark.parametrize("name", ["old.ckpt", "old.pt"])
def test_pickles_are_neither_listed_nor_opened(host, zoo, error, name):
    folder = host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.ones(1)}, folder / name)
    assert name not in host_lora.lora_names()
    with pytest.raises(error, match=r"a \.safetensors file"):
        load(host, zoo["sd3"].model, name)


def test_checkpoint_text_only_and_truncated(host, zoo, error):
    folder = host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"model.diffusion_model.out.2.weight": torch.ones(2, 2)}, folder / "full.safetensors")
    save_file({"lora_te1_x.lora_up.weight": torch.ones(2, 2)}, folder / "text.safetensors")
    whole = (folder / "full.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) - 8])
    for name, message in (("full", "whole model"), ("text", "text encoders only"), ("half", "damaged")):
        with pytest.raises(error, match=message):
            load(host, zoo["sd3"].model, f"{name}.safetensors")


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_strength_must_be_a_number(host, zoo, error, strength):
    with pytest.raises(error, match="strength"):
        load(host, zoo["sd3"].model, put(host, zoo["sd3"].model, "plain_style"), strength=strength)


# Around it


def test_a_changed_file_reruns_the_node(host, zoo):
    name = put(host, zoo["sd3"].model, "changing")
    node, path = host.node("PCMLoraLoader"), host.base / "models" / "loras" / name
    first = node.fingerprint_inputs(lora_name=name, strength=1.0, allow_partial=False)
    assert node.fingerprint_inputs(lora_name=name, strength=1.0, allow_partial=False) == first
    os.utime(path, ns=(1, 1))
    assert node.fingerprint_inputs(lora_name=name, strength=1.0, allow_partial=False) != first


def test_the_model_given_is_left_as_it_was(host, zoo):
    model = zoo["sd3"].model
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    load(host, model, put(host, model, "pcm_deterministic_4step_shift1"))
    assert not model.patches and nodes_host.profile_of(model) is None
    assert all(torch.equal(before[key], value) for key, value in model.model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "name", "said"),
    [
        ("wan", "wan2.2_t2v_lightx2v_4steps_lora_v1_high_noise", ""),
        ("wan", "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise", "image-to-video on a model for text-to-video"),
        ("wan_i2v", "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise", ""),  # the host calls this model t2v
        ("wan_i2v", "wan2.2_t2v_lightx2v_4steps_lora_v1_high_noise", "text-to-video on a model for image-to-video"),
        ("wan22", "Wan2_2_5B_i2v_lightx2v_low_noise", ""),  # takes an image or none
        ("hunyuan_i2v", "hyvideo_FastVideo_t2v_LoRA", "text-to-video on a model for image-to-video"),
        ("hunyuan_video15", "hunyuanvideo1.5_480p_i2v_step_distilled_fp16", ""),
        ("v_zsnr", "pcm_sd15_smallcfg_4step", "zero terminal SNR (sigma up to 4519)"),
        ("v", "pcm_sd15_smallcfg_4step", ""),
    ],
)  # fmt: skip
def test_a_lora_on_the_wrong_model_is_said(host, zoo, family, name, said):
    _, report = load(host, zoo[family].model, put(host, zoo[family].model, name))
    wrong = [line for line in report.splitlines() if "on a model for" in line or "terminal SNR" in line]
    assert len(wrong) == bool(said) and said in "".join(wrong)


def test_an_update_the_host_leaves_out_is_an_error(host, zoo, error, monkeypatch):
    model = zoo["sd3"].model
    name = put(host, model, "plain_style")
    monkeypatch.setattr(type(model), "add_patches", lambda *_, **__: [])
    with pytest.raises(error, match=r"host left .* out.*Please report"):
        load(host, model, name)


def test_a_patched_50_entry_table_is_named(host, zoo, error):
    """ModelSamplingDiscrete (lcm) with DMD2 moves every timestep."""
    model = zoo["sd15"].model
    loaded, _ = load(host, model, put(host, model, "dmd2_sd15"))
    (patched,) = host.call("ModelSamplingDiscrete", model=loaded, sampling="lcm", zsnr=False)
    with pytest.raises(error, match="50 entries"):
        host.call("PCMPhaseScheduler", model=patched)


def test_mistakes_are_logged_when_sampling(host, zoo, caplog):
    tiny = zoo["sd15"]
    loaded, _ = load(host, tiny.model, put(host, tiny.model, "pcm_sd15_smallcfg_4step"))
    (sigmas,) = host.call("BasicScheduler", model=loaded, scheduler="karras", steps=4, denoise=1.0)
    host.call(
        "SamplerCustom", model=loaded, add_noise=True, noise_seed=0, cfg=7.5, positive=tiny.positive,
        negative=tiny.negative, sampler=host.call("SamplerPCM")[0], sigmas=sigmas, latent_image=tiny.latent(),
    )  # fmt: skip
    assert "cfg is 7.5, and PCM is made for 1 to 2" in caplog.text
    assert "off those PCM is made for" in caplog.text


def test_the_whole_prompt_runs(host, zoo):
    """Through the executor, with the report as text and the profile used by the sampler."""
    tiny = zoo["sd3"]
    name = put(host, tiny.model, "pcm_deterministic_4step_shift3")
    loaded, _ = load(host, tiny.model, name)
    latent, *_ = host.call(
        "PCMSampler", model=loaded, positive=tiny.positive, negative=tiny.negative, latent_image=tiny.latent(), seed=0
    )
    assert torch.isfinite(latent["samples"]).all()
