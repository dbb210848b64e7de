"""A table file read and checked: what is generated, with what, measured how. Nothing is loaded here.

See ``benchmarks/demo.toml`` for a small one. A file has settings that hold for all of its tables, and one or more
``[[tables]]`` with their own; ``[bases]``, ``[references]``, ``[networks]`` and ``[[systems]]`` are shared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pcm_core.errors import PCMError
from pcm_core.phases import MAX_COUNT

from ..metrics.measures import MEASURES, Measure
from ..workers import ROOT, see_demo

NETWORKS = ("inception", "clip", "hps", "hps21", "pick", "aes", "raft", "features")
_ROOT = {"title", "folders", "networks", "bases", "references", "tables", "systems", "published"}
_TABLE = {"name", "title", "prompts", "count", "per_prompt", "seed", "steps", "size", "length", "fps", "negative",
          "measures", "systems", "plot"}  # fmt: skip
_BASE = {"checkpoint", "model", "vae", "clip", "clip_type", "demo", "motion"}
_SYSTEM = {"name", "base", "lora", "strength", "checkpoint", "model", "method", "sampling", "cfg", "gamma",
           "determinism", "shift", "size", "steps", "note"}  # fmt: skip
_REFERENCE = {"folder", "base", "sampling", "seed", "lora", "method", "size"}
_PUBLISHED = {"system", "measure", "steps", "values", "table", "page", "in"}
_COUNT = "{n}"  # stands for the column's step count


@dataclass(frozen=True, kw_only=True)
class System:
    """A row: a base with a LoRA, a checkpoint of its own or neither, and how it is sampled.

    Attributes:
        values: of ``_SYSTEM``, as they stand in the file.
        steps: the columns it has; empty for all of the table.
    """

    name: str
    base: Mapping[str, Any]
    values: Mapping[str, Any]
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What measures compare with: a folder, or what a system makes at a step count of its own."""

    name: str
    folder: Path | None = None
    system: System | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A measure as a table asks for it.

    Attributes:
        label: in print; FID against the teacher's own images is called FID-SD by the paper.
        reference: the name of a reference; empty for none.
        against: of consistency, the step count of the same system that every column is compared with.
    """

    label: str
    measure: Measure
    reference: str = ""
    against: int = 0


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers that others printed, beside which ours are put."""

    system: str
    label: str
    values: Mapping[int, float]
    source: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: its columns are step counts, its rows systems.

    Attributes:
        absent: why none of it can be made, for its prompts are not there; empty if they are.
    """

    name: str
    title: str
    prompts: tuple[str, ...]
    absent: str
    seed: int
    steps: tuple[int, ...]
    size: tuple[int, int]
    length: int | None
    fps: float
    negative: str
    columns: tuple[Column, ...]
    systems: tuple[System, ...]
    references: Mapping[str, Reference]
    plot: str
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole table file.

    Attributes:
        folders: where files are looked for, after the table's own.
        networks: files of measures by name, as written.
        place: the folder of the table file.
    """

    title: str
    place: Path
    tables: tuple[Table, ...]
    networks: Mapping[str, str]
    folders: tuple[Path, ...] = ()
    demo: bool = field(default=False)


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        PCMError: if it cannot be read, or this Python cannot read TOML.
    """
    try:
        import tomllib as toml  # Python 3.11  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        try:
            import tomli as toml  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            _refuse("This Python reads no TOML.", "Python 3.11, or tomli.", "pip install tomli.")
    try:
        return toml.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        _refuse(f"{path} cannot be read ({error}).", "a table in TOML.", "Look at benchmarks/demo.toml.")


def read_plan(path: Path, *, comfyui: Path | None = None) -> Plan:
    """A table file, checked as far as it can be without loading anything.

    Raises:
        PCMError: if a name, number or file of it is not one.
    """
    content = read_toml(path)
    _known(content, _ROOT | _TABLE, "The file", str(path))
    folders = [(path.parent / Path(folder).expanduser()) for folder in content.get("folders", [])]
    models = [] if comfyui is None else [comfyui / "models"]
    bases = {name: _checked(base, _BASE, f"[bases.{name}]") for name, base in content.get("bases", {}).items()}
    networks = _checked(content.get("networks", {}), set(NETWORKS), "[networks]")
    shared = {key: value for key, value in content.items() if key in _TABLE - {"systems"}}
    systems = [_system(entry, bases) for entry in content.get("systems", [])]
    names = [system.name for system in systems]
    if double := {name for name in names if names.count(name) > 1}:
        _refuse(f"There are two systems {sorted(double)[0]}.", "one name each.", "Rename one.")
    references = {name: _reference(name, entry, bases, path.parent) for name, entry in
                  content.get("references", {}).items()}  # fmt: skip
    entries = content.get("tables", [{"name": path.stem}])
    published = [_checked(entry, _PUBLISHED, "[[published]]") for entry in content.get("published", [])]
    tables = tuple(_table({**shared, **entry}, systems, references, path.parent, published) for entry in entries)
    if not tables or not systems:
        _refuse(f"{path} has no systems.", "at least one [[systems]].", "Look at benchmarks/demo.toml.")
    if all(table.absent for table in tables):
        _refuse(f"There are no prompts: {tables[0].absent}.", "a text file, a prompt a line.", "Correct the name.")
    return Plan(
        title=content.get("title", path.stem), place=path.parent, tables=tables, networks=networks,
        folders=tuple([*folders, *models]), demo=any("demo" in base for base in bases.values()),
    )  # fmt: skip


def _table(
    values: Mapping[str, Any],
    systems: Sequence[System],
    references: Mapping[str, Reference],
    place: Path,
    published: Sequence[Mapping[str, Any]],
) -> Table:
    name = str(values.get("name", "table"))
    _checked(values, _TABLE, f"[[tables]] {name}")
    steps = _steps(values.get("steps", ()), f"steps of {name}")
    wanted = values.get("systems", [system.name for system in systems])
    if unknown := [one for one in wanted if one not in {system.name for system in systems}]:
        known = ", ".join(system.name for system in systems)
        _refuse(f"Table {name} has a system {unknown[0]}.", f"one of {known}.", "Correct it, or add its [[systems]].")
    rows = tuple(system for system in systems if system.name in wanted)
    columns = tuple(_column(entry, references, steps, name) for entry in values.get("measures", ()))
    if not columns:
        _refuse(f"Table {name} has no measures.", f"some of {', '.join(MEASURES)}.", 'Write measures = ["clip_score"].')
    labels = [column.label for column in columns]
    plot = str(values.get("plot", labels[0]))
    if plot not in labels:
        _refuse(f'Table {name} plots "{plot}".', f"one of {', '.join(labels)}.", "Correct it.")
    for system in rows:
        if strange := [count for count in system.steps if count not in steps]:
            _refuse(
                f"{system.name} has {strange[0]} steps.", f"columns of {name}: {_listed(steps)}.", "Add the column."
            )
    size = values.get("size", (1024, 1024))
    prompts, absent = read_prompts(values, place)
    return Table(
        name=name, title=str(values.get("title", name)), prompts=prompts, absent=absent, plot=plot,
        seed=int(values.get("seed", 0)), steps=steps, size=(int(size[0]), int(size[1])), length=values.get("length"),
        fps=float(values.get("fps", 16)), negative=str(values.get("negative", "")), columns=columns, systems=rows,
        references={one.reference: references[one.reference] for one in columns if one.reference},
        published=tuple(_published(entry) for entry in published if entry.get("in", name) == name),
    )  # fmt: skip


def read_prompts(values: Mapping[str, Any], place: Path) -> tuple[tuple[str, ...], str]:
    """``count`` prompts, ``per_prompt`` times each, and why there are none; the world's own for ``prompts = "demo"``.

    Raises:
        PCMError: if the file is none, or has an empty line: every line must be a prompt, for images are paired by line.
    """
    given, count, times = values.get("prompts"), values.get("count"), int(values.get("per_prompt", 1))
    if given == "demo":
        if not (ROOT / "demo" / "score.py").is_file():
            _refuse("The demo world is not here.", "a clone of the pack.", "Run it in a clone, or name a prompt file.")
        see_demo()
        from demo.score import prompts_for

        return tuple(str(prompt) for prompt in prompts_for(int(count or 48)) for _ in range(times)), ""
    if not isinstance(given, str):
        _refuse("The table names no prompts.", "a text file, a prompt a line.", 'Write prompts = "prompts.txt".')
    path = place / Path(given).expanduser()
    if not path.exists():
        return (), f"{path} does not exist"
    try:
        lines = path.read_text("utf-8").rstrip("\n").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"The prompts {path} cannot be read ({error}).", "a text file, a prompt a line.", "Correct the name.")
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        _refuse(f"Line {empty[0]} of {path} is empty.", "a prompt in every line.", "Remove it.")
    if count is not None and not 1 <= count <= len(lines):
        _refuse(f"count is {count}, and {path} has {len(lines)} prompts.", f"1 to {len(lines)}.", "Correct it.")
    if not lines:
        _refuse(f"{path} is empty.", "a prompt in every line.", "Write some.")
    return tuple(line.strip() for line in lines[:count] for _ in range(times)), ""


def _system(entry: Mapping[str, Any], bases: Mapping[str, Any]) -> System:
    name = str(entry.get("name", "")).strip()
    if not name:
        _refuse("A [[systems]] has no name.", "one for its row.", 'Write name = "PCM".')
    _checked(entry, _SYSTEM, f"[[systems]] {name}")
    base: Mapping[str, Any] = {}
    if "base" in entry:
        base = _one_of(bases, entry["base"], f"base of {name}", "[bases]")
    elif not entry.get("checkpoint") and not entry.get("model"):
        _refuse(f"{name} has neither base nor checkpoint.", "one of them.", "Write base or checkpoint.")
    return System(name=name, base=base, values=entry, steps=_steps(entry.get("steps", ()), f"steps of {name}"))


def _reference(name: str, entry: Mapping[str, Any], bases: Mapping[str, Any], place: Path) -> Reference:
    _checked(entry, _REFERENCE, f"[references.{name}]")
    if "folder" in entry:
        return Reference(name=name, folder=place / Path(entry["folder"]).expanduser())
    if "base" not in entry or "sampling" not in entry:
        _refuse(f"[references.{name}] has no folder.", "a folder, or a base and a sampling.", "Write one of them.")
    values = {key: value for key, value in entry.items() if key != "seed"}
    return Reference(name=name, system=_system({"name": name, **values}, bases), seed=entry.get("seed"))


def _column(entry: Any, references: Mapping[str, Reference], steps: Sequence[int], table: str) -> Column:
    values = {"measure": entry} if isinstance(entry, str) else dict(entry)
    _checked(values, {"measure", "label", "reference", "against"}, f"A measure of {table}")
    found = _one_of(MEASURES | demo_measures(), values.get("measure"), f"measure of {table}", "the measures")
    label, against = str(values.get("label", found.label)), int(values.get("against", 0))
    if found is MEASURES["consistency"] and "reference" not in values:
        against = against or max(steps)
        if against not in steps:
            _refuse(f"consistency is against {against} steps.", f"a column: {_listed(steps)}.", "Correct it.")
        return Column(label=label, measure=found, against=against)
    if found.reference:
        _one_of(references, values.get("reference"), f"reference of {label}", "[references]")
    return Column(label=label, measure=found, reference=values.get("reference", "") if found.reference else "")


def demo_measures() -> dict[str, Measure]:
    """Those of the demo world, where there is one: its own judge reads its images."""
    if not (ROOT / "demo" / "judge.py").is_file():  # installed by pip, without it
        return {}
    see_demo()
    from . import demo

    return demo.MEASURES


def _published(entry: Mapping[str, Any]) -> Published:
    source = f"Table {entry['table']}" + (f", page {entry['page']}" if "page" in entry else "")
    values = {int(n): float(value) for n, value in zip(entry["steps"], entry["values"], strict=True)}
    return Published(system=entry["system"], label=entry["measure"], values=values, source=source)


def _steps(given: Any, what: str) -> tuple[int, ...]:
    steps = tuple(given)
    if any(not isinstance(count, int) or not 1 <= count <= MAX_COUNT for count in steps) or len(set(steps)) < len(
        steps
    ):
        _refuse(f"The {what} are {list(steps)}.", f"different numbers from 1 to {MAX_COUNT}.", "Correct them.")
    return steps


def _one_of(known: Mapping[str, Any], name: Any, what: str, where: str) -> Any:
    if name not in known:
        _refuse(f'The {what} is "{name}".', f"one of {where}: {', '.join(known) or 'there are none'}.", "Correct it.")
    return known[name]


def _checked(entry: Mapping[str, Any], allowed: set[str], where: str) -> Mapping[str, Any]:
    return _known(entry, allowed, where, "it")


def _known(entry: Mapping[str, Any], allowed: set[str], where: str, name: str) -> Mapping[str, Any]:
    if strange := sorted(set(entry) - allowed):
        _refuse(f'{where} has an entry "{strange[0]}".', f"{', '.join(sorted(allowed))}.", f"Correct {name}.")
    return entry


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def _refuse(found: str, expected: str, action: str) -> NoReturn:
    raise PCMError(found, expected, action)


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "system"


def filled(value: Any, count: int) -> Any:
    """``{n}`` replaced by the step count."""
    return value.replace(_COUNT, str(count)) if isinstance(value, str) else value
