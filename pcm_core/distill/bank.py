"""The bank of a matching stage: the student's states at every phase edge, and the teacher's result from the last one.

It holds (noise, caption) pairs, so no images are needed. For every pair the student's own jumps give its states on
the upper edges, and the guided teacher runs over its solver grid through the lowest phase. It is made once, in chunks
that are files: an interrupted bank continues where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from ..errors import PCMError
from ..safetensors_file import read_tensors
from ..sigma_table import SigmaTable
from .adapters import Adapters
from .loop import Processes
from .objective import Denoiser, SolverGrid, jump_batch

Progress = Callable[[int, int], None]
_CHUNKS = "[0-9]" * 5 + ".safetensors"


@dataclass(frozen=True)
class Bank:
    """Pairs on the CPU, float32.

    Attributes:
        states: the student at the top of every phase, descending noise; each [N, ...].
        ends: where the teacher ends from the last of them (or from the first, see ``BankPlan.walk``), [N, ...].
        captions: caption indices [N], int64.
    """

    states: tuple[Tensor, ...]
    ends: Tensor
    captions: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    def rows(self, start: int, end: int | None = None) -> Bank:
        """The pairs from ``start`` to ``end``."""
        part = slice(start, end)
        return Bank(tuple(state[part] for state in self.states), self.ends[part], self.captions[part])

    @classmethod
    def joined(cls, banks: Sequence[Bank]) -> Bank:
        states = tuple(torch.cat(parts) for parts in zip(*(bank.states for bank in banks), strict=True))
        return cls(states, torch.cat([bank.ends for bank in banks]), torch.cat([bank.captions for bank in banks]))


@dataclass(frozen=True)
class BankPlan:
    """The settings of a bank.

    Attributes:
        edges: descending noise levels, the top of every phase and the end of the last: M + 1 numbers.
        walk: descending noise levels of the teacher, from one of the edges to ``edges[-1]``: its way through the
            lowest phase, or from pure noise.
        shape: of one latent.
        texts: how many captions there are.
        pairs: to train on; ``held_texts`` times ``held_samples`` more are kept for diagnostics.
        chunk: pairs that are made and stored together, a batch of the model.
        cfg: guidance of the teacher's walk.
        flow: how latents are noised.
    """

    edges: tuple[float, ...]
    walk: tuple[float, ...]
    shape: tuple[int, ...]
    texts: int
    pairs: int
    chunk: int
    cfg: float
    flow: bool
    seed: int = 0
    held_texts: int = 4
    held_samples: int = 8

    @classmethod
    def of(
        cls, table: SigmaTable | Tensor, phases: int, grid: int, terminal: Any, *, whole: bool = False, **more: Any
    ) -> BankPlan:  # fmt: skip
        """The levels of a model's ``table`` for phases on a solver grid; the rest as the attributes say.

        ``whole``: the teacher walks from pure noise instead of the student's last edge.
        """
        points = SolverGrid.from_table(table, phases, grid, terminal)
        edges = [*sorted({float(edge) for edge in points.edge}), float(points.sigma[-1])]
        lowest = zip(points.sigma, points.edge, strict=True)
        walk = [float(sigma) for sigma, edge in lowest if whole or float(edge) == edges[0]]
        return cls(tuple(reversed(edges)), (*reversed(walk), edges[0]), **more)

    @property
    def held(self) -> int:
        return min(self.held_texts, self.texts) * self.held_samples

    @property
    def evaluations(self) -> int:
        """Number of model evaluations, one per sample."""
        guided = 1 if self.cfg == 1 else 2
        return (self.pairs + self.held) * (len(self.edges) - 2 + guided * (len(self.walk) - 1))

    @property
    def bytes(self) -> int:
        return (self.pairs + self.held) * len(self.edges) * 4 * torch.Size(self.shape).numel()

    def announcement(self) -> str:
        """Size and cost in words, for the log before it is made."""
        return (
            f"The bank takes {self.pairs + self.held} pairs, {self.evaluations} evaluations of one sample each, "
            f"{self.bytes / 2**20:.0f} MB in memory and on disk."
        )

    def chunks(self) -> list[int]:
        """Number of pairs in every chunk; the first chunk is held out."""
        full, rest = divmod(self.pairs, self.chunk)
        return [self.held, *[self.chunk] * full, *([rest] if rest else [])]

    def draw(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Noise [size, ...] and captions [size] of a chunk, on the CPU: the same whenever it is made."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        noise = torch.randn(size, *self.shape, generator=generator)
        if number == 0:
            return noise, torch.arange(size) // self.held_samples
        return noise, torch.randint(self.texts, (size,), generator=generator)

    def start(self, noise: Tensor) -> Tensor:
        """Latents at the top of the first phase, as the host makes them for a full denoise."""
        top = self.edges[0]
        return noise * (top if self.flow else (1 + top**2) ** 0.5)


def fingerprint(adapters: Adapters) -> str:
    """A digest of the model and the student's start: some of the frozen weights and all of the student's."""
    digest = hashlib.sha256()
    for name, module in adapters.targets.items():
        weight = cast(Tensor, module.weight).detach().flatten()[:64]
        digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
    for parameter in adapters.student.parameters():
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def make_chunk(plan: BankPlan, number: int, size: int, student: Denoiser, teacher: Denoiser, device: Any) -> Bank:
    """The student's jumps and the teacher's walk for one chunk."""
    noise, captions = plan.draw(number, size)
    states = _states(plan, plan.start(noise).to(device), student)
    x = states[plan.edges.index(plan.walk[0])]
    for above, below in pairwise(plan.walk):
        x = _jump(teacher, x, above, below)
    return Bank(tuple(state.float().cpu() for state in states), x.float().cpu(), captions)


@torch.no_grad()
def with_student(
    walks: Bank, plan: BankPlan, models: Callable[[Tensor], tuple[Denoiser, Denoiser]], device: torch.device | str
) -> Bank:
    """``walks`` with the states of another student, which take a few evaluations where the walks took dozens.

    Args:
        walks: of the same teacher, whose walks begin at pure noise.
        plan: with the student's phases; only its edges and ``chunk`` count.
        models: as in ``BankStore.make``.
    """
    parts: list[Bank] = []
    for first in range(0, len(walks), plan.chunk):
        part = walks.rows(first, first + plan.chunk)
        states = _states(plan, part.states[0].to(device), models(part.captions)[0])
        parts.append(Bank(tuple(state.float().cpu() for state in states), part.ends, part.captions))
    return Bank.joined(parts)


def _states(plan: BankPlan, x: Tensor, student: Denoiser) -> list[Tensor]:
    """The student at the top of every phase, from ``x`` at the first."""
    states = [x]
    for above, below in zip(plan.edges[:-2], plan.edges[1:-1], strict=True):
        states.append(_jump(student, states[-1], above, below))
    return states


def _jump(model: Denoiser, x: Tensor, above: float, below: float) -> Tensor:
    sigma = x.new_full((len(x),), above)
    return jump_batch(x, model(x, sigma), sigma, torch.full_like(sigma, below))


class BankStore:
    """Chunks of a bank as files of a folder; ``None`` keeps them in memory only.

    Args:
        folder: created if it is missing.
        key: the settings of the bank; a folder with another key is refused.
        refresh: delete the stored chunks.

    Raises:
        PCMError: if the folder holds the bank of another model, or cannot be made.
    """

    def __init__(self, folder: Path | None, plan: BankPlan, key: str, *, refresh: bool = False) -> None:
        # A chunk is the same whatever their number, so a bank can grow.
        self.folder, self.plan, self.key = folder, plan, f"{key} {replace(plan, pairs=0)}"
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(_CHUNKS) if refresh else ():  # nothing else that may lie there
                path.unlink()
        except OSError as error:
            raise PCMError(f"{folder} cannot be made ({error}).", "a folder.", "Give another name.") from error
        for path in sorted(folder.glob(_CHUNKS))[:1]:
            self._read(path)

    def make(
        self, models: Callable[[Tensor], tuple[Denoiser, Denoiser]], device: torch.device | str,
        progress: Progress | None = None, processes: Processes | None = None,
    ) -> Bank:  # fmt: skip
        """Make what is missing and return all of it, the held-out pairs first.

        Args:
            models: from captions [B] to the student and the guided teacher under them.
            progress: called after every chunk with the pairs that are there and those there will be; whatever it
                raises ends the making, and what is stored stays.
            processes: that share a folder: each makes every n-th chunk, then all read them all.
        """
        sizes, done, place = self.plan.chunks(), 0, processes or Processes()
        parts: dict[int, Bank] = {}
        for number, size in enumerate(sizes):
            if self.folder is None or number % place.count == place.rank:
                parts[number] = self._chunk(number, size, models, device)
            done += size
            if progress is not None:
                progress(done, sum(sizes))
        place.average([torch.zeros(1)])  # waits until every process has stored its chunks
        return Bank.joined([parts.get(n) or self._chunk(n, size, models, device) for n, size in enumerate(sizes)])

    def _chunk(
        self, number: int, size: int, models: Callable[[Tensor], tuple[Denoiser, Denoiser]], device: torch.device | str
    ) -> Bank:
        """Read, or made and stored."""
        path = None if self.folder is None else self.folder / f"{number:05}.safetensors"
        if path is not None and path.exists() and len(stored := self._read(path)) == size:
            return stored
        _, captions = self.plan.draw(number, size)
        made = make_chunk(self.plan, number, size, *models(captions), device)
        if path is not None:
            self._write(path, made)
        return made

    def _read(self, path: Path) -> Bank:
        try:
            stored, metadata = read_tensors(path)
            states = tuple(stored[f"states.{i}"] for i in range(len(stored) - 2))
            bank = Bank(states, stored["ends"], stored["captions"])
        except (PCMError, KeyError) as error:
            raise PCMError(
                f"{path} is not part of a bank.", "a file that a matching stage wrote.", "Delete it."
            ) from error
        if metadata.get("key") != self.key:
            raise PCMError(
                f"The bank in {path.parent} was made for another model, LoRA or settings.",
                "the bank of this one.",
                "Give another folder, or ask for a new bank.",
            )
        return bank

    def _write(self, path: Path, bank: Bank) -> None:
        partial = path.with_suffix(".part")
        try:
            stored = {f"states.{i}": state for i, state in enumerate(bank.states)}
            stored |= {"ends": bank.ends, "captions": bank.captions}
            whole = {name: tensor.contiguous() for name, tensor in stored.items()}
            safetensors_torch.save_file(whole, partial, metadata={"key": self.key})  # pyright: ignore[reportUnknownMemberType]
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise PCMError(
                f"{path} cannot be written ({error}).",
                "free space and write permission.",
                "Free some space, start again.",
            ) from error
