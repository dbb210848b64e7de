"""Write a LoRA so that other tools load it."""

from __future__ import annotations

from pathlib import Path

from safetensors import torch as safetensors_torch

from ..errors import PCMError
from ..profiles import profile_for, profile_to_metadata
from ..safetensors_file import read_tensors
from .keys import split_keys
from .normalize import PEFT_METADATA, normalize
from .report import LoraReport


def convert(path: str | Path, out: str | Path) -> LoraReport:
    """Write ``path`` under names that other tools load, alpha and ``pcm_*`` metadata included.

    Text encoder tensors and keys that are no LoRA are copied as they are.

    Raises:
        PCMError: as ``read_tensors`` and ``normalize``, or if ``out`` is not a new .safetensors file.
    """
    path, out = Path(path), Path(out)
    if out.suffix.lower() not in (".safetensors", ".sft") or out.exists():
        state = "exists already" if out.exists() else "is no .safetensors file"
        raise PCMError(f"{out.name} {state}.", "a new .safetensors file to write.", "Choose another name.")
    tensors, metadata = read_tensors(path)
    profile = profile_for(path, metadata)
    loadable, report = normalize(tensors, metadata=metadata, name=path.name, profile=profile)
    _, text, foreign = split_keys(tensors)
    loadable |= {key: tensors[key] for key in (*text, *foreign)}
    metadata = {key: value for key, value in metadata.items() if key != PEFT_METADATA}
    metadata |= profile_to_metadata(profile) if profile.known else {}
    whole = {key: tensor.contiguous() for key, tensor in loadable.items()}
    safetensors_torch.save_file(whole, out, metadata=metadata | {"format": "pt"})  # pyright: ignore[reportUnknownMemberType]
    return report
