"""Write a LoRA in a format that other tools load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import torch as safetensors_torch
from torch import Tensor

from ..errors import PCMError
from ..profiles import PCMProfile, profile_for, profile_to_metadata
from .contents import LoraFile, open_lora
from .diffusers_names import native_name
from .joining import plain
from .keys import Module, Target, dotted, wrapper
from .read import read_lora
from .report import LoraReport
from .scales import PEFT_METADATA

_UNETS = ("sd15", "sd21", "sdxl", "unet")


def convert(path: str | Path, out: str | Path) -> LoraReport:
    """Write the LoRA ``path`` with key names that other tools load, with alpha and ``pcm_*`` metadata.

    Text encoder tensors and keys that are not part of the LoRA are copied unchanged.

    Raises:
        PCMError: see ``read_lora`` and ``portable``; also if ``out`` is not a new .safetensors file.
    """
    path, out = Path(path), Path(out)
    if out.suffix.lower() not in (".safetensors", ".sft") or out.exists():
        state = "exists already" if out.exists() else "is not a .safetensors file"
        raise PCMError(f"{out.name} {state}.", "a new .safetensors file to write.", "Choose another name.")
    tensors, metadata = read_lora(path)
    profile = profile_for(path, metadata)
    written, report = portable(tensors, metadata=metadata, name=path.name, profile=profile)
    metadata = {key: value for key, value in metadata.items() if key != PEFT_METADATA}
    metadata |= profile_to_metadata(profile) if profile.known else {}
    whole = {key: tensor.contiguous() for key, tensor in written.items()}
    safetensors_torch.save_file(whole, out, metadata=metadata | {"format": "pt"})  # pyright: ignore[reportUnknownMemberType]
    return report


def portable(
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    name: str = "LoRA",
    profile: PCMProfile | None = None,
) -> tuple[dict[str, Tensor], LoraReport]:
    """A LoRA with key names that other tools load: kohya's for UNets, else dotted names; alpha is always written.

    Raises:
        PCMError: if it is not a LoRA, or has invalid values.
    """
    file = open_lora(tensors, metadata=metadata, name=name, profile=profile)
    placed: dict[str, list[tuple[Module, Target]]] = {}
    for module in file.modules:
        stem = _portable_stem(file, module.stem)
        placed.setdefault(f"{stem}.weight", []).append((module, Target(stem)))
    output: dict[str, Tensor] = {}
    for update in file.updates(placed):
        output |= plain(update.target.weight, update)
    kept = (*file.contents.text, *file.contents.foreign, *(k for keys in file.contents.beside.values() for k in keys))
    output |= {key: tensors[key] for key in kept}
    report = replace(
        file.report, matched=sum(len(module.keys) for module in file.modules), unknown=tuple(file.contents.foreign),
        norms=file.norms(placed),
    )  # fmt: skip
    return output, report


def _portable_stem(file: LoraFile, stem: str) -> str:
    """The name of a module in other tools."""
    base_model, start = file.report.base_model, wrapper(stem)
    if base_model in _UNETS:
        name = file.contents.modules[stem].name
        return f"lora_unet_{name}" + ("_0" if name.endswith("_to_out") else "")
    if start.endswith("_"):  # no dots to restore; the host knows these names
        return stem
    if any(module.low_noise for module in file.modules) and not all(module.low_noise for module in file.modules):
        return stem  # both experts in one file
    theirs = any(m.name.startswith(("transformer_blocks", "single_transformer_blocks")) for m in file.modules)
    prefix = "transformer." if theirs and base_model not in ("ltxv", "ltx-2") else "diffusion_model."
    return prefix + native_name(base_model if base_model == "wan" else "", dotted(stem))
