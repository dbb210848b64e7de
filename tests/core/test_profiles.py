"""Profiles: released PCM files, every few-step method in use, metadata, and names that must not match."""

from __future__ import annotations

import hashlib
import json
import re
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from pcm_core.errors import PCMError
from pcm_core.profiles import (
    PCMProfile,
    lookup,
    method_choices,
    profile_for,
    profile_from_metadata,
    profile_from_name,
    profile_of_method,
    profile_to_metadata,
)
from pcm_core.profiles.profile import SamplingClass
from pcm_core.sampling import ancestral_to_determinism
from pcm_core.sigma_table import SigmaTable

# pcm.md 4.4: name, base, phases, steps, cfg, cfg range, determinism, shift
RELEASED = [
    *[(f"pcm_{b}_smallcfg_{n}step_converted", b, n, n, 1.0, (1.0, 2.0), 1.0, None)
      for b in ("sd15", "sdxl") for n in (2, 4, 8, 16)],
    *[(f"pcm_{b}_normalcfg_{n}step_converted", b, n, n, cfg, rng, 1.0, None)
      for b in ("sd15", "sdxl")
      for n, cfg, rng in ((4, 3.0, (2.5, 3.5)), (8, 4.0, (3.0, 6.0)), (16, 5.0, (2.0, 7.5)))],
    *[(f"pcm_{b}_lcmlike_lora_converted", b, None, 4, 1.0, (1.0, 1.0), 0.0, None) for b in ("sd15", "sdxl")],
    ("pcm_deterministic_2step_shift1", "sd3", 2, 2, 1.2, (1.0, 1.5), 1.0, 1.0),
    ("pcm_deterministic_4step_shift1", "sd3", 4, 4, 1.2, (1.0, 1.5), 1.0, 1.0),
    ("pcm_deterministic_4step_shift3", "sd3", 4, 4, 1.2, (1.0, 1.5), 1.0, 3.0),
    ("pcm_stochastic_shift3", "sd3", None, 4, 1.2, (1.0, 1.5), 0.0, 3.0),
]  # fmt: skip


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row[0])
def test_released_files_by_name(row):
    name, base, phases, steps, cfg, cfg_range, determinism, shift = row
    for wild in (name, f"{name}_fp16", f"{name} (1)", name.upper(), name.replace("_", "-"), f"PCM/{name}.safetensors"):
        p = profile_from_name(wild)
        assert p is not None, wild
        assert (p.base_model, p.phases, p.steps, p.cfg, p.cfg_range) == (base, phases, steps, cfg, cfg_range), wild
        assert (p.determinism, p.shift, p.strength, p.sigmas) == (determinism, shift, 1.0, None)
        assert p.method.startswith("PCM") and p.verified and p.sources["steps"] == "file name"
        assert p.spacing == ("tcd" if "lcmlike" in name else "trailing")


@pytest.mark.parametrize(
    ("wild", "like"),
    [
        ("pcm_sdxl_smallcfg_4step", "pcm_sdxl_smallcfg_4step_converted"),
        ("PCM SDXL NormalCFG 8 Steps", "pcm_sdxl_normalcfg_8step_converted"),
        ("sdxl_pcm_4steps_small_cfg", "pcm_sdxl_smallcfg_4step_converted"),
        ("pcm-sd1.5-normalcfg-16step", "pcm_sd15_normalcfg_16step_converted"),
        ("phased_pcm_sdxl_lcm_like", "pcm_sdxl_lcmlike_lora_converted"),
        ("pdm_stochastic_shift3", "pcm_stochastic_shift3"),
        ("pcm_2step_deterministic_shift1", "pcm_deterministic_2step_shift1"),
    ],
)
def test_renamed_copies(wild, like):
    assert profile_from_name(wild) == profile_from_name(like)


SHA = {
    "8a45878e": "pcm_deterministic_2step_shift1", "9444a5ce": "pcm_deterministic_4step_shift1",
    "e365902c": "pcm_deterministic_4step_shift3", "3550fa01": "pcm_stochastic_shift3",
    "9f7f13bb": "pcm_sdxl_normalcfg_4step_converted", "7f04ba89": "pcm_sdxl_normalcfg_8step_converted",
    "7eb353b2": "pcm_sdxl_normalcfg_16step_converted", "56ed9dc9": "pcm_sdxl_smallcfg_8step_converted",
    "3442eff2": "pcm_sdxl_smallcfg_16step_converted", "0365f610": "pcm_sdxl_lcmlike_lora_converted",
    "4c5f27a7": "pcm_sd15_smallcfg_2step_converted", "29278bc8": "pcm_sd15_smallcfg_4step_converted",
    "41a7f0b9": "pcm_sd15_smallcfg_8step_converted", "c7ac2fa3": "pcm_sd15_smallcfg_16step_converted",
    "fa6acb94": "pcm_sd15_normalcfg_4step_converted", "8f605ffd": "pcm_sd15_normalcfg_16step_converted",
}  # fmt: skip


def test_released_files_by_checksum():
    for prefix, name in SHA.items():
        assert lookup.released_name(prefix + "0" * 56) == name
        assert profile_from_name(name) is not None
    assert lookup.released_name("00" * 32) is None
    assert len(lookup.table()["files"]) == len(SHA)


def test_a_released_file_under_another_name_is_hashed_once(tmp_path, monkeypatch):
    path = tmp_path / "my_favourite.safetensors"
    save_file({"a.lora_up.weight": torch.ones(2, 2)}, path)
    digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    table = dict(lookup.table()) | {
        "files": [{"sha256": digest[:8], "name": "pcm_sdxl_smallcfg_8step_converted"}], "sizes": {"sdxl": [size, size]}
    }  # fmt: skip
    monkeypatch.setattr(lookup, "table", lambda: table)
    lookup._checksum_name.cache_clear()
    profile = profile_for(path)
    assert (profile.phases, profile.base_model, profile.sources["phases"]) == (8, "sdxl", "sha256")
    assert profile_for(path) == profile and lookup._checksum_name.cache_info().misses == 1
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert not profile_for(path).known
    table["sizes"] = {}
    assert not profile_for(path).known and lookup._checksum_name.cache_info().misses == 2


# fewstep.md 6.3
NAMES = {
    "Hyper-SDXL-8steps-CFG-lora": "Hyper-SD-CFG", "Hyper-SD15-1step-lora": "Hyper-SD-unified",
    "Hyper-SDXL-1step-Unet-Comfyui.fp16": "Hyper-SDXL-1step-UNet", "sdxl_lightning_4step_lora": "SDXL-Lightning",
    "dmd2_sdxl_4step_lora_fp16": "DMD2", "DMD2_sdxl_pytorch_model": "DMD2", "lcm-lora-sdxl": "LCM-LoRA",
    "LCM_sdxl": "LCM-LoRA", "Wan2.2-Lightning_T2V-v1.1-A14B-4steps-lora_HIGH_fp16": "LightX2V-Wan2.2",
    "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise": "LightX2V-Wan2.2",
    "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/high_noise_model": "LightX2V-Wan2.2",
    "Wan_2_2_I2V_A14B_HIGH_lightx2v_4step_lora_260412_rank_64_fp16": "LightX2V-Wan2.2",
    "Wan22_A14B_T2V_LOW_Lightning_4steps_lora_250928_rank64_fp16": "LightX2V-Wan2.2",
    "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16": "LightX2V-Wan2.1",
    "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32": "LightX2V-Wan2.1",
    "Wan21_CausVid_14B_T2V_lora_rank32_v2": "CausVid-14B",
    "ltx-2.3-22b-distilled-lora-384-1.1": "LTX-2-distilled",
    "ltx-2.5-22b-distilled-lora-450_bf16": "LTX-2.5-distilled",
    "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16": "Qwen-Image-Lightning",
    "pcm_sdxl_smallcfg_4step_converted": "PCM",
    # other methods that the document names
    "Hyper-SD15-8steps-lora": "Hyper-SD", "Hyper-SD3-4steps-CFG-lora": "Hyper-SD3",
    "Hyper-FLUX.1-dev-8steps-lora": "Hyper-FLUX", "flux.1-turbo-alpha-lora": "FLUX.1-Turbo-Alpha",
    "lora_sd3.5m_turbo_8steps": "TensorArt-SD3.5M-Turbo", "TensorArt-SD3.5-Large-TurboX": "TensorArt-TurboX",
    "TDD-FLUX.1-dev-lora-beta": "TDD-FLUX", "sdxl_tdd_lora_weights": "TDD", "hyvideo_FastVideo_LoRA-fp8": "FastHunyuan",
    "FastWan_T2V_14B_480p_lora_rank_64_bf16": "FastWan", "sd_xl_turbo_1.0_fp16": "SD-Turbo",
    "animatediff_lightning_4step_comfyui": "AnimateDiff-Lightning", "AnimateLCM_sd15_t2v_lora": "AnimateLCM",
    "rCM_Wan2.1_T2V_14B_720p": "rCM", "z_image_turbo_bf16": "Z-Image-Turbo", "TCD-SDXL-lora": "TCD",
    "ltxv-13b-0.9.8-distilled": "LTXV-0.9.8-distilled",
    "Wuli-Qwen-Image-2512-Turbo-LoRA-2steps-V1.0-bf16": "Qwen-Wuli-Turbo",
}  # fmt: skip
STRANGERS = [
    # faults.md 15 and 16, and styles for turbo models
    "pixel_art_style_z_image_turbo", "minimax_h3_fl2va_hyperflow_v1", "hyperflow_minimax_h3_8step", "lightx2v/my_style",
    "lightx2v/pytorch_lora_weights", "flux-2-klein-9b-consistency-lora", "my_flux_schnell_style",
    "Krea2_turbo_style_lora", "Qwen-Image-Edit-2509-Relight", "pcm/my_style", "z-image-turbo-style",
    "TwinFlow-Z-Image-Turbo", "spcmx_sdxl_smallcfg_4step",
    "pytorch_lora_weights", "loras/pytorch_lora_weights", "my_style_lora", "juggernautXL_lightning",
    "flux-2-klein-base-4b-fp8", "hunyuanvideo1.5_480p_t2v_cfg_distilled_fp16", "wan2.2_animate_14B_relight_lora_bf16",
    "SDXL_film_lens_turbo_style",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_method_by_name(name):
    for path in (name, f"{name}.safetensors", f"models/loras/{name}.safetensors"):
        profile = profile_from_name(path, None)
        assert profile is not None and profile.method == NAMES[name]


@pytest.mark.parametrize("name", STRANGERS)
def test_other_names_match_nothing(name):
    assert profile_from_name(name) is None


def test_experts_and_strengths():
    def of(name):
        profile = profile_from_name(name)
        assert profile is not None
        return profile

    assert of("wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise").expert == "low"
    assert of("Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/high_noise_model").expert == "high"
    assert of("Wan2.2-Lightning-4steps-HIGH").strength_no_alpha == 0.125
    for name in ("Hyper-SD3-8steps-CFG-lora", "Hyper-FLUX.1-dev-16steps-lora", "FLUX.1-dev_tdd_lora_weights"):
        assert of(name).strength == 0.125
    assert [of(f"Hyper-SD3-{n}steps-CFG-lora").cfg for n in (4, 8, 16)] == [3.0, 5.0, 7.0]
    assert of("Hyper-FLUX.1-dev-8steps-lora").embedded_guidance == 3.5
    assert not of("lora_sd3.5m_4steps").verified and of("lora_sd3.5m_4steps").steps == 4


KINDS = {"lora": ("lora",), "checkpoint": ("checkpoint",), "either": ("lora", "checkpoint")}


def test_every_released_file_is_found_by_its_own_row():
    rows = lookup.table()["methods"]
    for row in rows:
        for file in (*row.get("files", ()), *row.get("choices", {}).values()):
            for kind in KINDS[row["kind"]]:
                text = lookup.search_text(file)
                fits = (r for r in rows if kind in KINDS[r["kind"]] and lookup._pattern(r["match"]).search(text))
                assert next(fits) is row, (file, kind)


def test_every_choice_is_a_method_and_no_name_is_given_twice():
    names = [
        name
        for row in lookup.table()["methods"]
        if row["class"] != "unsupported"
        for name in row.get("choices", [row["method"]])
    ]
    choices = method_choices()
    assert sorted(names) == sorted(choices) and len(choices) > 120
    for name, file in choices.items():
        profile = profile_of_method(name)
        assert profile.known and profile.sources["method"] == "user", (name, file)
    with pytest.raises(PCMError, match="no method"):
        profile_of_method("Sharper")


def test_a_row_names_one_kind_of_file():
    assert profile_from_name("z_image_turbo_bf16") is None
    assert profile_from_name("my_z_image_turbo_merge_fp8", "checkpoint") is not None
    assert profile_from_name("lcm-lora-sdxl", "checkpoint", "sdxl") is not None  # by the row of merges
    for name in ("Krea2_Turbo_lora_rank_64_bf16", "krea2_turbo_lora_v2"):
        profile = profile_from_name(name)
        assert profile is not None and profile.method == "Krea2-Turbo", name


def test_a_checkpoint_is_looked_up_for_its_own_model():
    """Merges are SDXL or SD1.5 checkpoints; "turbo" in another model's name means nothing."""
    merge = profile_from_name("juggernautXL_lightning", "checkpoint", "sdxl")
    assert merge is not None and not merge.verified and "merge" in merge.note
    assert profile_from_name("my_turbo_thing", "checkpoint", "qwen-image") is None
    assert profile_from_name("z_image_turbo_bf16", "checkpoint", "sdxl").method == "Turbo merge"  # type: ignore[union-attr]


def test_the_folder_speaks_only_where_the_name_does_not():
    assert profile_from_name("lcm-lora-sdxl/pytorch_lora_weights") is not None
    assert profile_from_name("lcm-lora-sdxl/my_portraits") is None
    for expert in ("high", "low"):
        profile = profile_from_name(f"Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/{expert}_noise_model.safetensors")
        assert profile is not None and profile.expert == expert


@pytest.mark.parametrize(
    ("name", "steps", "shift"),
    [
        ("minimax_h3_fl2v_turbo_8step_v1.0_comfyui_bf16", 8, 12),
        ("minimax_h3_ref2v_turbo_4step_v0.1_comfyui_bf16", 4, 12),
        ("minimax_h3_fl2v_lightx2v_turbo_4step_v0.1_comfy", 4, 12),
        ("lightx2v/minimax_h3_fl2v_turbo_4step_v1.2_768p_comfyui_bf16", 4, 6),
        ("minimax_h3_ref2v_turbo_8step_v1.0_768p_comfyui_bf16", 8, 6),
    ],
)
def test_minimax_h3_by_file(name, steps, shift):
    profile = profile_from_name(name)
    assert profile is not None
    assert (profile.method, profile.steps, profile.shift, profile.audio_shift) == ("MiniMax-H3-Turbo", steps, shift, 3)


# fewstep.md 1 and pcm.md 1.1: timesteps of variance exploding families
@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("pcm_sdxl_smallcfg_4step", (999, 749, 499, 249)),
        ("Hyper-SDXL-8steps-lora", (999, 874, 749, 624, 499, 374, 249, 124)),
        ("sdxl_lightning_4step_lora", (999, 749, 499, 249)),
        ("dmd2_sdxl_4step_lora", (999, 749, 499, 249)),
        ("lcm-lora-sdv1-5", (999, 759, 499, 259)),
        ("TCD-SD15-LoRA", (999, 759, 499, 259)),
        ("sdxl_tdd_lora_weights", (999, 751, 499, 251)),
        ("AnimateLCM_sd15_t2v_lora", (999, 749, 499, 249)),
        ("FlashSDXL", (999, 759, 499, 259)),
        ("Hyper-SDXL-12steps-CFG-lora", (999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82)),
    ],
)
def test_timesteps(name, timesteps):
    profile = profile_from_name(name)
    assert profile is not None and profile.sigmas is None
    assert profile.schedule().timesteps == timesteps


@pytest.mark.parametrize(
    ("name", "first"), [("Hyper-SDXL-1step-Unet", 5.111027), ("dmd2_sdxl_1step_unet_fp16", 1.160578)]
)
def test_single_calls_below_pure_noise(name, first, sd_table):
    profile = profile_from_name(name, "checkpoint")
    assert profile is not None
    assert profile.resolved(SigmaTable.of(sd_table)).sigmas == (pytest.approx(first, rel=1e-5), 0.0)


def test_equal_parts_of_a_fixed_list_method_follow_the_model(sd_table):
    """A fixed method can be asked for any number of steps; integer timesteps cannot express 1000 / 15."""
    shift = 3.158
    fine = torch.arange(1, 10001, dtype=torch.float64) / 10000
    table = SigmaTable.of(shift * fine / (1 + (shift - 1) * fine))
    distill = profile_from_name("qwen_image_distill_full_bf16", "checkpoint")
    assert distill is not None and distill.sigmas is None
    for steps in (0, 12):
        count = steps or 15
        exact = [shift * k / (count + (shift - 1) * k) for k in range(count, -1, -1)]
        resolved = distill.resolved(table, steps)
        assert resolved.sigmas == pytest.approx(exact, abs=1e-6) and resolved.steps == count
    for steps in (10, -1, 1000):  # exact as timesteps, or for the schedule to refuse
        assert distill.resolved(table, steps) is distill
    phased = profile_from_name("Hyper-SDXL-12steps-CFG-lora")
    assert phased is not None and phased.resolved(SigmaTable.of(sd_table)) is phased


def test_unsupported_methods_say_why():
    for name in (
        "perflow-sd15-delta-weights",
        "causal_forcing-framewise",
    ):
        profile = profile_from_name(name, None)
        assert profile is not None and profile.sampling_class == "unsupported" and len(profile.note) > 40


def test_the_table_is_whole():
    for row in lookup.table()["methods"]:
        assert row["source"] and isinstance(row["verified"], bool)
        assert row["class"] in get_args(SamplingClass)
        assert row["kind"] in ("lora", "checkpoint", "either")
        assert row["class"] == "unsupported" or {"steps", "sigmas", "timesteps", "levels"} & set(row)
        assert row["class"] != "unsupported" or len(row["note"]) > 40
        for sigmas in (row["sigmas"],) if "sigmas" in row else ():
            assert sigmas[-1] == 0 and sorted(sigmas, reverse=True) == sigmas and len(set(sigmas)) == len(sigmas)


# Metadata


def test_a_verified_row_names_what_its_authors_wrote():
    """A template of ComfyUI, or what users and other packs do, verifies nothing."""
    page = re.compile(r"(?:github\.com|huggingface\.co)/([\w.-]+)/|, by (?:the )?\w+")
    others = {"kijai", "deepbeepmeep", "Acly", "mcmonkeyprojects", "Comfy-Org", "comfyanonymous"}
    for row in lookup.table()["methods"]:
        owners = {found[1] for found in page.finditer(row["source"])}
        assert not row["verified"] or owners - others, (row["method"], row["source"])
        assert row["verified"] or row["source"], row["method"]


def test_metadata_of_our_distiller():
    profile = profile_from_metadata({"pcm_phases": "4", "pcm_cfg": "1.0", "pcm_spacing": "aligned", "pcm_shift": "3.0",
                                     "pcm_base_model": "demo_sd3", "pcm_loss": "x", "other": "y"})  # fmt: skip
    assert profile is not None
    assert (profile.method, profile.phases, profile.steps, profile.spacing, profile.shift) == (
        "PCM",
        4,
        4,
        "aligned",
        3.0,
    )
    assert profile.base_model == "demo_sd3" and profile.sources["phases"] == "metadata"
    like_lcm = profile_from_metadata({"pcm_phases": "1", "pcm_determinism": "0.0", "pcm_steps": "4"})
    assert like_lcm is not None
    assert (like_lcm.method, like_lcm.sampling_class, like_lcm.phases, like_lcm.steps) == (
        "LCM-like",
        "renoised",
        None,
        4,
    )
    assert profile_from_metadata({"format": "pt"}) is None


@pytest.mark.parametrize("name", [*NAMES, *[row[0] for row in RELEASED]])
def test_metadata_round_trip(name):
    profile = profile_from_name(name, None)
    assert profile is not None
    back = profile_from_metadata(json.loads(json.dumps(profile_to_metadata(profile))))
    assert back is not None
    same = {**back.__dict__, "sources": {}, "verified": profile.verified}
    assert same == {**profile.__dict__, "sources": {}}


@pytest.mark.parametrize(
    ("letter", "word"),
    [("P", "phased"), ("D", "fixed"), ("R", "renoised"), ("A", "ancestral"), ("1", "single"), ("X", "unsupported")],
)
def test_metadata_written_by_0_1_0(letter, word):
    old = {"pcm_family": "Hyper-SD", "pcm_sampling_class": letter, "pcm_steps": "4", "pcm_prediction": "eps",
           "pcm_base_model": "sdxl"}  # fmt: skip
    profile = profile_from_metadata(old)
    assert profile is not None
    assert (profile.method, profile.sampling_class, profile.base_model) == ("Hyper-SD", word, "sdxl")
    assert profile_to_metadata(profile)["pcm_method"] == "Hyper-SD"


@pytest.mark.parametrize(
    "metadata",
    [
        {"pcm_cfg": "1"}, {"pcm_phases": "four"}, {"pcm_phases": "0"}, {"pcm_phases": "1000"}, {"pcm_phases": "nan"},
        {"pcm_phases": "4", "pcm_cfg": "nan"}, {"pcm_phases": "4", "pcm_cfg": "-1"},
        {"pcm_phases": "4", "pcm_shift": "0"},
        {"pcm_phases": "4", "pcm_spacing": "linear"}, {"pcm_phases": "4", "pcm_sampling_class": "Q"},
        {"pcm_sigmas": "1,2,0"}, {"pcm_sigmas": "1"}, {"pcm_sigmas": ""}, {"pcm_phases": "4", "pcm_cfg_range": "1"},
        {"pcm_phases": "9" * 5000}, {"pcm_phases": "4", "pcm_determinism": "2"},
        {"pcm_phases": "4", "pcm_ancestral": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_broken_metadata_is_refused(metadata):
    with pytest.raises(PCMError, match="metadata"):
        profile_from_metadata(metadata)


def test_metadata_beats_the_name_and_unknown_is_an_answer(tmp_path):
    path = tmp_path / "pcm_sdxl_smallcfg_4step.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"pcm_phases": "8"})
    assert profile_for(path).phases == 8
    save_file({"a": torch.ones(1)}, path)
    assert profile_for(path).phases == 4
    other = tmp_path / "unnamed.safetensors"
    save_file({"a": torch.ones(1)}, other)
    assert profile_for(other) == PCMProfile() and not profile_for(other).known


@pytest.mark.parametrize(
    ("sigmas", "flow", "rates"),
    [  # fewstep.md 0.1
        ((14.614641, 8.302800, 5.087763, 3.321083, 0.0), False, (0.32275, 0.37549, 0.42609, 1.0)),
        ((1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0), True,
         (0.24844, 0.44072, 0.55716, 0.63349, 0.30991, 0.26993, 0.19879, 1.0)),
    ],
)  # fmt: skip
def test_ancestral_steps(sigmas, flow, rates):
    assert ancestral_to_determinism(torch.tensor(sigmas), flow=flow) == pytest.approx(rates, abs=2e-5)
