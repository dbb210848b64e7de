"""Run a table file, in one process or many: generate every folder, then measure it. A killed run can be continued."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcm_core.errors import PCMError

from ..generate import command as generate
from ..generate.maker import Loaded, column_of
from ..metrics.features import check_cache
from ..metrics.measures import Files, Folder, Networks
from ..metrics.networks import fingerprint
from ..metrics.report import MissingError
from ..metrics.sources import SourceError, read
from ..workers import Pack, Workers
from .cells import AbsentError, Cell, Maker, evaluations, is_done, missing, state
from .plan import Column, Plan, System, Table

_KEPT = ("inception", "clip", "hps", "hps21", "pick")  # the networks whose features are kept


@dataclass
class Result:
    """The results of one cell: figures by label, and the reason for each that is missing."""

    evaluations: int = 0
    figures: dict[str, float] = field(default_factory=dict[str, float])
    absent: dict[str, str] = field(default_factory=dict[str, str])
    why: str = ""


class Run:
    """One run of a table file in a folder.

    Args:
        load: loads the pack; called once, before the first image is made.
        device: where the measures' networks run.
    """

    def __init__(self, plan: Plan, maker: Maker, workers: Workers, load: Callable[[], Pack], device: str) -> None:
        self.plan, self.maker, self.workers, self.load = plan, maker, workers, load
        self.out, self.loaded, self.failed = maker.out, Loaded(), dict[str, str]()
        self.networks = Networks(_files(plan, maker, device))
        self._pack: Pack | None = None
        self._folders: dict[Path, Folder] = {}

    # What there is

    def cells(self) -> list[Cell]:
        """Every folder once: references first, then the rows in their order."""
        found: dict[Path, Cell] = {}
        for table in self.plan.tables:
            for reference in table.references.values():
                cell = self.maker.reference(table, reference)
                found.setdefault(cell.folder, cell)
        for table in self.plan.tables:
            for system in table.systems:
                for steps in table.steps:
                    cell = self.maker.cell(table, system, steps)
                    found.setdefault(cell.folder, cell)
        return list(found.values())

    def check(self) -> None:
        """Write the prompt files, and refuse what would otherwise fail after hours of work.

        That is options that exclude each other, missing partners, features of other networks and unreadable images.

        Raises:
            PCMError, SourceError, SystemExit: in one sentence.
        """
        if all(table.absent for table in self.plan.tables):
            found = f"There are no prompts: {self.plan.tables[0].absent} does not exist."
            raise PCMError(found, "a text file, a prompt a line.", "Correct the name.")
        for table in [table for table in self.plan.tables if not table.absent]:
            path = self.maker.prompts_file(table)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(table.prompts) + "\n", "utf-8", newline="\n")
        for cell in self.cells():
            if cell.words:
                generate.check(generate.parser().parse_args(cell.words))
            for name in _KEPT:
                if (path := getattr(self.networks.files, name)) is not None:
                    check_cache(cell.folder.resolve(), name, fingerprint(Path(path)))
        for table in self.plan.tables:
            for column in table.columns:
                reference = table.references.get(column.reference)
                if reference is not None and reference.folder is not None and reference.folder.is_dir():
                    self._check_reference(table, column, self.maker.reference(table, reference))

    def _check_reference(self, table: Table, column: Column, cell: Cell) -> None:
        """Read every image of a reference folder; its features, if a network computes them, are extracted now."""
        names = {f"{index:06}_{table.seed + index}" for index in range(len(table.prompts))}
        folder = self._folder(cell)
        if column.measure.paired and not names & {item.name for item in folder.items}:
            raise PCMError(
                f"{cell.folder} holds no partner of the images of {table.name}.",
                f"items named {sorted(names)[0]} and so on.",
                "Make it with pcm generate from the same prompts and seed.",
            )
        try:
            for name in column.measure.needs:
                folder.features(name)
        except MissingError:  # a missing network, which the report names
            folder.read_all()
        if not column.measure.needs:
            folder.read_all()

    # Images

    def make(self) -> None:
        """Generate what is missing; a cell that fails is named and the others are made."""
        cells = [cell for cell in self.cells() if cell.words]
        with self.workers.together():
            self._check_samplings(cells)
        for number, cell in enumerate(cells, 1):
            self._say(f"[{number}/{len(cells)}] {cell.name}")
            try:
                self._make(cell)
            except (Exception, SystemExit) as error:  # of any kind, from a file or a GPU: the other rows are still made
                self._note(cell, _reason(error))
            self.workers.wait()

    def _check_samplings(self, cells: Sequence[Cell]) -> None:
        """Refuse an invalid ``--sampling`` of any cell that is still to be made."""
        for cell in cells:
            if not is_done(cell, self._done(cell)):
                try:
                    column_of(generate.parser().parse_args(cell.words), self.pack)
                except self.pack("pcm_core.errors").PCMError as error:
                    raise SystemExit(f"{cell.name}: {error}") from error

    @property
    def pack(self) -> Pack:
        """The pack, loaded at its first use: a table that is only measured needs no ComfyUI."""
        if self._pack is None:
            self._pack = self.load()
        return self._pack

    def _done(self, cell: Cell) -> Path:
        return self.out / "done" / f"{cell.key}.json"

    def _make(self, cell: Cell) -> None:
        done = self._done(cell)
        self._note(cell, "")
        with self.workers.together():
            finished = is_done(cell, done)
            options = generate.parser().parse_args(cell.words)
            generate.check(options)
        if finished:
            return
        generate.generate(options, self.pack, self.workers, self.loaded)
        self.workers.wait()
        if self.workers.first and not missing(cell):
            done.parent.mkdir(parents=True, exist_ok=True)
            done.write_text(state(cell), "utf-8", newline="\n")

    def _note(self, cell: Cell, why: str) -> None:
        """Write down why this process could not make a cell, for the first process to read; nothing if it could."""
        path = self.out / "failed" / f"{cell.key}.{self.workers.rank}.txt"
        if why:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(why, "utf-8", newline="\n")
            self._say(f"{cell.name} failed: {why}")
        else:
            path.unlink(missing_ok=True)

    def why(self, cell: Cell) -> str:
        """Why a cell has no figures; empty if it is whole."""
        if cell.absent:
            return cell.absent
        if not cell.words:
            return ""
        notes = sorted((self.out / "failed").glob(f"{cell.key}.*.txt"))
        if notes:
            return min((note.read_text("utf-8") for note in notes), key=lambda text: "Another process" in text)
        return "it is not complete" if missing(cell) else ""

    # Figures

    def measure(self) -> dict[str, dict[tuple[str, int], Result]]:
        """Results by table, then by system and step count. Cells are shared out; every process returns all."""
        whole = [cell for cell in self.cells() if not self.why(cell)]
        for cell in whole[self.workers.rank :: self.workers.count]:
            self._look(cell)
        self.workers.wait()
        wanted = [(table, system, steps) for table in self.plan.tables for system in table.systems
                  for steps in table.steps]  # fmt: skip
        for number, (table, system, steps) in enumerate(wanted):
            if number % self.workers.count == self.workers.rank:
                path = self._figures(table, system, steps)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(vars(self._take(table, system, steps))), "utf-8", newline="\n")
        self.workers.wait()
        found: dict[str, dict[tuple[str, int], Result]] = {table.name: {} for table in self.plan.tables}
        for table, system, steps in wanted:
            text = self._figures(table, system, steps).read_text("utf-8")
            found[table.name][system.name, steps] = Result(**json.loads(text))
        return found

    def _figures(self, table: Table, system: System, steps: int) -> Path:
        return self.out / "figures" / f"{table.name}.{self.maker.cell(table, system, steps).key}.json"

    def _look(self, cell: Cell) -> None:
        """Extract all features of a cell that a table needs; the measures report the networks that are missing."""
        needs = {name for table in self.plan.tables for column in table.columns for name in column.measure.needs}
        for name in sorted(needs & set(_KEPT)):
            try:
                self._folder(cell).features(name)
            except (MissingError, SourceError):
                continue

    def _folder(self, cell: Cell) -> Folder:
        if cell.folder not in self._folders:
            while len(self._folders) > 8:  # features of many thousand images each
                self._folders.pop(next(iter(self._folders)))
            self._folders[cell.folder] = Folder(read(str(cell.folder)), cell.folder.resolve(), self.networks)
        return self._folders[cell.folder]

    def _take(self, table: Table, system: System, steps: int) -> Result:
        cell = self.maker.cell(table, system, steps)
        result = Result(why=self.why(cell))
        if result.why:
            return result
        result.evaluations = evaluations(cell.folder)
        for column in table.columns:
            if column.against == steps:
                continue
            try:
                result.figures[column.label] = self._figure(table, system, cell, column)
            except (MissingError, SourceError, AbsentError) as error:
                result.absent[column.label] = str(error)
            except Exception as error:  # out of memory, a broken file: the other figures are still computed
                result.absent[column.label] = _reason(error)
        return result

    def _figure(self, table: Table, system: System, cell: Cell, column: Column) -> float:
        ours = self._folder(cell)
        if column.against:
            other = self.maker.cell(table, system, column.against)
        elif column.reference:
            other = self.maker.reference(table, table.references[column.reference])
        else:
            return column.measure.take(ours, ours)
        if why := self.why(other):
            raise MissingError(f"{other.name}: {why}")
        return column.measure.take(ours, self._folder(other))

    def _say(self, text: str) -> None:
        if self.workers.first:
            print(text, file=sys.stderr, flush=True)


def _files(plan: Plan, maker: Maker, device: str) -> Files:
    """The network files that exist, and the names of the others, which the measures report."""
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name, given in plan.networks.items():
        try:
            path = maker.find(given)
        except AbsentError:
            absent[name] = given
        else:
            found[name] = str(path) if name == "clip" else path
    return Files(**found, absent=absent, device=device, option="[networks] {name}")


def _reason(error: BaseException) -> str:
    """The reason of a failed row, in one line."""
    text = str(error).strip()
    if isinstance(error, (PCMError, SystemExit, SourceError, MissingError)) and text:
        return text.splitlines()[0]
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
