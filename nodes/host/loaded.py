"""Which LoRA files Load PCM LoRA put on a model, for the record of what ran."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...pcm_core.errors import PCMError
from ...pcm_core.safetensors_file import read_header

_KEY = "pcm_loras"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class LoadedLora:
    """A file on a model: its path, the user's strength, and the state of the file when it was loaded."""

    path: str
    strength: float
    modified: int
    size: int

    @classmethod
    def of(cls, path: Path, strength: float) -> LoadedLora:
        """The file as it is now."""
        stat = path.stat()
        return cls(str(path), strength, stat.st_mtime_ns, stat.st_size)

    @property
    def name(self) -> str:
        """The file's name without folder and extension."""
        return Path(self.path).stem

    @property
    def short_hash(self) -> str:
        """Twelve digits of the hash by which A1111 and Civitai know a LoRA; empty if the file is no longer the same."""
        try:
            stat = Path(self.path).stat()
            same = (stat.st_mtime_ns, stat.st_size) == (self.modified, self.size)
            return _hash(self.path, self.modified, self.size)[:12] if same else ""
        except (OSError, PCMError):
            return ""


def with_loras(model: Any, loras: Iterable[LoadedLora]) -> Any:
    """A clone of the model that also carries these; it survives later clones and patches."""
    clone = model.clone()
    clone.set_attachments(_KEY, (*loras_of(model), *loras))
    return clone


def loras_of(model: Any) -> tuple[LoadedLora, ...]:
    """The files in the order in which they were loaded."""
    return model.get_attachment(_KEY) or ()


@lru_cache(maxsize=256)
def _hash(path: str, modified: int, size: int) -> str:
    """SHA-256 of the tensors, without the header, as kohya's scripts note it in the header."""
    del modified, size  # of the file that the result is kept for
    if noted := read_header(path).metadata.get("sshs_model_hash"):
        return noted
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
