"""Read and check a table file. Nothing is loaded here.

See ``benchmarks/demo.toml`` for a small one. A file has settings that hold for all of its tables, and one or more
``[[tables]]`` with their own; ``[bases]``, ``[references]``, ``[networks]`` and ``[[systems]]`` are shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcm_core.profiles import method_choices, profile_from_name

from ..generate.maker import DEMOS
from ..metrics.measures import MEASURES, Measure
from ..workers import ROOT, see_demo
from . import entries
from .entries import checked, listed, no_doubles, one_of, refuse
from .published import Published, check_published, read_published

_COUNT = "{n}"  # stands for the column's step count


@dataclass(frozen=True, kw_only=True)
class System:
    """A row: a base model, possibly with a LoRA, or a checkpoint of its own, and how it is sampled.

    Attributes:
        values: the entries in the file, of ``entries.SYSTEM``.
        steps: its columns; empty for all columns of the table.
    """

    name: str
    base: Mapping[str, Any]
    values: Mapping[str, Any]
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a measure compares with: a folder, or images that a system generates with settings of its own."""

    name: str
    folder: Path | None = None
    system: System | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A measure as a table asks for it.

    Attributes:
        label: its printed name; the paper calls FID against the teacher's own images FID-SD.
        reference: the name of a reference; empty for none.
        against: for consistency, the step count of the same system with which every column is compared.
    """

    label: str
    measure: Measure
    reference: str = ""
    against: int = 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: its columns are step counts, its rows systems.

    Attributes:
        absent: its prompt file, if that is not there; then nothing of it can be made.
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
        folders: where files are searched after the folder of the table file.
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
            refuse("This Python reads no TOML.", "Python 3.11, or tomli.", "pip install tomli.")
    try:
        return toml.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        refuse(f"{path} cannot be read ({error}).", "a table in TOML.", "Look at benchmarks/demo.toml.")


def read_plan(path: Path, *, comfyui: Path | None = None) -> Plan:
    """Read a table file, and check it as far as possible without loading anything.

    Raises:
        PCMError: at the first mistake.
    """
    content = checked(read_toml(path), entries.ROOT, "The file")
    folders = [(path.parent / Path(folder).expanduser()) for folder in content.get("folders", [])]
    models = [] if comfyui is None else [comfyui / "models"]
    bases = {name: _base(name, base) for name, base in content.get("bases", {}).items()}
    networks = checked(content.get("networks", {}), entries.FILES_OF_MEASURES, "[networks]")
    shared = {key: value for key, value in content.items() if key in entries.ONE_TABLE and key != "systems"}
    systems = [_system(entry, bases) for entry in content.get("systems", [])]
    no_doubles([system.name for system in systems], "systems")
    references = {name: _reference(name, entry, bases, path.parent) for name, entry in
                  content.get("references", {}).items()}  # fmt: skip
    no_doubles(references, "references")
    parts = [{**shared, **entry} for entry in content.get("tables", [{"name": path.stem}])]
    if not parts or not systems:
        refuse(f"{path} has no systems.", "at least one [[systems]].", "Look at benchmarks/demo.toml.")
    published = [read_published(entry) for entry in content.get("published", [])]
    tables = tuple(_table(part, systems, references, path.parent, published) for part in parts)
    no_doubles([table.name for table in tables], "tables")
    check_published(published, tables)
    return Plan(
        title=content.get("title", path.stem), place=path.parent, tables=tables, networks=networks,
        folders=tuple([*folders, *models]), demo=any("demo" in base for base in bases.values()),
    )  # fmt: skip


def _table(
    values: Mapping[str, Any],
    systems: Sequence[System],
    references: Mapping[str, Reference],
    place: Path,
    published: Sequence[Published],
) -> Table:
    name = str(values.get("name", "table"))
    checked(values, entries.ONE_TABLE, f"[[tables]] {name}")
    steps = tuple(values.get("steps", ()))
    if not steps:
        refuse(f"Table {name} has no columns.", "step counts.", "Write steps = [1, 2, 4, 8].")
    columns = tuple(_column(entry, references, steps, name) for entry in values.get("measures", ()))
    labels = [column.label for column in columns]
    plot = _plotted(values, labels, name)
    size = values.get("size", (1024, 1024))
    prompts, absent = read_prompts(values, place)
    return Table(
        name=name, title=values.get("title", name), prompts=prompts, absent=absent, plot=plot,
        seed=values.get("seed", 0), steps=steps, size=(size[0], size[1]), length=values.get("length"),
        fps=float(values.get("fps", 16)), negative=values.get("negative", ""), columns=columns,
        systems=_rows(values, systems, steps, name),
        references={one.reference: references[one.reference] for one in columns if one.reference},
        published=tuple(one for one in published if one.table in ("", name) and one.label in labels),
    )  # fmt: skip


def _rows(values: Mapping[str, Any], systems: Sequence[System], steps: Sequence[int], table: str) -> tuple[System, ...]:
    known = [system.name for system in systems]
    wanted = values.get("systems", known)
    if unknown := [one for one in wanted if one not in known]:
        refuse(f"Table {table} has a system {unknown[0]}.", f"one of {', '.join(known)}.",
               "Correct it, or add its [[systems]].")  # fmt: skip
    rows = tuple(system for system in systems if system.name in wanted)
    for system in rows:
        if strange := [count for count in system.steps if count not in steps]:
            refuse(f"{system.name} has {strange[0]} steps.", f"columns of {table}: {listed(steps)}.", "Add the column.")
    return rows


def _plotted(values: Mapping[str, Any], labels: Sequence[str], table: str) -> str:
    if not labels:
        refuse(f"Table {table} has no measures.", f"some of {', '.join(MEASURES)}.", 'Write measures = ["clip_score"].')
    if double := [label for label in labels if labels.count(label) > 1]:
        refuse(f"Table {table} measures {double[0]} twice.", "one label each.", 'Give one a label = "FID-SD".')
    plot = values.get("plot", labels[0])
    if plot not in labels:
        refuse(f'Table {table} plots "{plot}".', f"one of {', '.join(labels)}.", "Correct it.")
    return plot


def read_prompts(values: Mapping[str, Any], place: Path) -> tuple[tuple[str, ...], str]:
    """``count`` prompts, ``per_prompt`` times each, and their file if it is not there.

    ``prompts = "demo"`` names those of the demo world.

    Raises:
        PCMError: if the file is none, or has an empty line: every line must be a prompt, for images are paired by line.
    """
    given, count, times = values.get("prompts"), values.get("count"), values.get("per_prompt", 1)
    if given == "demo":
        if not (ROOT / "demo" / "score.py").is_file():
            refuse("The demo world is not here.", "a clone of the pack.", "Run it in a clone, or name a prompt file.")
        see_demo()
        from demo.score import prompts_for

        return tuple(str(prompt) for prompt in prompts_for(count or 48) for _ in range(times)), ""
    if given is None:
        refuse("The table names no prompts.", "a text file, a prompt a line.", 'Write prompts = "prompts.txt".')
    path = place / Path(given).expanduser()
    if not path.exists():
        return (), str(path)
    try:
        lines = path.read_text("utf-8").rstrip("\n").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"The prompts {path} cannot be read ({error}).", "a text file, a prompt a line.", "Correct the name.")
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        refuse(f"Line {empty[0]} of {path} is empty.", "a prompt in every line.", "Remove it.")
    if not lines:
        refuse(f"{path} is empty.", "a prompt in every line.", "Write some.")
    if count is not None and count > len(lines):
        refuse(f"count is {count}, and {path} has {len(lines)} prompts.", f"1 to {len(lines)}.", "Correct it.")
    return tuple(line.strip() for line in lines[:count] for _ in range(times)), ""


def _base(name: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    checked(entry, entries.BASE, f"[bases.{name}]")
    if "demo" in entry:
        one_of(DEMOS, entry["demo"], f"demo of [bases.{name}]", "the demo worlds")
    return entry


def _system(entry: Mapping[str, Any], bases: Mapping[str, Any]) -> System:
    name = str(entry.get("name", "")).strip()
    if not name:
        refuse("A [[systems]] has no name.", "one for its row.", 'Write name = "PCM".')
    checked(entry, entries.SYSTEM, f"[[systems]] {name}")
    return _sampled(name, entry, bases)


def _sampled(name: str, entry: Mapping[str, Any], bases: Mapping[str, Any]) -> System:
    base: Mapping[str, Any] = {}
    if "base" in entry:
        base = one_of(bases, entry["base"], f"base of {name}", "[bases]")
    elif "checkpoint" not in entry and "model" not in entry:
        refuse(f"{name} has neither base nor checkpoint.", "one of them.", "Write base or checkpoint.")
    if "method" in entry and entry["method"] not in method_choices() and not profile_from_name(entry["method"], None):
        known = ", ".join(method_choices())
        refuse(f'The method of {name} is "{entry["method"]}".', f"a file of one, or one of {known}.", "Correct it.")
    return System(name=name, base=base, values=entry, steps=tuple(entry.get("steps", ())))


def _reference(name: str, entry: Mapping[str, Any], bases: Mapping[str, Any], place: Path) -> Reference:
    checked(entry, entries.REFERENCE, f"[references.{name}]")
    if "folder" in entry:
        if more := sorted(set(entry) - {"folder"}):
            refuse(f"[references.{name}] has a folder and a {more[0]}.", "one of them.", "Remove the other.")
        return Reference(name=name, folder=place / Path(entry["folder"]).expanduser())
    if "base" not in entry or "sampling" not in entry:
        refuse(f"[references.{name}] has no folder.", "a folder, or a base and a sampling.", "Write one of them.")
    values = {key: value for key, value in entry.items() if key != "seed"}
    return Reference(name=name, system=_sampled(name, {"name": name, **values}, bases), seed=entry.get("seed"))


def _column(entry: Any, references: Mapping[str, Reference], steps: Sequence[int], table: str) -> Column:
    values: dict[str, Any] = {"measure": entry} if isinstance(entry, str) else dict(entry)
    checked(values, entries.MEASURE, f"A measure of {table}")
    found: Measure = one_of(MEASURES | demo_measures(), values.get("measure"), f"measure of {table}", "the measures")
    label = values.get("label", found.label)
    if found is MEASURES["consistency"] and "reference" not in values:
        against: int = values.get("against", max(steps))
        if against not in steps:
            refuse(f"{label} is against {against} steps.", f"a column: {listed(steps)}.", "Correct it.")
        return Column(label=label, measure=found, against=against)
    if "against" in values:
        refuse(f"{label} has against = {values['against']}.", "that of consistency alone.", "Remove it.")
    if not found.reference:
        if "reference" in values:
            refuse(f"{label} has a reference.", "none, for it looks at one folder.", "Remove it.")
        return Column(label=label, measure=found)
    one_of(references, values.get("reference"), f"reference of {label}", "[references]")
    return Column(label=label, measure=found, reference=values["reference"])


def demo_measures() -> dict[str, Measure]:
    """The measures of the demo world, if it is here."""
    if not (ROOT / "demo" / "judge.py").is_file():  # not part of the pip package
        return {}
    see_demo()
    from . import demo

    return demo.MEASURES


def filled(value: Any, count: int) -> Any:
    """``{n}`` replaced by the step count."""
    return value.replace(_COUNT, str(count)) if isinstance(value, str) else value
