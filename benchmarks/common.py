"""Shared by the benchmarks: markdown tables, ratios of timings, and the memory of live tensors.

A benchmark is a module in this folder. Run with ``python -m``, it prints one section of ``results.md`` in markdown,
without a heading. ``report`` runs it, adds the hardware and versions, and writes the section to the file.
"""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

MIB = 2**20


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pack_label(folder: Path) -> str:
    """The folder name of another node pack and the version in its pyproject.toml."""
    import tomllib  # not in Python 3.10, which pcm_core and its tests also support

    source = folder / "pyproject.toml"
    project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {}) if source.is_file() else {}
    return " ".join([folder.name, *([project["version"]] if "version" in project else [])])


def ratio_of(values: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios within each round: a change of load affects both sides of a round equally."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(values, base, strict=True)], n=4)
    return low, middle, high


class LiveBytes(TorchDispatchMode):
    """Peak memory of the live tensors created in this mode.

    Independent of allocator, machine and load; scratch memory inside kernels is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tree_map_only(Tensor, partial(self._see, made=False), (args, kwargs))  # a view of these takes no new memory
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, partial(self._see, made=True), out)
        return out

    def _see(self, tensor: Tensor, made: bool) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            size = storage.nbytes() if made else 0
            self._seen.add(storage._cdata)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._release, storage._cdata, size)
        return tensor

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def peak_bytes(run: Callable[[], Any]) -> int:
    """Peak memory of the tensors that ``run`` creates, in bytes."""
    with LiveBytes() as counter:
        run()
    return counter.peak
