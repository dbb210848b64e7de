"""The names of LoRA tensors: the module and role of a key, for every tool's format.

Trainers name the same weight differently: ``lora_unet_down_blocks_0_...``, ``unet.down_blocks.0...``,
``diffusion_model.input_blocks.1...``. ``canonical`` reduces a name to one form by dropping wrapper prefixes and
replacing dots by underscores. It is applied to a model's own names too, so that both can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

# What scales fp8 values is called so, and is no adapter.
_SCALE = r"(?:scale_weight|weight_scale(?:_inv|_2)?|scale_inv|comfy_quant)"
# PEFT may put the adapter's name before the last word: ``.lora_A.default.weight``.
_NAME = rf"(?:\.(?!(?:weight|bias|{_SCALE})$)[^.]+)?"
_ADAPTER = _NAME + r"(?:\.weight)?"
_ROLES = {
    "up": r"(?:\.lora_up|_lora\.up|\.lora\.up|\.lora_linear_layer\.up)\.weight|\.lora_B" + _ADAPTER,
    "down": r"(?:\.lora_down|_lora\.down|\.lora\.down|\.lora_linear_layer\.down)\.weight|\.lora_A" + _ADAPTER,
    "up_b": r"\.lora_B" + _NAME + r"\.bias",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"(?:\.lora)?\.alpha|\.(?:lora|network)_alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector" + _ADAPTER,
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"\.diff_m",
    "set_weight": r"\.set_weight",
    "reshape_weight": r"\.reshape_weight",
    "w_norm": r"\.w_norm",
    "b_norm": r"\.b_norm",
}
# LoHa, LoKr, OFT and GLoRA: the host computes them.
_OTHER = r"\.(?:hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale|[ab][12](?=\.weight$))"
_ENDINGS = "|".join(f"(?P<{role}>{pattern})" for role, pattern in _ROLES.items())
# The lookahead avoids backtracking: endings are tried only after ``.`` or ``_lora.``
_KEY = re.compile(rf"(?P<stem>.+?)(?=\.|_lora\.)(?:{_ENDINGS}|(?P<other>{_OTHER}){_ADAPTER})$")
# Text encoders, and the projections behind them (LTX-2).
_TEXT = re.compile(
    r"(?:(?:base_model\.)?model\.)?"
    r"(lora_(?:prior_)?te\d?_|lycoris_te\d?_|te\d?_text_model_|lora_llm_|llama_model\.|text_model\.|text_encoders?(_\d)?\."
    r"|te\d?\.|cond_stage_model\.|conditioner\.|clip_[lgh]\.|t5xxl\."
    r"|(?:diffusion_model\.|transformer\.)?text_embedding_projection\.|connectors\.text_proj_in\.)"
)
_WRAPPERS = re.compile(
    r"(?:base_model\.model\.|diffusion_model\.|unet\.|transformer(?:_2)?\.|pipe\.dit\.|dit\.|model\.|module\.|net\."
    r"|connectors\.|pipe\.|base_model\.|student(?:_model)?\.|generator\.|(?:model_)?ema\.|denoiser\.|backbone\.|mmdit\.|wan\."
    r"|state_dict\.|lora_unet_diffusion_model_|lora_dit_"
    r"|(?:high|low)_noise(?:_model)?\.|_?orig_mod[._]|_?fsdp_wrapped_module[._]"
    r"|lora_unet_+|lora_transformer_(?:2_)?|lora_prior_unet_|lycoris_)*"
)
# Wrappers that torch.compile, FSDP, DDP and activation checkpointing put between the names of modules.
_INNER = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|(?<=\.)module|(?<=\.)processor)\.")
_LOW = re.compile(r"transformer_2[._]|low_noise|lora_transformer_2_")
# Scales of the file's own fp8 values, which no loader multiplies with.
_SCALED_VALUES = re.compile(rf".+(?:lora_?\.?(?:up|down|mid|[AB])|hada_\w+|lokr_\w+|\.diff)[^_]*[._]{_SCALE}$")
# Tensors of a file that are not updates, by kind.
_BESIDE = {
    "embedding": re.compile(r"bundle_emb\."),
    "counter": re.compile(r"(?:.+\.)?(?:global_step|epoch|step|iteration|num_batches_tracked|num_updates|ema_step)$"),
    "fp8 scale": re.compile(rf"(?:.+\.)?(?:{_SCALE}|scale_input|input_scale|scaled_fp8)$"),
}


class Target(NamedTuple):
    """The weight that a LoRA name refers to.

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
        """The canonical name."""
        return canonical(self.stem)

    @property
    def low_noise(self) -> bool:
        """Whether the prefix is that of the second, low-noise expert of Wan 2.2."""
        return bool(_LOW.search(wrapper(self.stem)))


@dataclass
class Contents:
    """The keys of a file, sorted.

    Attributes:
        modules: modules by stem.
        text: keys for text encoders.
        beside: keys that belong to no update, by kind: ``embedding``, ``counter``, ``fp8 scale``.
        scaled: scales of fp8 values of the LoRA itself.
        foreign: keys that are not part of a LoRA.
    """

    modules: dict[str, Module] = field(default_factory=dict[str, Module])
    text: list[str] = field(default_factory=list[str])
    beside: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    scaled: list[str] = field(default_factory=list[str])
    foreign: list[str] = field(default_factory=list[str])


def canonical(stem: str) -> str:
    """A module name without wrappers and dots, such as ``mid_block_attentions_0_proj_in``, for every key format."""
    bare = _INNER.sub("", stem[_match_end(stem) :]).replace(".", "_").replace("_processor_", "_")
    return bare.removesuffix("_0") if bare.endswith("_to_out_0") else bare


def dotted(stem: str) -> str:
    """A module name without wrappers, with the dots that the file has."""
    return _INNER.sub("", stem[_match_end(stem) :])


def _match_end(stem: str) -> int:
    match = _WRAPPERS.match(stem)
    return match.end() if match else 0


def wrapper(stem: str) -> str:
    """The wrapper prefix of a module name, e.g. ``base_model.model.``; empty for a bare name."""
    return stem[: _match_end(stem)]


def split_keys(tensors: Mapping[str, Tensor]) -> Contents:
    """Group tensors by module, and separate those that belong to none."""
    contents = Contents()
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        kind = next((kind for kind, pattern in _BESIDE.items() if pattern.match(key)), None) if match is None else None
        if kind == "fp8 scale" and _SCALED_VALUES.match(key):
            contents.scaled.append(key)
        elif kind is not None:
            contents.beside.setdefault(kind, []).append(key)
        elif _TEXT.match(key):
            contents.text.append(key)
        elif match is None or match.lastgroup is None:
            contents.foreign.append(key)
        else:
            _add(contents, match, key, tensor)
    return contents


def has_model_updates(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file has anything but updates of text encoders."""
    contents = split_keys(tensors)
    return bool(contents.modules or contents.foreign or not contents.text)


def _add(contents: Contents, match: re.Match[str], key: str, tensor: Tensor) -> None:
    role, stem = match.lastgroup or "", match["stem"]
    if role == "other":
        role = match["other"][1:]
    elif role == "diff_m":  # Wan's name for a difference of the modulation, which is a parameter of its own
        role, stem = "diff", f"{stem}.modulation"
    module = contents.modules.setdefault(stem, Module(stem))
    if role in module.parts:
        contents.foreign.append(key)
    else:
        module.parts[role], module.keys[role] = tensor, key


_FORMATS = {
    "lora_unet_": "kohya", "lora_transformer_": "OneTrainer", "lycoris_": "LyCORIS", "diffusion_model.": "ComfyUI",
    "unet.base_model.model.": "PEFT", "base_model.model.": "PEFT", "unet.": "diffusers", "transformer.": "diffusers",
    "transformer_2.": "diffusers", "": "bare",
}  # fmt: skip


def key_format(modules: Iterable[Module]) -> str:
    """The display name of the key format: the tool that writes it, the prefix and the suffixes, most common first."""
    counts: dict[str, int] = {}
    for module in modules:
        prefix, key = wrapper(module.stem), module.keys.get("up") or next(iter(module.keys.values()))
        suffix = key[len(module.stem) :] if key.startswith(module.stem) else ".diff_m"
        text = f"{_FORMATS.get(prefix, 'mixed')} ({prefix}*{suffix})"
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(sorted(counts, key=lambda text: -counts[text])[:3])
