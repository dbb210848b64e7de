"""Images in ComfyUI's output folder, with metadata that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...pcm_core.errors import PCMError

_LONGEST = 200  # bytes of a name, which has 255 with number and ending
_LONGEST_KEY = 79  # of a text in a PNG


def save_pictures(images: Tensor, prefix: str, parameters: str, hidden: Any) -> list[tuple[str, str]]:
    """Write PNG files as the host's Save Image does, and ``parameters`` as A1111 does: as it is, not as JSON.

    Args:
        images: [B, H, W, C], 0 to 1.
        prefix: folder and beginning of the names, with the host's ``%width%`` and the like.
        hidden: the node's hidden inputs, with PROMPT and EXTRA_PNGINFO.

    Returns:
        Name and subfolder of each.

    Raises:
        PCMError: if the prefix leaves the output folder, or a file cannot be written.
    """
    height, width = images.shape[1:3]
    output = folder_paths.get_output_directory()
    parts = Path(prefix).parts
    leaves = not prefix.isprintable() or any(len(part.encode()) > _LONGEST for part in parts)
    if leaves or not Path(output, prefix).resolve().is_relative_to(Path(output).resolve()):
        raise PCMError(f'The prefix is "{prefix}".', "a name inside the output folder.", "Use one such as pcm/image.")
    written: list[tuple[str, str]] = []
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
        for number, image in enumerate(images):
            stem = name.replace("%batch_num%", str(number))
            while (path := Path(folder, f"{stem}_{counter:05}_.png")).exists():  # the host counts no %batch_num%
                counter += 1
            pixels = (255.0 * image.cpu().numpy()).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, pnginfo=_metadata(parameters, hidden), compress_level=4)
            counter += 1
            written.append((path.name, subfolder))
    except OSError as error:
        raise PCMError(f"The image cannot be written ({error}).", "a writable folder.", "Check it.") from error
    return written


def _metadata(parameters: str, hidden: Any) -> PngInfo | None:
    """``None`` where the user switched metadata off (--disable-metadata)."""
    if args.disable_metadata:
        return None
    metadata = PngInfo()
    text = parameters.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    metadata.add_text("parameters", text)  # PIL takes iTXt for what Latin-1 does not hold
    if getattr(hidden, "prompt", None) is not None:
        metadata.add_text("prompt", json.dumps(hidden.prompt))
    beside = getattr(hidden, "extra_pnginfo", None)
    for key, value in (beside if isinstance(beside, dict) else {}).items():
        if key not in ("parameters", "prompt") and key.isascii() and key.isprintable() and len(key) <= _LONGEST_KEY:
            metadata.add_text(key, json.dumps(value))
    return metadata
