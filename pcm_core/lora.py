"""Read a LoRA in any of its spellings and hand the host a complete, correctly scaled one, or say why not.

    >>> tensors, metadata = read_lora("pcm_sdxl_smallcfg_4step_converted.safetensors")
    >>> loadable, report = normalise(tensors, key_map, shapes, metadata=metadata)

``python -m pcm_core.lora FILE`` prints the report; ``--convert OUT`` writes a file that other tools load.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from . import lora_fuse
from .errors import PCMError
from .lora_keys import HARMLESS, Module, Target, canonical, detect_family, key_format, split_keys, wrapper
from .lora_names import extra_targets
from .lora_report import LoraReport, blocks, family_name
from .profiles import PCMProfile
from .safetensors_header import read_tensors

Placed = dict[str, list[tuple[Module, Target]]]
Shapes = Mapping[str, Sequence[int]]

# PEFT's default, which the authors' training scripts leave untouched (pcm.md 4.2, 4.3; issue 33 of their repository).
PEFT_ALPHA = 8.0
PCM_SCALE = 0.125
_PCM_SD3 = ("to_q", "to_k", "to_v", "to_out", "to_add_out", "net_0_proj", "net_2", "linear", "linear_1", "linear_2",
            "proj", "proj_out", "context_embedder")  # fmt: skip


def read_lora(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (memory mapped) and metadata of a LoRA file.

    Raises:
        PCMError: if the file is not a sound safetensors file (``safetensors_header.read_header``).
    """
    return read_tensors(path)


def normalise(
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
    family = detect_family(listed)
    profile = profile or PCMProfile()
    alphas, alpha_missing, notes = _alphas(listed, family, metadata or {}, profile)
    for module in listed:
        lora_fuse.check_values(name, module)
    norms = lora_fuse.module_norms(name, listed, alphas)
    if key_map is None:
        placed, rejected = {_portable(module, family): [(module, Target(""))] for module in listed}, ([], [], [])
    else:
        placed, rejected = _place(listed, key_map, shapes or {}, model_family)
    mismatched, unknown, harmless = rejected
    report = LoraReport(
        name=name,
        format=key_format(listed),
        family=family,
        ranks=Counter(rank for module in listed if (rank := lora_fuse.rank_of(module))),
        scales=Counter(round(lora_fuse.scale_of(module, alphas), 6) for module in listed if lora_fuse.rank_of(module)),
        alpha_missing=alpha_missing,
        offered=len(tensors) - len(text),
        matched=sum(len(module.keys) for entries in placed.values() for module, _ in entries),
        mismatched=tuple(mismatched),
        unknown=(*unknown, *foreign),
        harmless=tuple(harmless),
        text_encoder=len(text),
        norms=lora_fuse.group_norms(norms, placed),
        notes=tuple(notes),
        profile=profile,
    )
    if key_map is not None:
        _refuse_incomplete(report, model_family, allow_partial)
    output: dict[str, Tensor] = {}
    for weight, entries in placed.items():
        output |= lora_fuse.emit(name, weight, entries, alphas, (shapes or {}).get(weight))
    return output, report


def _refuse_no_lora(name: str, modules: list[Module], text: list[str], foreign: list[str]) -> None:
    if modules:
        return
    if text:
        raise PCMError(
            f"{name} changes text encoders only ({len(text)} tensors).",
            "a LoRA with tensors for the diffusion model.",
            "Load it with the host's LoraLoader, which has a CLIP input.",
        )
    if any(key.endswith((".weight", ".bias")) for key in foreign):
        raise PCMError(
            f"{name} is a whole model, not a LoRA: it has keys like {foreign[0][:80]}.",
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
) -> tuple[dict[str, float], bool, list[str]]:
    """Alpha by module stem, whether the file had none, and what was repaired or is unusual."""
    alphas = {m.stem: float(m.parts["alpha"]) for m in modules if "alpha" in m.parts and m.parts["alpha"].numel() == 1}
    pairs = [module for module in modules if lora_fuse.rank_of(module)]
    if alphas:
        scales = {round(lora_fuse.scale_of(module, alphas), 4) for module in pairs}
        if profile.family == "PCM" and family in ("sd15", "sdxl") and scales and scales != {PCM_SCALE}:
            shown = ", ".join(f"{scale:g}" for scale in sorted(scales)[:3])
            return alphas, False, [f"alpha/rank is {shown}; PCM's own files are expected to have {PCM_SCALE}. Left as it is."]
        return alphas, False, []
    given, source = _peft_alpha(metadata), "the file's PEFT metadata"
    if given is None and _is_raw_peft(pairs, family):
        given, source = PEFT_ALPHA, "PEFT's default, which the PCM training scripts use"
    if given is None:
        return {}, bool(pairs), []
    rank = lora_fuse.rank_of(pairs[0])
    note = f"The file has no alpha; {given:g} was added from {source}: the update is scaled by {given / rank:g}."
    return {module.stem: given for module in pairs}, True, [note]


def _peft_alpha(metadata: Mapping[str, str]) -> float | None:
    """``lora_alpha`` of the adapter configuration that diffusers stores as JSON."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
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
    if family != "sd3" or not pairs:
        return False
    return all(
        module.parts["down"].dtype == torch.float32
        and lora_fuse.rank_of(module) == 32
        and module.name.endswith(_PCM_SD3)
        and wrapper(module.stem) in ("transformer.", "base_model.model.")
        for module in pairs
    )


def _place(
    modules: list[Module], key_map: Mapping[str, Target], shapes: Shapes, model_family: str
) -> tuple[Placed, tuple[list[str], list[str], list[str]]]:
    """Find the weight of every module: what is placed, and the keys that are mismatched, unknown or harmless."""
    index: dict[str, Target] = {}
    for alias, target in key_map.items():
        index.setdefault(canonical(alias), target)
    for alias, target in extra_targets(model_family, shapes).items():
        index.setdefault(alias, target)
    placed: Placed = {}
    mismatched: list[str] = []
    unknown: list[str] = []
    harmless: list[str] = []
    for module in modules:
        target, keys = index.get(module.name), list(module.keys.values())
        if target is None:
            (harmless if model_family == "wan" and HARMLESS.search(module.name) else unknown).extend(keys)
        elif not lora_fuse.fits(module, target, shapes):
            mismatched.extend(keys)
        else:
            placed.setdefault(target.weight, []).append((module, target))
    return placed, (mismatched, unknown, harmless)


def _portable(module: Module, family: str) -> str:
    """The name other tools expect, as the weight the module would patch."""
    if family in ("sd15", "sd21", "sdxl", "unet"):
        stem = f"lora_unet_{module.name}"
        return (f"{stem}_0" if stem.endswith("_to_out") else stem) + ".weight"
    bare = module.stem[len(wrapper(module.stem)) :]
    native = not bare.startswith(("transformer_blocks", "single_transformer_blocks")) and family != "sd3"
    return f"{'diffusion_model' if native else 'transformer'}.{bare}.weight"


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
