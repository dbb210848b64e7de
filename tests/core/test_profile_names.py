"""The names that people's copies of the released files have, and names that only look like them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pcm_core.profiles import PCMProfile, lookup, profile_from_name
from pcm_core.profiles.lookup import Kind

# How quantizers, repacks, folders and hands change a name.
COPIES: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "fp8": lambda name: f"{name}_fp8_e4m3fn",
    "fp8 scaled": lambda name: f"{name}_fp8_scaled",
    "fp8, Kijai": lambda name: f"{name}_fp8_e5m2_scaled_KJ",
    "fp8, fast": lambda name: f"{name}-fp8_e4m3fn_fast",
    "fp8, LTX": lambda name: f"{name}_tensorcorefp8",
    "fp8 mixed": lambda name: f"{name}_fp8mixed",
    "nvfp4": lambda name: f"{name}_nvfp4",
    "mxfp8": lambda name: f"{name}_mxfp8",
    "int8": lambda name: f"{name}_int8_convrot",
    "bitsandbytes": lambda name: f"{name}-bnb-nf4",
    "Nunchaku int4": lambda name: f"svdq-int4_r32-{name}",
    "Nunchaku fp4": lambda name: f"svdq-fp4_r128-{name}",
    "GGUF K": lambda name: f"{name}-Q4_K_M.gguf",
    "GGUF Q8": lambda name: f"{name}_Q8_0.gguf",
    "GGUF IQ": lambda name: f"{name}-IQ4_XS.gguf",
    "GGUF, unsloth": lambda name: f"{name}-UD-Q4_K_XL.gguf",
    "GGUF bf16": lambda name: f"{name}-BF16.gguf",
    "version": lambda name: f"{name}_v2.safetensors",
    "release": lambda name: f"{name}-V1.1",
    "rank": lambda name: f"{name}_rank_64_bf16",
    "for ComfyUI": lambda name: f"{name}_comfyui",
    "pruned": lambda name: f"{name}_pruned",
    "downloaded again": lambda name: f"{name} (1).safetensors",
    "copied": lambda name: f"{name} - Copy.safetensors",
    "folder": lambda name: f"models/style_things/{name}.safetensors",
    "folder of Windows": lambda name: f"loras\\turbo\\{name}.safetensors",
    "spaces": lambda name: name.replace("_", " "),
    "underscores": lambda name: name.replace("-", "_"),
}
# Files as others publish them.
PUBLISHED: list[tuple[str, Kind, str, int]] = [
    ("svdq-int4_r32-qwen-image-lightningv1.0-4steps.safetensors", "checkpoint", "Qwen-Image-Lightning", 4),
    ("svdq-fp4_r128-qwen-image-edit-2509-lightningv2.0-8steps.safetensors", "checkpoint", "Qwen-Image-Lightning", 8),
    (
        "svdq-int4_r128-qwen-image-edit-2509-lightning-4steps-251115.sft",
        "checkpoint",
        "Qwen-Image-Lightning",
        4,
    ),
    ("svdq-int4_r32-flux.1-schnell.safetensors", "checkpoint", "FLUX-schnell", 4),
    ("svdq-fp4_r32-z-image-turbo.safetensors", "checkpoint", "Z-Image-Turbo", 8),
    ("qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning_comfyui_4steps_v1.0", "checkpoint", "Qwen-Image-Lightning", 4),
    ("Qwen-Image-fp8-e4m3fn-Lightning-4steps-V1.0-fp32.safetensors", "checkpoint", "Qwen-Image-Lightning", 4),
    ("FLUX.2-klein-4B-Q5_K_S.gguf", "checkpoint", "FLUX.2-klein", 4),
    ("flux2Klein_9b.safetensors", "checkpoint", "FLUX.2-klein", 4),
    ("zImageTurbo_v10.safetensors", "checkpoint", "Z-Image-Turbo", 8),
    ("krea2Turbo_fp8.safetensors", "checkpoint", "Krea2-Turbo", 8),
    ("hidream-i1-fast-Q4_K_M.gguf", "checkpoint", "HiDream-I1", 16),
    ("ltx-2.3-22b-distilled_transformer_only_fp8_scaled.safetensors", "checkpoint", "LTX-2-distilled", 8),
    ("Wan2_2-I2V-A14B-HIGH_4_steps_lora_rank64_Seko_V1_forKJ.safetensors", "lora", "LightX2V-Wan2.2", 4),
    ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", "lora", "LightX2V-Wan2.1", 4),
    ("acestep-v15-turbo.safetensors", "checkpoint", "ACE-Step-1.5-Turbo", 8),
    ("flash-sdxl/pytorch_lora_weights.safetensors", "lora", "FlashDiffusion", 4),
]
# Styles, characters, edits and tools for few-step models, and words that methods happen to be called by.
NOT_FEW_STEP = [
    "z_image_turbo_x-ray", "camera-flash-sdxl-lora", "direct_flash_sd15", "zimageturbo_ghibli_v2",
    "lightning_bolts_sdxl",
    "krea2_turbo_film_look", "flux2turbo_portrait_v3", "anima-turbo-nsfw-look", "flux-schnell-ghibli-lora",
    "ltx-2.3-22b-distilled-anime-style", "ltx-2-19b-distilled-ic-lora-detailer", "ltx-2-19b-lora-camera-control-static",
    "Qwen-Image-Edit-2511-Lightning-4steps-character-sheet", "hyper_detail_slider_sdxl", "turbo_engine_cars_flux",
    "wan2.2_lightning_style_high_noise", "wan2.2_i2v_high_noise_orbit_shot", "fast_food_sdxl", "hidream_dev_sketch",
    "lens_flare_turbo_sdxl", "klein_blue_flux2", "flux2-klein-pixel-art",
]  # fmt: skip


def released() -> list[tuple[str, Kind]]:
    """Every released file of the table, as each kind of file that its row names."""
    found: list[tuple[str, Kind]] = []
    for row in lookup.table()["methods"]:
        kinds: tuple[Kind, ...] = ("lora", "checkpoint") if row["kind"] == "either" else (row["kind"],)
        names: list[str] = [*row.get("files", ()), *row.get("choices", {}).values()]
        for name in dict.fromkeys(names):
            found.extend((name, kind) for kind in kinds)
    return found


def settings(name: str, kind: Kind) -> PCMProfile | None:
    found = profile_from_name(name, kind)
    return None if found is None else replace(found, sources={})


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_a_released_file_has_its_settings(copy: str):
    files = released()
    assert len(files) > 180
    other = [name for name, kind in files if settings(COPIES[copy](name), kind) != settings(name, kind)]
    assert other == []


@pytest.mark.parametrize(("name", "kind", "method", "steps"), PUBLISHED)
def test_files_as_others_publish_them(name: str, kind: Kind, method: str, steps: int):
    found = profile_from_name(name, kind)
    assert found is not None and (found.method, found.steps) == (method, steps)


@pytest.mark.parametrize("name", NOT_FEW_STEP)
def test_what_only_looks_like_it_is_none(name: str):
    for path in (name, f"loras/{name}.safetensors", f"{name}_rank_32_bf16", name.upper(), f"turbo\\{name}.safetensors"):
        assert profile_from_name(path) is None, path


@pytest.mark.parametrize("word", ["lightning", "turbo", "lcm", "hyper"])
def test_a_merge_is_recognized_as_a_checkpoint_only_and_says_so(word: str):
    for name in (f"dreamMergeXL_{word}", f"dreamMergeXL_v3-{word}_fp16", f"merges\\dreamMergeXL_{word}.safetensors"):
        assert profile_from_name(name) is None
        found = profile_from_name(name, "checkpoint")
        assert found is not None and found.base_model == "sdxl" and "merge" in found.method.lower(), name
        assert not found.verified and "A merge" in found.note
