"""Detect the base model of a LoRA from the names and sizes of its modules, if they leave no doubt.

``module_names.json`` has the module names of every base model, with numbers replaced by ``N``; devtools/generate makes
it from the host's and diffusers' own classes. A base model is detected only if all names, widths and block numbers of
the file agree with it and with no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from .keys import Module

BASE_MODEL_NAMES = {
    "sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2", "sdxl": "SDXL", "sd3": "Stable Diffusion 3",
    "flux1": "FLUX.1", "flux2": "FLUX.2", "wan": "Wan", "hunyuan-video": "HunyuanVideo",
    "hunyuan-video-1.5": "HunyuanVideo 1.5", "ltxv": "LTX-Video", "ltx-2": "LTX-2", "mochi": "Mochi",
    "qwen-image": "Qwen-Image", "z-image": "Z-Image", "hidream": "HiDream", "pixart": "PixArt", "krea2": "Krea 2",
    "cogvideox": "CogVideoX", "unet": "a Stable Diffusion UNet", "minimax-h3": "MiniMax-H3", "lens": "Lens",
    "ernie-image": "ERNIE-Image", "mage-flow": "Mage-Flow", "boogu": "Boogu",
    "auraflow": "AuraFlow",
}  # fmt: skip
# Model classes of the host.
CLASS_BASE_MODELS = {
    "Anima": "anima", "WAN21_CausalAR": "wan-ar", "HunyuanVideo15_SR_Distilled": "hunyuan-video-1.5-sr",
    "HiDreamO1": "hidream-o1", "ACEStep15": "ace-step-1.5", "StableAudio3": "stable-audio-3", "PiD": "pid",
    "SeedVR2": "seedvr2",
    "SDXL": "sdxl", "SD3": "sd3", "Flux2": "flux2", "Flux": "flux1", "WAN21": "wan",
    "HunyuanVideo15": "hunyuan-video-1.5", "HunyuanVideo": "hunyuan-video", "LTXV": "ltxv", "LTXAV": "ltx-2",
    "GenmoMochi": "mochi", "MageFlow": "mage-flow", "QwenImage": "qwen-image", "Lumina2": "z-image",
    "HiDream": "hidream", "PixArt": "pixart", "CogVideoX": "cogvideox", "Krea2": "krea2", "ErnieImage": "ernie-image",
    "MiniMaxH3": "minimax-h3", "Lens": "lens", "Boogu": "boogu", "AuraFlow": "auraflow",
}  # fmt: skip
# UNets by the width of their text input.
UNET_BASE_MODELS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
# Widths of the released models' attention input, and numbers of their double (or only) and single blocks.
_WIDTHS = {
    "sd3": (1536, 2432), "flux1": (3072,), "flux2": (3072, 4096, 6144), "hunyuan-video": (3072,), "mochi": (1536, 3072),
    "hunyuan-video-1.5": (2048,), "qwen-image": (3072,), "mage-flow": (2048,), "ltxv": (2048, 4096), "pixart": (1152,),
    "cogvideox": (1920, 3072), "wan": (1536, 2048, 3072, 5120), "z-image": (3840,), "hidream": (2560,),
    "auraflow": (3072,), "ltx-2": (4096,),
}  # fmt: skip
_DEPTHS = {
    "flux1": ((19, 38),), "flux2": ((8, 48), (5, 20), (8, 24)), "hunyuan-video": ((20, 40),),
    "hunyuan-video-1.5": ((54, 0),), "sd3": ((24, 0), (38, 0)),
}  # fmt: skip
_ATTENTION = re.compile(r"(?<!audio_)attn\d?_(to_)?(q|qkv)$|qkv_[xy]$|norm1(_context)?_linear$")
# Numbers of double (or only) blocks, of single blocks, and of the blocks in one attention module of a UNet.
_DOUBLE = re.compile(r"(?:^|double_|joint_)(?:transformer_)?blocks_(\d+)_")
_SINGLE = re.compile(r"single_(?:transformer_)?blocks_(\d+)_")
_DEEP = re.compile(r"_transformer_blocks_(\d+)_")


def base_model_name(base_model: str) -> str:
    """The display name of a base model."""
    return BASE_MODEL_NAMES.get(base_model, base_model or "unknown base model")


@lru_cache(maxsize=1)
def module_names() -> Mapping[str, frozenset[str]]:
    """Base model to the canonical names of its modules, numbers replaced by ``N``."""
    path = Path(__file__).with_name("module_names.json")
    return {name: frozenset(names) for name, names in json.loads(path.read_text(encoding="utf-8")).items()}


def pattern_of(name: str) -> str:
    """A canonical name with its numbers replaced by ``N``."""
    return re.sub(r"(?<![a-z])\d+(?![a-z])", "N", name)


def possible_base_models(modules: Iterable[Module]) -> set[str]:
    """The base models whose names, widths and block numbers agree with all modules of a file."""
    listed = list(modules)
    patterns = {pattern_of(module.name) for module in listed}
    found = {base for base, names in module_names().items() if patterns <= names} if patterns else set[str]()
    widths = {width for module in listed if (width := _width(module)) and _ATTENTION.search(module.name)}
    depths = _highest(listed, _DOUBLE), _highest(listed, _SINGLE)
    found = {base for base in found if base not in _WIDTHS or widths <= set(_WIDTHS[base])}
    found = {base for base in found if _depth_agrees(base, *depths, exactly=True)} or {
        base for base in found if _depth_agrees(base, *depths, exactly=False)
    }
    return (found - {"unet"}) | ({_unet(listed)} if "unet" in found else set())


def detect_base_model(modules: Iterable[Module]) -> str:
    """The base model of a LoRA; empty if several are possible, or none."""
    return the_one(possible_base_models(modules))


def the_one(base_models: Collection[str]) -> str:
    """The only one of some base models; empty if there are several, or none."""
    return next(iter(base_models)) if len(base_models) == 1 else ""


def _depth_agrees(base: str, double: int, single: int, *, exactly: bool) -> bool:
    """Whether the last block of a file is the last one of a base model, or (not ``exactly``) lies within it."""
    if exactly:
        return any(double in (0, d) and single in (0, s) for d, s in _DEPTHS.get(base, ()))
    return base not in _DEPTHS or any(double <= d and single <= s for d, s in _DEPTHS[base])


def _unet(modules: list[Module]) -> str:
    widths = [_width(module) for module in modules if module.name.endswith("attn2_to_k")]
    width = next((width for width in widths if width), 0)
    if width in UNET_BASE_MODELS:
        return UNET_BASE_MODELS[width]
    return "sdxl" if not width and _highest(modules, _DEEP) > 2 else "unet"


def _width(module: Module) -> int:
    down = module.parts.get("down")
    return down.shape[1] if down is not None and down.ndim > 1 else 0


def _highest(modules: list[Module], pattern: re.Pattern[str]) -> int:
    """One more than the highest block number."""
    found = (pattern.search(module.name) for module in modules)
    return max((int(match[1]) for match in found if match), default=-1) + 1
