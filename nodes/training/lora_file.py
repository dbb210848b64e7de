"""A trained LoRA and its file: written atomically, and if that fails saved in the host's LoRA folder."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from ...pcm_core.distill.file import write_lora
from ...pcm_core.errors import PCMError
from ..host import training as host_training


class TrainedLora(dict[str, Tensor]):
    """A LORA_MODEL for the host's own nodes that also has its settings."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = metadata


def write_or_rescue(path: Path, lora: TrainedLora) -> Path:
    """``write_lora``, and where that fails what an interrupt does: the LoRA goes to the host's folder of rescued ones.

    Returns:
        Where it is, see ``write_lora``.

    Raises:
        PCMError: if it is not where it was wanted; says where it is instead.
    """
    try:
        return write_lora(path, lora, lora.metadata)
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
