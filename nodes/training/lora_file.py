"""A trained LoRA and its file: written atomically, and if that fails saved in the host's LoRA folder."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...pcm_core.errors import PCMError
from ..host import training as host_training


class TrainedLora(dict[str, Tensor]):
    """A LORA_MODEL for the host's own nodes that also has its settings."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = metadata


def write_lora(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write a safetensors file, whole or not at all: it appears under its name when it is complete.

    Raises:
        PCMError: if it cannot be written, for example because the disk is full.
    """
    partial = path.with_suffix(".part")
    try:
        # Copies, for a file cannot hold two tensors that share memory.
        state = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        if dtype is not None:
            state = {key: value.to(dtype) if value.ndim else value for key, value in state.items()}
        partial.touch()
        mode = partial.stat().st_mode
        save_file(state, partial, metadata=metadata)
        with suppress(OSError):  # safetensors leaves a file that only its owner may read
            partial.chmod(mode)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise PCMError(
            f"{path.name} cannot be written ({error}).",
            "free space and write permission.",
            "Free some space and save again.",
        ) from error


def write_or_rescue(path: Path, lora: TrainedLora) -> None:
    """``write_lora``, and where that fails what an interrupt does: the LoRA goes to the host's folder of rescued ones.

    Raises:
        PCMError: if it is not where it was wanted; says where it is instead.
    """
    try:
        write_lora(path, lora, lora.metadata)
    except PCMError as error:
        raise PCMError(error.found, error.expected, rescue_lora(lora)) from error


def rescue_lora(trained: TrainedLora) -> str:
    """Save the LoRA trained so far and log where, or why not; the original error of the run is still raised."""
    try:
        path, name = host_training.new_lora_path("pcm_interrupted")
        write_lora(path, trained, trained.metadata)
    except PCMError as error:
        logging.error("Distillation stopped; what was trained so far could not be saved: %s", error.found)
        return f"It could not be saved: {error.found}"
    logging.warning("Distillation stopped; what was trained so far is in loras as %s.", name)
    return f"Saved as {name}."
