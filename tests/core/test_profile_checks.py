"""Every known mistake produces one line, and correct settings produce none."""

from __future__ import annotations

import pytest

from pcm_core.errors import PCMError
from pcm_core.plan import plan
from pcm_core.profiles import profile_from_metadata, profile_from_name, profile_to_metadata
from pcm_core.profiles.advice import ModelFacts, loading_mistakes, sampling_mistakes, schedule_mistakes
from pcm_core.sigma_table import SigmaTable

HIGH = ModelFacts(file="wan2.2_t2v_high_noise_14B_fp8.safetensors", image_input=False)
IMAGE = ModelFacts(file="wan2.1_i2v_480p.safetensors", image_input=True)
EIGHT = (999, 874, 749, 624, 499, 374, 249, 124)


def of(name):
    profile = profile_from_name(name, None)
    assert profile is not None
    return profile


def mistakes(profile, sigmas, table, *, cfg=1.0, determinism=None):
    """As reported by a sampler whose sigmas come from another node."""
    try:
        own = plan(profile, table, steps=0 if profile.exact_steps else len(sigmas) - 1).sigmas.tolist()
    except PCMError:
        own = None
    found = sampling_mistakes(profile, table, cfg=cfg, determinism=determinism)
    return found + schedule_mistakes(profile, sigmas, table, own)


def shifted(shift, us):
    return [shift * u / (1 + (shift - 1) * u) for u in us]


LOADING = [
    ("sdxl_lightning_4step_lora", "sd15", ModelFacts(base_model="sd15"), 1.0, "name says SDXL, the tensors are"),
    ("wan2.2_t2v_lightx2v_4steps_lora_v1_low_noise", "wan", HIGH, 1.0,
     "for the low-noise expert"),
    ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32", "wan", HIGH, 1.0,
     "weak on the high-noise model"),
    ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32", "wan", IMAGE, 1.0,
     "for text-to-video on a model for image-to-video"),
    ("lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16", "wan", ModelFacts(image_input=False), 1.0,
     "for image-to-video on a model for text-to-video"),
    ("Qwen-Image-Lightning-4steps-V1.0-bf16", "qwen-image", ModelFacts(dtype="float8_e4m3fn"), 1.0, "shows a grid"),
    ("Hyper-FLUX.1-dev-8steps-lora", "flux1", ModelFacts(), 0.125, "comes on top"),
    ("pcm_sdxl_smallcfg_4step", "sdxl", ModelFacts(sigma_max=4518.76), 1.0, "zero terminal SNR (sigma up to 4519)"),
]  # fmt: skip


@pytest.mark.parametrize("row", LOADING, ids=lambda row: row[-1])
def test_loading(row):
    name, family, model, strength, message = row
    (found,) = loading_mistakes(of(name), name, family, model, strength)
    assert message in found and "\n" not in found


@pytest.mark.parametrize(
    ("name", "family", "model"),
    [
        ("pcm_sdxl_smallcfg_4step", "sdxl", ModelFacts(base_model="sdxl", file="sd_xl_base_1.0.safetensors")),
        ("wan2.2_t2v_lightx2v_4steps_lora_v1_high_noise", "wan", HIGH),
        ("lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16", "wan", IMAGE),
        ("Qwen-Image-Lightning-4steps-V1.0-bf16", "qwen-image", ModelFacts(dtype="bfloat16")),
    ],
)  # fmt: skip
def test_loading_as_intended(name, family, model):
    assert loading_mistakes(of(name), name, family, model, 1.0) == []


SAMPLING = [
    ("sdxl_lightning_4step_lora", (999, 749, 499, 249), 7.0, "cfg is 7"),
    ("pcm_sdxl_normalcfg_8step", EIGHT, 1.0, "made for 3 to 6: prompts count"),
    ("sdxl_lightning_4step_lora", EIGHT, 1.0, "8 steps, and SDXL-Lightning is made for exactly 4"),
    ("pcm_sdxl_smallcfg_4step", (999, 687, 146, 1), 1.0, "% off those PCM"),  # karras
    ("dmd2_sdxl_4step_lora", (999, 759, 499, 259), 1.0, "% off those DMD2"),  # the LCM grid
    ("lcm-lora-sdxl", (999, 666, 333, 0), 1.0, "% off those LCM-LoRA"),  # normal
]  # fmt: skip


@pytest.mark.parametrize("row", SAMPLING, ids=lambda row: row[-1])
def test_sampling(row, sd_table):
    name, timesteps, cfg, message = row
    sigmas = [float(sd_table[t]) for t in timesteps] + [0.0]
    (found,) = mistakes(of(name), sigmas, SigmaTable.of(sd_table), cfg=cfg)
    assert message in found and "\n" not in found


def test_determinism_against_the_family(sd_table):
    lcm, table = of("lcm-lora-sdxl"), SigmaTable.of(sd_table)
    own = lcm.schedule().sigmas(sd_table).tolist()
    (found,) = mistakes(lcm, own, table, determinism=1.0)
    assert found == "determinism is 1, and LCM-LoRA is made for 0, new noise in every step."
    assert mistakes(lcm, own, table, determinism=0.0) == []


def test_zero_terminal_snr(sd_table):
    """Reported for a table patched after loading too, but not for a LoRA with metadata of its own."""
    table = SigmaTable((*sd_table.tolist()[:-1], 4518.76), flow=False)
    pcm, part = of("pcm_sd15_smallcfg_4step"), [2.3, 1.61, 0.0]
    (found,) = mistakes(pcm, part, table)
    assert found == "The model has zero terminal SNR (sigma up to 4519); PCM was trained without."
    own = profile_from_metadata(profile_to_metadata(pcm))
    assert own is not None and mistakes(own, part, table) == []


def test_wrong_shift_and_lists():
    quarters = (1, 0.75, 0.5, 0.25, 0)
    lightx2v = of("wan2.1_t2v_14b_lora_rank64_lightx2v_4step")
    at_8, at_5 = SigmaTable.shifted_flow(8), SigmaTable.shifted_flow(5)
    found = mistakes(lightx2v, shifted(8, quarters), at_8)
    assert found == ["The model's shift is 8, and LightX2V-Wan2.1 is made for 5."]
    assert mistakes(lightx2v, shifted(5, quarters), at_5) == []
    found = mistakes(of("ltx-2-19b-distilled-lora-384"), shifted(5, quarters), at_5)
    assert found == ["4 steps, and LTX-2-distilled is made for exactly 8."]
    nine = shifted(3, [1 - i / 9 for i in range(10)])
    (found,) = mistakes(of("z_image_turbo_bf16"), nine, SigmaTable.shifted_flow(3))
    assert "idle call" in found


def test_part_of_a_schedule_is_no_mistake(sd_table):
    """KSamplerAdvanced with and without leftover noise, SplitSigmas, second passes, RegionalSampler's single steps."""
    profile, table = of("pcm_sdxl_smallcfg_4step"), SigmaTable.of(sd_table)
    own = plan(profile, table).sigmas.tolist()
    parts = [own[:3], [*own[:2], 0.0], own[2:], own[:2], own[1:3], [2.3, 1.61, 0.693, 0.0], []]
    assert [mistakes(profile, part, table) for part in parts] == [[]] * len(parts)
    # What only looks like one: a schedule of fewer steps.
    for other in ([own[0], 0.0], [own[0], own[2], 0.0]):
        (found,) = mistakes(profile, other, table)
        assert f"{len(other) - 1} steps, and PCM is made for exactly 4" in found


@pytest.mark.parametrize(
    "name",
    ["pcm_sd15_smallcfg_8step", "lcm-lora-sdxl", "sdxl_tdd_lora_weights", "Hyper-SD15-8steps-lora", "dmd2_sdxl_1step"],
)
def test_own_settings_are_no_mistake(name, sd_table):
    profile = of(name)
    own = profile.resolved(SigmaTable.of(sd_table)).sigmas or tuple(profile.schedule().sigmas(sd_table).tolist())
    assert mistakes(profile, own, SigmaTable.of(sd_table), cfg=profile.cfg) == []


def test_many_steps_are_said_and_not_refused(sd_table):
    sigmas = [*reversed(sd_table.tolist()[::10]), 0.0]
    sigmas[0] = float(sd_table[-1])
    (found,) = mistakes(of("lcm-lora-sdxl"), sigmas, SigmaTable.of(sd_table))
    assert found == "100 steps, and LCM-LoRA is made for about 4."


@pytest.mark.parametrize("sigma_max", [25.146115, 16.0, 80.0])
def test_other_betas_are_told_by_the_end_of_the_noise(sigma_max, sd_table):
    """AnimateDiff's motion modules (25.15), in any sampler; two names that contain "linear" are the wrong ones."""
    table = SigmaTable((*sd_table.tolist()[:-1], sigma_max), flow=False)
    (found,) = sampling_mistakes(of("pcm_sd15_smallcfg_4step"), table, cfg=1.0)
    assert f"sigma {sigma_max:.4g}" in found and '"use existing"' in found
    assert sampling_mistakes(of("pcm_sd15_smallcfg_4step"), SigmaTable.of(sd_table), cfg=1.0) == []
    assert sampling_mistakes(of("AnimateLCM_sd15_t2v_lora"), table, cfg=1.5) == []
    assert sampling_mistakes(of("wan2.1_t2v_14b_lora_rank64_lightx2v_4step"), SigmaTable.shifted_flow(5), cfg=1.0) == []
