"""A finished file gets its name, also where somebody has the file of that name open."""

from __future__ import annotations

import time
from pathlib import Path

_TRIES, _PAUSE = 3, 0.1  # a virus scanner holds a file for moments, a reader that has mapped it for hours


def put(partial: Path, path: Path) -> Path:
    """Give a finished file its name, in one step.

    Windows does not replace a file that is open or mapped. The new file then is beside it, as ``<name>.new<suffix>``,
    in the place of an older one of that name.

    Returns:
        Where the file is: ``path``, or the name beside it. The caller says so.

    Raises:
        OSError: if it cannot be put there either; ``partial`` is still there.
    """
    for again in range(_TRIES):
        try:
            partial.replace(path)
            return path
        except PermissionError:
            if not path.is_file():
                raise
            if again < _TRIES - 1:
                time.sleep(_PAUSE)
    other = beside(path)
    partial.replace(other)
    return other


def beside(path: Path) -> Path:
    """``my_lora.new.safetensors`` for ``my_lora.safetensors``."""
    return path.with_name(f"{path.stem}.new{path.suffix}")
