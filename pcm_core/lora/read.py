"""Read a LoRA file, with the configuration that PEFT writes beside it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..safetensors_file import read_tensors
from .scales import PEFT_METADATA

# PEFT's ``save_pretrained`` writes these two into one folder.
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LARGEST_CONFIG = 2**20


def read_lora(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, memory mapped on the CPU, and its metadata.

    Of PEFT's ``adapter_model.safetensors`` the metadata includes the ``adapter_config.json`` beside it.

    Raises:
        PCMError: as ``read_tensors``.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    config = path.with_name(_CONFIG)
    if path.name == _WEIGHTS and config.is_file() and config.stat().st_size <= _LARGEST_CONFIG:
        metadata = {PEFT_METADATA: config.read_text("utf-8", errors="replace")} | metadata
    return tensors, metadata
