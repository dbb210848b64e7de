"""Features of a folder from a network, cached beside the folder as long as its files do not change."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pcm_core.finished_file import put

from ..progress import bar
from .networks import BATCH, Network, in_batches
from .sources import Item, SourceError

_AHEAD = 64  # items read ahead of the network
_READERS = 4


def cache_file(folder: Path, name: str, fingerprint: str) -> Path:
    """The cache of a folder's features by one network: beside the folder, not among its images."""
    return folder.parent / f"{folder.name}.features" / f"{name}-{fingerprint}.safetensors"


def check_cache(folder: Path, name: str, fingerprint: str) -> None:
    """Check the cached features of a folder without reading them.

    Raises:
        SourceError: if they are of another network, or the file is not a cache.
    """
    path = cache_file(folder, name, fingerprint)
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path} is not a feature cache ({error}). Delete it.") from error
        _refuse_other(path, metadata, name, fingerprint)


def _refuse_other(path: Path, metadata: dict[str, str], name: str, fingerprint: str) -> None:
    if metadata.get("network") != fingerprint:
        raise SourceError(
            f"{path} holds features of another network ({metadata.get('network')}), not of {name} {fingerprint}. "
            "Delete it."
        )


class Features:
    """Features [T, F] of every item by name.

    Args:
        folder: beside which they are cached; ``None`` for items from a server, which are not cached.
    """

    def __init__(self, items: Sequence[Item], network: Network, folder: Path | None) -> None:
        self.path = None if folder is None else cache_file(folder, network.name, network.fingerprint)
        known, states = ({}, {}) if self.path is None else _read(self.path, network)
        self.rows = {item.name: known[item.name] for item in items if _same(item, states) and item.name in known}
        absent = [item for item in items if item.name not in self.rows]
        if absent:
            try:
                self._extract(absent, network)
            finally:
                if self.path is not None:
                    _write(self.path, network, items, self.rows)

    def _extract(self, items: Sequence[Item], network: Network) -> None:
        held: list[tuple[str, Tensor]] = []

        def flush() -> None:
            if held:
                found = in_batches(network, torch.cat([frames for _, frames in held]))
                parts = found.split([len(frames) for _, frames in held])
                self.rows |= {name: part.clone() for (name, _), part in zip(held, parts, strict=True)}
                held.clear()

        with bar(len(items), network.name, unit="images") as shown:
            for item, frames in read_ahead(items):
                full = sum(len(other) for _, other in held) + len(frames) > BATCH
                if held and (full or held[0][1].shape[1:] != frames.shape[1:]):
                    flush()
                held.append((item.name, frames))
                shown.update()
            flush()

    def stacked(self) -> Tensor:
        """All frames of all items [N, F], in the order of their names, because float sums depend on the order."""
        return torch.cat([self.rows[name] for name in sorted(self.rows)])


def read_ahead(items: Sequence[Item]) -> Iterator[tuple[Item, Tensor]]:
    """Items and their frames in order, read by a few threads: decoding releases the interpreter lock."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = iter(items)
        queue: list[tuple[Item, Future[Tensor]]] = []
        try:
            while True:
                queue += [(item, pool.submit(item.load)) for item in islice(waiting, _AHEAD - len(queue))]
                if not queue:
                    return
                item, frames = queue.pop(0)
                yield item, frames.result()
        finally:
            for _, frames in queue:
                frames.cancel()


def _same(item: Item, states: dict[str, tuple[int, int]]) -> bool:
    return item.state is not None and states.get(item.name) == item.state


def _read(path: Path, network: Network) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """Cached features by name, and the state of the files that they belong to."""
    if not path.is_file():
        return {}, {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            rows: Tensor = file.get_tensor("features")
        entries = json.loads(metadata["items"])
        parts = rows.split([length for _, _, _, length in entries])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise SourceError(f"{path} is not a feature cache ({error}). Delete it.") from error
    _refuse_other(path, metadata, network.name, network.fingerprint)
    named = {name: part for (name, *_), part in zip(entries, parts, strict=True)}
    return named, {name: (size, time) for name, size, time, _ in entries}


def _write(path: Path, network: Network, items: Sequence[Item], rows: dict[str, Tensor]) -> None:
    """Write a cache atomically; none if there are no features."""
    states = {item.name: item.state for item in items if item.state is not None and item.name in rows}
    if not states:
        return
    entries = [[name, *state, len(rows[name])] for name, state in sorted(states.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    stacked = torch.cat([rows[str(name)] for name, *_ in entries]).contiguous()
    save_file({"features": stacked}, partial, metadata={"network": network.fingerprint, "items": json.dumps(entries)})
    if (written := put(partial, path)) != path:
        print(f"{path} is open in another program; what is new is in {written.name}.", file=sys.stderr)
