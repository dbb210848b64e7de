"""From a LoRA file to the updates of a model's weights: match every module, account for every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..errors import PCMError
from ..profiles import PCMProfile
from .base_models import BASE_MODEL_NAMES, base_model_name, detect_base_model
from .contents import LoraFile, open_lora
from .convert import portable
from .diffusers_names import extra_targets
from .joining import join
from .keys import Module, Target, canonical
from .report import LoraReport, blocks
from .tensors import Update, fits

Shapes = Mapping[str, Sequence[int]]
# Image-to-video modules that a text-to-video model does not have; every loader leaves them out.
_IMAGE_INPUT = ("img_emb", "k_img", "v_img", "norm_k_img", "image_embedder", "add_k_proj", "add_v_proj", "norm_added_k")


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """The weights that a LoRA can be applied to.

    Attributes:
        names: the LoRA names of the model, in any key format, and the weight of each one.
        shapes: shape of every weight.
        base_model: ``sd15``, ``sdxl``, ...; empty if not known.
        expert: which of two experts this is, ``high`` or ``low``; empty if not known.
    """

    names: Mapping[str, Target]
    shapes: Shapes
    base_model: str = ""
    expert: str = ""


def fit(
    tensors: Mapping[str, Tensor],
    model: ModelWeights,
    *,
    metadata: Mapping[str, str] | None = None,
    name: str = "LoRA",
    profile: PCMProfile | None = None,
    allow_partial: bool = False,
) -> tuple[list[Update], LoraReport]:
    """Find the weight that every tensor of a LoRA changes.

    Args:
        tensors: state dict of the file.
        model: the weights that it is applied to.
        metadata: header of the file; alpha is read from it if no tensor has it.
        name: file name, for messages.
        profile: its sampling settings; part of the report.
        allow_partial: use the tensors that fit instead of refusing an incomplete match.

    Raises:
        PCMError: if it is not a LoRA, is for another base model, is incomplete, or has invalid values.
    """
    file = open_lora(tensors, metadata=metadata, name=name, base_model=model.base_model, profile=profile)
    modules, notes = _one_expert(file, model.expert)
    match = _place(modules, model)
    placed = sum(len(module.keys) for entries in match.placed.values() for module, _ in entries)
    report = replace(
        file.report, notes=(*file.report.notes, *notes), matched=placed,
        offered=sum(len(module.keys) for module in modules) + len(file.contents.foreign),
        mismatched=tuple(match.mismatched), unknown=(*match.unknown, *file.contents.foreign),
        harmless=tuple(match.harmless), norms=file.norms(match.placed),
    )  # fmt: skip
    if not report.complete:
        report = replace(report, base_model=detect_base_model(file.modules))
    _refuse_incomplete(report, model.base_model, allow_partial)
    return file.updates(match.placed), report


def normalize(
    tensors: Mapping[str, Tensor],
    key_map: Mapping[str, Target] | None = None,
    shapes: Shapes | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    name: str = "LoRA",
    base_model: str = "",
    profile: PCMProfile | None = None,
    allow_partial: bool = False,
) -> tuple[dict[str, Tensor], LoraReport]:
    """``fit`` as one state dict under the model's own names, parts of fused weights joined (see ``join``).

    Args:
        key_map: the LoRA names of the model; without it the file keeps names of its own (see ``portable``).
        shapes: shape of every weight.

    Raises:
        PCMError: see ``fit``, ``join`` and ``portable``.
    """
    if key_map is None:
        return portable(tensors, metadata=metadata, name=name, profile=profile)
    shapes = shapes or {}
    model = ModelWeights(names=key_map, shapes=shapes, base_model=base_model)
    updates, report = fit(
        tensors, model, metadata=metadata, name=name, profile=profile, allow_partial=allow_partial
    )  # fmt: skip
    return join(updates, shapes), report


@dataclass
class _Match:
    """The modules by weight, and the keys that do not match."""

    placed: dict[str, list[tuple[Module, Target]]] = field(default_factory=dict[str, list[tuple[Module, Target]]])
    mismatched: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])
    harmless: list[str] = field(default_factory=list[str])


def _one_expert(file: LoraFile, expert: str) -> tuple[list[Module], list[str]]:
    """The modules for this model, if a file contains both experts of Wan 2.2 (``transformer`` and ``transformer_2``).

    Raises:
        PCMError: if it contains both, and it is not known which expert the model is.
    """
    low = [module for module in file.modules if module.low_noise]
    if not low or len(low) == len(file.modules):
        return file.modules, []
    expert = expert or (file.profile.expert or "")
    if not expert:
        raise PCMError(
            f"{file.name} holds LoRAs for both experts, and nothing says which one this model is.",
            'a model file with "high_noise" or "low_noise" in its name.',
            "Rename the model file, or the LoRA file, so that it says high_noise or low_noise.",
        )
    modules = low if expert == "low" else [module for module in file.modules if not module.low_noise]
    return modules, [f"The file holds both experts; the {expert}-noise half is for this model."]


def _place(modules: Sequence[Module], model: ModelWeights) -> _Match:
    """Find the weight of every module: by the model's own name for it, or by the canonical form of its names."""
    whole = all(module.stem in model.names for module in modules)
    index = {} if whole else _canonical_names(model)
    match = _Match()
    for module in modules:
        target, keys = model.names.get(module.stem) or index.get(module.name), module.keys.values()
        if target is None:
            optional = model.base_model == "wan" and any(f"_{part}_" in f"_{module.name}_" for part in _IMAGE_INPUT)
            (match.harmless if optional else match.unknown).extend(keys)
        elif not fits(module, target, model.shapes):
            match.mismatched.extend(keys)
        else:
            match.placed.setdefault(target.weight, []).append((module, target))
    return match


def _canonical_names(model: ModelWeights) -> dict[str, Target]:
    """The weights by the canonical forms of their names, first the model's own."""
    index: dict[str, Target] = {}
    for alias, target in model.names.items():
        index.setdefault(canonical(alias), target)
    for name, target in extra_targets(model.base_model, model.shapes).items():
        index.setdefault(name, target)
    return index


def _refuse_incomplete(report: LoraReport, base_model: str, allow_partial: bool) -> None:
    if report.complete and report.matched:
        return
    theirs, ours = base_model_name(report.base_model), base_model_name(base_model)
    other = report.base_model in BASE_MODEL_NAMES and base_model and not _related(report.base_model, base_model)
    if other and 2 * report.matched <= report.offered:
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


def _related(base_model: str, other: str) -> bool:
    """Whether two base models cannot be distinguished by names."""
    return base_model == other or (base_model == "unet" and other in ("sd15", "sd21", "sdxl"))
