"""Write a LoRA file atomically."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ..errors import PCMError
from ..finished_file import put


def write_lora(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], dtype: torch.dtype | None = None
) -> Path:
    """Write a safetensors file that appears under its name only when it is complete.

    Args:
        dtype: dtype of the matrices in the file; scalars (``.alpha``) stay float32. Default: unchanged.

    Returns:
        Where it is: ``path``, or a name beside it if the file there is open and the system does not replace it.

    Raises:
        PCMError: if it cannot be written, for example because the disk is full.
    """
    partial = path.with_suffix(".part")
    try:
        # Copies, because safetensors refuses tensors that share memory.
        state = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        if dtype is not None:
            state = {key: value.to(dtype) if value.ndim else value for key, value in state.items()}
        partial.touch()
        mode = partial.stat().st_mode
        save_file(state, partial, metadata=metadata)
        with suppress(OSError):  # safetensors creates files that only their owner may read
            partial.chmod(mode)
        return put(partial, path)
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
