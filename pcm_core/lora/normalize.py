"""From the tensors of a file to the keys the host loads: place every module, repair alpha, account for every tensor."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import PCMError
from ..profiles import PCMProfile
from . import tensors as lora_tensors
from .diffusers_names import extra_targets, native_name
from .keys import HARMLESS, Module, Target, canonical, detect_family, key_format, split_keys, wrapper
from .report import LoraReport, blocks, family_name

Shapes = Mapping[str, Sequence[int]]
# PEFT's default, which the authors' training scripts leave untouched (pcm.md 4.2, 4.3; issue 33 of their repository).
PEFT_ALPHA = 8.0
PCM_SCALE = 0.125
PEFT_METADATA = "lora_adapter_metadata"
_PCM_SD3 = ("to_q", "to_k", "to_v", "to_out", "to_add_out", "net_0_proj", "net_2", "linear", "linear_1", "linear_2",
            "proj", "proj_out", "context_embedder")  # fmt: skip


def normalize(
    tensors: Mapping[str, Tensor],
    key_map: Mapping[str, Target] | None = None,
    shapes: Shapes | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    name: str = "LoRA",
    model_family: str = "",
    profile: PCMProfile | None = None,
    allow_partial: bool = False,
) -> tuple[dict[str, Tensor], LoraReport]:
    """Bring a LoRA to keys the host loads.

    Args:
        tensors: state dict of the file.
        key_map: LoRA names the model answers to, in any spelling, and the weight each one means. Without it names are
            cleaned up and kept in the LoRA's own naming, which is what ``--convert`` writes.
        shapes: shape of every weight of the model.
        metadata: of the file; PEFT's alpha is read from it.
        name: for messages.
        model_family: ``sd15``, ``sdxl``, ... of the model; names both families when they differ.
        profile: what the file wants to be sampled with; goes into the report.
        allow_partial: apply what fits instead of refusing an incomplete match.

    Returns:
        ``diffusion_model.<native>.{lora_up.weight, lora_down.weight, alpha, ...}`` and the report. Tensors of whole
        weights are the very ones given; parts of fused weights are joined into one block-diagonal update.

    Raises:
        PCMError: not a LoRA, for another family, incomplete, or with values no LoRA can have.
    """
    modules, text, foreign = split_keys(tensors)
    listed = list(modules.values())
    _refuse_no_lora(name, listed, text, foreign)
    for module in listed:
        lora_tensors.check_values(name, module)
    family, profile = detect_family(listed), profile or PCMProfile()
    alphas, note = _alphas(listed, family, metadata or {}, profile)
    match = _portable(listed, family) if key_map is None else _place(listed, key_map, shapes or {}, model_family)
    pairs = [module for module in listed if lora_tensors.rank_of(module)]
    report = LoraReport(
        name=name, format=key_format(listed), family=family, profile=profile, notes=(note,) if note else (),
        ranks=Counter(lora_tensors.rank_of(module) for module in pairs),
        scales=Counter(round(lora_tensors.scale_of(module, alphas), 6) for module in pairs),
        alpha_missing=bool(pairs) and not alphas,
        offered=len(tensors) - len(text), text_encoder=len(text),
        matched=sum(len(module.keys) for entries in match.placed.values() for module, _ in entries),
        mismatched=tuple(match.mismatched), unknown=(*match.unknown, *foreign), harmless=tuple(match.harmless),
        norms=lora_tensors.group_norms(lora_tensors.module_norms(name, listed, alphas), match.placed),
    )  # fmt: skip
    if key_map is not None:
        _refuse_incomplete(report, model_family, allow_partial)
    output: dict[str, Tensor] = {}
    for weight, entries in match.placed.items():
        output |= lora_tensors.emit(name, weight, entries, alphas, (shapes or {}).get(weight))
    return output, report


@dataclass
class _Match:
    """Where modules go: by weight, or why not."""

    placed: dict[str, list[tuple[Module, Target]]]
    mismatched: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])
    harmless: list[str] = field(default_factory=list[str])


def _refuse_no_lora(name: str, modules: list[Module], text: list[str], foreign: list[str]) -> None:
    if any(set(module.parts) - lora_tensors.HELPERS for module in modules):
        return
    foreign = [*(key for module in modules for key in module.keys.values()), *foreign]
    if text and not foreign:
        raise PCMError(
            f"{name} changes text encoders only ({len(text)} tensors).",
            "a LoRA with tensors for the diffusion model.",
            "Load it with the host's LoraLoader, which has a CLIP input.",
        )
    weights = [key for key in foreign if key.endswith((".weight", ".bias"))]
    if weights:
        raise PCMError(
            f"{name} is a whole model, not a LoRA: it has keys like {weights[0][:80]}.",
            "a LoRA file, with pairs of small matrices.",
            "Move it to models/checkpoints or models/diffusion_models and load it there.",
        )
    raise PCMError(
        f"{name} holds no LoRA tensors" + (f": it has keys like {foreign[0][:80]}." if foreign else "; it is empty."),
        "keys that end in lora_up / lora_down or lora_A / lora_B.",
        "Check that this is the right file.",
    )


def _alphas(
    modules: list[Module], family: str, metadata: Mapping[str, str], profile: PCMProfile
) -> tuple[dict[str, float], str]:
    """Alpha by module stem, and what was repaired or is unusual."""
    alphas = {module.stem: float(module.parts["alpha"]) for module in modules if "alpha" in module.parts}
    pairs = [module for module in modules if lora_tensors.rank_of(module)]
    if alphas:
        return alphas, _unusual_scale(pairs, alphas, family, profile)
    given, source = _peft_alpha(metadata), "the file's PEFT metadata"
    if given is None and pairs and _is_raw_peft(pairs, family):
        given, source = PEFT_ALPHA, "PEFT's default, which the PCM training scripts use"
    if given is None or not pairs:
        return {}, ""
    scale = given / lora_tensors.rank_of(pairs[0])
    note = f"The file has no alpha; {given:g} was added from {source}: alpha/rank {scale:g}."
    return dict.fromkeys((module.stem for module in pairs), given), note


def _unusual_scale(pairs: list[Module], alphas: Mapping[str, float], family: str, profile: PCMProfile) -> str:
    scales = sorted({round(lora_tensors.scale_of(module, alphas), 4) for module in pairs})
    if profile.method != "PCM" or family not in ("sd15", "sdxl") or scales == [PCM_SCALE]:
        return ""
    shown = ", ".join(f"{scale:g}" for scale in scales[:3])
    return f"alpha/rank is {shown}, and {PCM_SCALE} is expected of PCM's own files. Left as it is."


def _peft_alpha(metadata: Mapping[str, str]) -> float | None:
    """``lora_alpha`` of the adapter configuration that diffusers stores as JSON."""
    try:
        config = json.loads(metadata.get(PEFT_METADATA, "{}"))
        found = [float(value) for key, value in config.items() if key.split(".")[-1] == "lora_alpha"]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found[0] if found and math.isfinite(found[0]) and found[0] > 0 else None


def _is_raw_peft(pairs: list[Module], family: str) -> bool:
    """Whether this is the output of the authors' training scripts, saved before their converters scaled it.

    UNets: PEFT's own prefix, which only those scripts and LCM's leave in. SD3: fp32, rank 32, and no module outside
    their target list; their converter halves both matrices and stores fp16.
    """
    if family in ("sd15", "sd21", "sdxl", "unet"):
        return all(wrapper(module.stem).endswith("base_model.model.") for module in pairs)
    if family != "sd3":
        return False
    return all(
        module.parts["down"].dtype == torch.float32
        and lora_tensors.rank_of(module) == 32
        and module.name.endswith(_PCM_SD3)
        and wrapper(module.stem) in ("transformer.", "base_model.model.")
        for module in pairs
    )


def _place(modules: list[Module], key_map: Mapping[str, Target], shapes: Shapes, model_family: str) -> _Match:
    """Find the weight of every module."""
    index: dict[str, Target] = {}
    for alias, target in key_map.items():
        index.setdefault(canonical(alias), target)
    for alias, target in extra_targets(model_family, shapes).items():
        index.setdefault(alias, target)
    match = _Match({})
    for module in modules:
        target, keys = index.get(module.name), module.keys.values()
        if target is None:
            optional = model_family == "wan" and HARMLESS.search(module.name)
            (match.harmless if optional else match.unknown).extend(keys)
        elif not lora_tensors.fits(module, target, shapes):
            match.mismatched.extend(keys)
        else:
            match.placed.setdefault(target.weight, []).append((module, target))
    return match


def _portable(modules: list[Module], family: str) -> _Match:
    """Where other tools expect each module, as the weight it would patch: kohya's names for UNets, else dotted ones."""
    theirs = any(module.name.startswith(("transformer_blocks", "single_transformer_blocks")) for module in modules)
    prefix = "transformer." if theirs and family not in ("ltxv", "ltx-2") else "diffusion_model."
    match = _Match({})
    for module in modules:
        start = wrapper(module.stem)
        stem = prefix + native_name(family if family == "wan" else "", module.stem[len(start) :])
        if family in ("sd15", "sd21", "sdxl", "unet"):
            stem = f"lora_unet_{module.name}" + ("_0" if module.name.endswith("_to_out") else "")
        elif start.endswith("_"):  # no dots to restore; the host knows these names
            stem = module.stem
        match.placed.setdefault(f"{stem}.weight", []).append((module, Target("")))
    return match


def _refuse_incomplete(report: LoraReport, model_family: str, allow_partial: bool) -> None:
    if report.complete and report.matched:
        return
    theirs, ours = family_name(report.family), family_name(model_family)
    if report.family and model_family and report.family != model_family and not _related(report.family, model_family):
        raise PCMError(
            f"{report.name} is a LoRA for {theirs}; the model is {ours}.",
            f"a LoRA for {ours}.",
            f"Choose another LoRA, or load a {theirs} model.",
        )
    if allow_partial and report.matched:
        return
    raise PCMError(
        f"{report.name}: only {report.matched} of {report.offered} tensors fit this model ({ours}); "
        f"{len(report.mismatched)} have the wrong shape and {len(report.unknown)} are unknown, "
        f"in {', '.join(blocks(report.missing))}.",
        "a LoRA made for this model, every tensor of which fits.",
        "Choose the LoRA for this model"
        + (", or switch allow_partial on to apply what fits." if report.matched else "."),
    )


def _related(family: str, model_family: str) -> bool:
    """Families that detection from a LoRA's names cannot tell apart."""
    return {family, model_family} in ({"flux1", "hunyuan-video"}, {"ltxv", "ltx-2"}) or (
        family == "unet" and model_family in ("sd15", "sd21", "sdxl")
    )


def with_profile(report: LoraReport, profile: PCMProfile, notes: Sequence[str]) -> LoraReport:
    """The report with the profile as it was attached, and more notes."""
    return replace(report, profile=profile, notes=(*report.notes, *notes))
