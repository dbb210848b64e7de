"""The images that a table needs: the command for each folder, what exists already, and what cannot be made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..generate.command import MANIFEST
from .entries import slug
from .plan import Plan, Reference, System, Table, filled

_FILES = ("checkpoint", "model", "lora", "motion", "vae", "clip")
NOT_ASKED = "not asked for"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One folder of images.

    Attributes:
        name: for people, ``PCM, 4 steps``.
        words: the arguments of ``pcm generate``; the folder is the second.
        lacks: the files without which it cannot be made; empty if they are there.
        asked_for: whether the system has this step count.
    """

    name: str
    folder: Path
    words: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    asked_for: bool = True

    @property
    def absent(self) -> str:
        """Why it cannot be made; empty if it can."""
        if not self.asked_for:
            return NOT_ASKED
        if not self.lacks:
            return ""
        return f"{', '.join(self.lacks)} {'do' if len(self.lacks) > 1 else 'does'} not exist"

    @property
    def key(self) -> str:
        """A name for files about it."""
        return f"{self.folder.parent.parent.name}.{self.folder.parent.name}.{self.folder.name}"


class AbsentError(Exception):
    """A file does not exist."""


class Maker:
    """The folders and commands of one run of a table file.

    Args:
        out: the folder of the run.
        comfyui: what is appended to every command, so that it can be typed as it is.
    """

    def __init__(self, plan: Plan, out: Path, comfyui: Path | None) -> None:
        self.plan, self.out, self.comfyui = plan, out, comfyui

    def cell(self, table: Table, system: System, steps: int) -> Cell:
        """The cell of a system at a step count."""
        folder = self.out / "images" / self._set(table, table.seed) / slug(system.name) / str(steps)
        name = f"{system.name}, {steps} {'step' if steps == 1 else 'steps'}"
        if system.steps and steps not in system.steps:
            return Cell(name=name, folder=folder, asked_for=False)
        return self._made(name, folder, table, system, steps, table.seed)

    def reference(self, table: Table, reference: Reference) -> Cell:
        """The cell of a reference; a reference that is a folder has no command."""
        if reference.folder is not None:
            lacks = () if reference.folder.is_dir() else (str(reference.folder),)
            return Cell(name=reference.name, folder=reference.folder, lacks=lacks)
        assert reference.system is not None
        seed = table.seed if reference.seed is None else reference.seed
        folder = self.out / "images" / self._set(table, seed) / f"reference-{slug(reference.name)}" / "0"
        return self._made(f"reference {reference.name}", folder, table, reference.system, 0, seed)

    def prompts_file(self, table: Table) -> Path:
        """The prompts of a table as ``pcm generate`` reads them, one per line."""
        digest = hashlib.sha256("\n".join(table.prompts).encode()).hexdigest()[:8]
        return self.out / "prompts" / f"{slug(table.name)}-{digest}.txt"

    def _set(self, table: Table, seed: int) -> str:
        """A folder name for prompts, seed and shape: tables with the same ones share their images."""
        shape = [*table.prompts, str(seed), str(table.size), str(table.length), table.negative]
        return hashlib.sha256("\n".join(shape).encode()).hexdigest()[:10]

    def _made(self, name: str, folder: Path, table: Table, system: System, steps: int, seed: int) -> Cell:
        values = {**system.base, **{key: filled(value, steps) for key, value in system.values.items()}}
        if "checkpoint" in system.values:
            values.pop("model", None)
        files, lacks = self._files(values)
        lacks += [table.absent] if table.absent else []
        if lacks:
            return Cell(name=name, folder=folder, lacks=tuple(lacks))
        words = [str(self.prompts_file(table)), str(folder), *files]
        words += ["--sampling", _sampling(values, steps), "--seed", str(seed)]
        size = values.get("size", table.size)
        if table.size and "demo" not in values:
            words += ["--size", *map(str, size)]
        if table.length:
            words += ["--length", str(table.length), "--fps", f"{table.fps:g}"]
        if table.negative:
            words.append(f"--negative={table.negative}")  # it may begin with a dash
        for option in ("demo", "strength", "clip_type", "method", "gamma", "determinism", "shift"):
            if option in values:
                words += [f"--{option.replace('_', '-')}", str(values[option])]
        if self.comfyui is not None:
            words += ["--comfyui", str(self.comfyui)]
        return Cell(name=name, folder=folder, words=tuple(words))

    def _files(self, values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Options for the files that are there, and the names of those that are not."""
        words: list[str] = []
        lacks: list[str] = []
        for option in _FILES:
            given = values.get(option, [])
            for one in [given] if isinstance(given, str) else given:
                try:
                    words += [f"--{option}", str(self.find(one))]
                except AbsentError:
                    lacks.append(one)
        return words, lacks

    def find(self, name: str) -> Path:
        """A file beside the table, in its folders, or in ComfyUI's models.

        Raises:
            AbsentError: if it is in none of them.
        """
        path = Path(name).expanduser()
        for place in (self.plan.place, *self.plan.folders):
            if (place / path).exists():
                return place / path
            if (
                found := sorted(place.glob(f"*/{path}"))
                if place in self.plan.folders and not path.is_absolute()
                else []
            ):
                return found[0]
        raise AbsentError(f"{name} does not exist")


def _sampling(values: Mapping[str, Any], steps: int) -> str:
    """What ``--sampling`` takes: as written, else the column's step count; with the system's cfg."""
    text = str(values.get("sampling", steps))
    return f"{text} cfg {values['cfg']:g}" if "cfg" in values else text


def is_done(cell: Cell, done: Path) -> bool:
    """Whether an earlier run made every image of a cell from these very files and settings."""
    return done.is_file() and done.read_text("utf-8") == state(cell) and not missing(cell)


def missing(cell: Cell) -> int:
    """How many images of its manifest a folder lacks; 1 if it has none."""
    manifest = cell.folder / MANIFEST
    if not manifest.is_file():
        return 1
    there = {path.name for path in cell.folder.iterdir()}
    return sum(json.loads(line)["file"] not in there for line in manifest.read_text("utf-8").splitlines())


def state(cell: Cell) -> str:
    """The command of a cell and the state of its files, by which a finished cell is recognized."""
    paths = [Path(word) for word in cell.words[2:] if not word.startswith("--")]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    prompts = Path(cell.words[0]).read_text("utf-8")
    return json.dumps([list(cell.words), files, hashlib.sha256(prompts.encode()).hexdigest()])


def evaluations(folder: Path) -> int:
    """Calls of the network for one image, including those for the negative prompt, from the manifest."""
    row = json.loads((folder / MANIFEST).read_text("utf-8").splitlines()[0])
    parts: Sequence[float] = [float(part) for part in str(row["cfg"]).split(",")]
    return sum(
        2 if parts[min(step * len(parts) // row["steps"], len(parts) - 1)] != 1 else 1 for step in range(row["steps"])
    )
