"""A LoRA file after reading: its checked modules and their scales, or what else the file is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import PCMError
from ..profiles import PCMProfile
from .base_models import possible_base_models, the_one
from .keys import Contents, Module, Target, key_format, split_keys
from .report import LoraReport
from .scales import find_alphas, whole_products
from .tensors import HELPERS, Update, check_values, group_norms, module_norms, rank_of, scale_of, without_copies

Placed = Mapping[str, Sequence[tuple[Module, Target]]]


@dataclass(frozen=True)
class LoraFile:
    """A checked file.

    Attributes:
        name: file name, for messages.
        contents: its keys, sorted.
        alphas: alpha by module stem.
        profile: its sampling settings.
        report: what was found, before modules are matched with weights.
    """

    name: str
    contents: Contents
    alphas: Mapping[str, float]
    profile: PCMProfile
    report: LoraReport

    @property
    def modules(self) -> list[Module]:
        return list(self.contents.modules.values())

    def updates(self, placed: Placed) -> list[Update]:
        """One update for each matched module; a duplicate in a second key format is left out.

        Raises:
            PCMError: if two different updates change the same weight.
        """
        return [
            Update(
                target, {role: tensor for role, tensor in module.parts.items() if role != "alpha"},
                self.alphas.get(module.stem), tuple(module.keys.values()),
            )
            for weight, entries in placed.items()
            for module, target in without_copies(self.name, weight, entries)
        ]  # fmt: skip

    def norms(self, placed: Placed) -> dict[str, float]:
        """Size of the applied updates by block group.

        Raises:
            PCMError: if a tensor contains NaN or infinity.
        """
        return group_norms(module_norms(self.name, self.modules, self.alphas), placed)


def open_lora(
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    name: str = "LoRA",
    base_model: str = "",
    profile: PCMProfile | None = None,
) -> LoraFile:
    """Sort and check the tensors of a file.

    Args:
        tensors: state dict of the file.
        metadata: its header; the alpha of PEFT and other trainers is read from it.
        name: file name, for messages.
        base_model: base model it will be applied to, if known.
        profile: its sampling settings; part of the report.

    Raises:
        PCMError: if it is not a LoRA, or has invalid values.
    """
    contents = split_keys(tensors)
    modules = list(contents.modules.values())
    _refuse_no_lora(name, contents)
    for module in modules:
        check_values(name, module)
    for stem, factor in whole_products(modules, metadata or {}).items():
        parts = contents.modules[stem].parts
        parts["lokr_w1"] = parts["lokr_w1"].float() * factor
    profile, possible = profile or PCMProfile(), {base_model} if base_model else possible_base_models(modules)
    alphas, note = find_alphas(modules, metadata or {}, possible, profile)
    pairs = [module for module in modules if rank_of(module)]
    report = LoraReport(
        name=name, format=key_format(modules), base_model=the_one(possible), profile=profile,
        notes=(note,) if note else (), ranks=Counter(rank_of(module) for module in pairs),
        scales=Counter(round(scale_of(module, alphas), 6) for module in pairs),
        alpha_missing=bool(pairs) and not alphas,
        offered=sum(len(module.keys) for module in modules) + len(contents.foreign),
        text_encoder=len(contents.text), beside={kind: len(keys) for kind, keys in contents.beside.items()},
    )  # fmt: skip
    return LoraFile(name, contents, alphas, profile, report)


_WRONG_KINDS = (
    (("lora_controlnet",), "is a Control-LoRA", "Load it with Load ControlNet Model, from models/controlnet."),
    ((".ia3_l", ".on_input", ".ia3_l.default"), "is an IA3 adapter, which scales activations", "Use a LoRA instead."),
    ((".oft_R.weight", ".oft_R", ".oft_R.default.weight"), "is an OFT adapter in PEFT's layout",
     "Convert it to LyCORIS' layout (oft_blocks), which the host applies."),
    ((".vera_lambda_d", ".vera_lambda_b"), "is a VeRA adapter", "Use a LoRA instead."),
    ((".boft_R", ".boft_s", ".boft_R.default", ".boft_s.default"), "is a BOFT adapter in PEFT's layout",
     "Convert it to LyCORIS' layout (oft_blocks), which the host applies."),
    ((".lora_E", ".lora_E.default", ".ranknum"), "is an AdaLoRA adapter, whose updates have three factors",
     "Convert it to a LoRA first."),
    (("string_to_param", "emb_params", "clip_l", "clip_g"), "is an embedding", "Move it to models/embeddings."),
    ((".qkv_lora.up.weight", ".qkv_lora1.up.weight", ".proj_lora1.up.weight", ".qkv_lora2.up.weight"),
     "is a LoRA in XLabs' names that does not change every block", "Convert it to ComfyUI's names first."),
)  # fmt: skip


# Words in the names of updates, in any spelling.
_LIKE_LORA = re.compile(r"lora[._]|lokr|loha|hada_w", re.IGNORECASE)


def _refuse_no_lora(name: str, contents: Contents) -> None:
    modules = list(contents.modules.values())
    _refuse_wrong_kind(name, contents.foreign)
    if contents.scaled:
        raise PCMError(
            f"{name} holds fp8 values with scales of their own: it has keys like {contents.scaled[0][:80]}.",
            "values that need no scale, fp8 or wider.",
            "Use the file in fp16 or bf16.",
        )
    if any(set(module.parts) - HELPERS for module in modules):
        return
    foreign = [*(key for module in modules for key in module.keys.values()), *contents.foreign]
    if contents.text and not foreign:
        raise PCMError(
            f"{name} changes text encoders only ({len(contents.text)} tensors).",
            "a LoRA with tensors for the diffusion model.",
            "Load it with the host's LoraLoader, which is made for a CLIP.",
        )
    other = next((key for key in foreign if _LIKE_LORA.search(key)), None)
    if other is not None:
        raise PCMError(
            f"{name} has LoRA tensors in names that no tool known here writes, like {other[:80]}.",
            "names that end in lora_up / lora_down or lora_A / lora_B and .weight, as they are spelled here.",
            "Rename or convert it first.",
        )
    weights = [key for key in foreign if key.endswith((".weight", ".bias"))]
    if weights:
        raise PCMError(
            f"{name} is a whole model, not a LoRA: it has keys like {weights[0][:80]}.",
            "a LoRA file, with pairs of small matrices.",
            "Move it to models/checkpoints or models/diffusion_models and load it there.",
        )
    foreign += [key for keys in contents.beside.values() for key in keys]
    raise PCMError(
        f"{name} holds no LoRA tensors" + (f": it has keys like {foreign[0][:80]}." if foreign else "; it is empty."),
        "keys that end in lora_up / lora_down or lora_A / lora_B.",
        "Check that this is the right file.",
    )


def _refuse_wrong_kind(name: str, foreign: Sequence[str]) -> None:
    for endings, kind, action in _WRONG_KINDS:
        found = next((key for key in foreign if key.endswith(endings)), None)
        if found is not None:
            raise PCMError(f"{name} {kind}: it has keys like {found[:80]}.", "LoRA, LoHa, LoKr, DoRA or OFT.", action)
