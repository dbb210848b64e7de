"""The names LoRA tensors go by: key formats, base families, and which model weight a name means.

Every trainer spells the same weight its own way: ``lora_unet_down_blocks_0_...``, ``unet.down_blocks.0...``,
``diffusion_model.input_blocks.1...``. ``canonical`` reduces a spelling to one form by dropping wrapper prefixes and
turning dots into underscores, so that the same function applied to a model's own names makes the two meet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

# PEFT may put the adapter's name before the last word: ``.lora_A.default.weight``.
_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
_ROLES = {
    "up": r"(?:\.lora_up|_lora\.up|\.lora\.up|\.lora_linear_layer\.up)\.weight|\.lora_B" + _ADAPTER,
    "down": r"(?:\.lora_down|_lora\.down|\.lora\.down|\.lora_linear_layer\.down)\.weight|\.lora_A" + _ADAPTER,
    "mid": r"\.lora_mid\.weight",
    "alpha": r"(?:\.lora)?\.alpha",
    "dora_scale": r"\.dora_scale|\.lora_magnitude_vector" + _ADAPTER,
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "set_weight": r"\.set_weight",
    "reshape_weight": r"\.reshape_weight",
    "w_norm": r"\.w_norm",
    "b_norm": r"\.b_norm",
}
# LoHa and LoKr: the host computes them, we only rename.
_OTHER = r"\.(?:hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
_ENDINGS = "|".join(f"(?P<{role}>{pattern})" for role, pattern in _ROLES.items())
# The lookahead says how every ending begins, so that the endings are tried at two places of a name and not at twenty.
_KEY = re.compile(rf"(?P<stem>.+?)(?=\.|_lora\.)(?:{_ENDINGS}|(?P<other>{_OTHER}))$")
_TEXT = re.compile(
    r"(lora_te\d?_|text_encoders?(_\d)?\.|te\d?\.|cond_stage_model\.|conditioner\.|clip_[lgh]\.|t5xxl\.)"
)
_WRAPPERS = re.compile(
    r"(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|unet\.|transformer\.|pipe\.dit\."
    r"|lora_unet_+|lora_transformer_|lora_prior_unet_|lycoris_)*"
)
# Keys of image-to-video LoRAs that a text-to-video model has no place for; leaving them out is what everyone does.
HARMLESS = re.compile(r"(^|_)(img_emb|k_img|v_img|norm_k_img|image_embedder|add_k_proj|add_v_proj|norm_added_k)(_|$)")


class Target(NamedTuple):
    """The weight a LoRA name means.

    Attributes:
        weight: name in the model's state dict.
        rows: ``(offset, length)`` if the name means part of a fused weight (q, k or v of a qkv).
        swap: the halves of the rows are exchanged (scale and shift of diffusers' norms).
    """

    weight: str
    rows: tuple[int, int] | None = None
    swap: bool = False


@dataclass
class Module:
    """All tensors of one adapted module, by role, with their original keys."""

    stem: str
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    keys: dict[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def name(self) -> str:
        return canonical(self.stem)


def canonical(stem: str) -> str:
    """A module name without wrappers and dots, ``mid_block_attentions_0_proj_in`` for every spelling of it."""
    bare = stem[_match_end(stem) :].replace(".", "_").replace("_processor_", "_")
    return bare.removesuffix("_0") if bare.endswith("_to_out_0") else bare


def _match_end(stem: str) -> int:
    match = _WRAPPERS.match(stem)
    return match.end() if match else 0


def wrapper(stem: str) -> str:
    """The wrapper prefix of a module name, e.g. ``base_model.model.``; empty for a bare name."""
    return stem[: _match_end(stem)]


def split_keys(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Module], list[str], list[str]]:
    """Group tensors by module: ``(modules by stem, text encoder keys, keys that are no LoRA)``."""
    modules: dict[str, Module] = {}
    text: list[str] = []
    foreign: list[str] = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if _TEXT.match(key):
            text.append(key)
        elif match is None or match.lastgroup is None:
            foreign.append(key)
        else:
            role = match[match.lastgroup][1:] if match.lastgroup == "other" else match.lastgroup
            module = modules.setdefault(match["stem"], Module(match["stem"]))
            if role in module.parts:
                foreign.append(key)
                continue
            module.parts[role], module.keys[role] = tensor, key
    return modules, text, foreign


_FORMATS = {
    "lora_unet_": "kohya", "lora_transformer_": "OneTrainer", "lycoris_": "LyCORIS", "diffusion_model.": "ComfyUI",
    "unet.base_model.model.": "PEFT", "base_model.model.": "PEFT", "unet.": "diffusers", "transformer.": "diffusers",
    "": "bare",
}  # fmt: skip


def key_format(modules: Iterable[Module]) -> str:
    """The key format for people: who writes it, the prefix and the suffixes, most common spelling first."""
    counts: dict[str, int] = {}
    for module in modules:
        prefix, key = wrapper(module.stem), module.keys.get("up") or next(iter(module.keys.values()))
        suffix = key[len(module.stem) :]
        text = f"{_FORMATS.get(prefix, 'mixed')} ({prefix}*{suffix})"
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(sorted(counts, key=lambda text: -counts[text])[:3])


FAMILY_NAMES = {
    "sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2", "sdxl": "SDXL", "sd3": "Stable Diffusion 3",
    "flux1": "FLUX.1", "wan": "Wan", "hunyuan-video": "HunyuanVideo", "ltxv": "LTX-Video", "ltx-2": "LTX-2",
    "mochi": "Mochi", "qwen-image": "Qwen-Image", "z-image": "Z-Image", "hidream": "HiDream", "pixart": "PixArt",
    "cogvideox": "CogVideoX", "unet": "a Stable Diffusion UNet",
}  # fmt: skip
# Model classes of the host.
CLASS_FAMILIES = {
    "SDXL": "sdxl", "SD3": "sd3", "Flux": "flux1", "Flux2": "flux2", "WAN21": "wan", "HunyuanVideo": "hunyuan-video",
    "HunyuanVideo15": "hunyuan-video-1.5", "LTXV": "ltxv", "LTXAV": "ltx-2", "GenmoMochi": "mochi",
    "QwenImage": "qwen-image", "Lumina2": "z-image", "HiDream": "hidream", "PixArt": "pixart",
    "CogVideoX": "cogvideox", "Krea2": "krea2", "ErnieImage": "ernie-image",
}  # fmt: skip
# UNets by the width of their text input.
UNET_FAMILIES = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
# On canonical names with every number replaced by N; the first match wins.
_FAMILY_RULES = (
    ("qwen-image", r"^transformer_blocks_N_(img|txt)_(mlp|mod)_"),
    ("hidream", r"^(double|single)_stream_blocks_"),
    ("wan", r"^(vace_)?blocks_N_(self_attn|cross_attn)_|^blocks_N_ffn_|^blocks_N_attnN_to_"),
    ("mochi", r"^blocks_N_(attn_(qkv|proj)|mlp|mod)_[xy]|^transformer_blocks_N_attnN_(add_._proj|to_add_out)"),
    ("ltx-2", r"^transformer_blocks_N_(audio_|video_to_audio)"),
    ("z-image", r"^(layers|context_refiner|noise_refiner)_N_(attention|feed_forward)_"),
    ("hunyuan-video", r"_(img|txt)_mlp_fcN|individual_token_refiner|token_refiner_refiner_blocks|modulation_linear"),
    ("flux1", r"^(double|single)_blocks_|^single_transformer_blocks_"),
    ("sd3", r"^joint_blocks_|^transformer_blocks_N_(normN_context|ff_context|attn)_"),
    ("ltxv", r"^transformer_blocks_N_attnN_to_"),
    ("unet", r"^(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_"),
)


def detect_family(modules: Iterable[Module]) -> str:
    """The base family a LoRA was trained for, from its names and, for UNets, the width of its text input."""
    listed = list(modules)
    shapes = "\n".join(sorted({re.sub(r"\d+", "N", module.name) for module in listed}))
    family = next((name for name, rule in _FAMILY_RULES if re.search(rule, shapes, re.MULTILINE)), "")
    if family == "unet":
        return _unet_family(listed)
    if family == "flux1" and _highest(listed, r"(?:double_blocks|^transformer_blocks)_(\d+)_") >= 19:
        return "hunyuan-video"
    if family == "ltxv" and (width := _width(listed, "attn1_to_q")) in (1152, 1920, 3072):
        return {1152: "pixart", 1920: "cogvideox", 3072: "cogvideox"}[width]
    return family


def _unet_family(modules: list[Module]) -> str:
    width = _width(modules, "attn2_to_k")
    if width in UNET_FAMILIES:
        return UNET_FAMILIES[width]
    return "sdxl" if _highest(modules, r"_transformer_blocks_(\d+)_") > 1 else "unet"


def _width(modules: list[Module], ending: str) -> int:
    """Input width of the first module with that ending, 0 if there is none."""
    downs = (m.parts["down"] for m in modules if m.name.endswith(ending) and "down" in m.parts)
    return next((down.shape[1] for down in downs if down.ndim > 1), 0)


def _highest(modules: list[Module], pattern: str) -> int:
    found = (re.search(pattern, module.name) for module in modules)
    return max((int(match[1]) for match in found if match), default=-1)
