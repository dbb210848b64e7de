"""The results of a run as Markdown, CSV and JSON, and the comparison of two runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcm_core.errors import PCMError

from .cells import NOT_ASKED
from .plan import Plan, Table
from .run import Result

_CALLS = "calls of the network for one image"
Results = Mapping[str, Mapping[tuple[str, int], Result]]


def content(plan: Plan, results: Results) -> dict[str, Any]:
    """All results for ``table.json``: one entry per table, in it one row per system and step count."""
    return {"title": plan.title, "tables": [_table(table, results[table.name]) for table in plan.tables]}


def _table(table: Table, results: Mapping[tuple[str, int], Result]) -> dict[str, Any]:
    rows = [
        {"system": system, "steps": steps, "evaluations": result.evaluations, "figures": _finite(result.figures),
         "absent": result.absent, "why": result.why}
        for (system, steps), result in results.items()
    ]  # fmt: skip
    columns = [
        {"label": one.label, "better": one.measure.better, "digits": one.measure.digits} for one in table.columns
    ]
    published = [
        {
            "system": one.system,
            "label": one.label,
            "source": one.source,
            "values": {str(n): v for n, v in one.values.items()},
        }
        for one in table.published
    ]
    notes = {system.name: system.values["note"] for system in table.systems if "note" in system.values}
    return {"name": table.name, "title": table.title, "images": len(table.prompts), "seed": table.seed,
            "steps": list(table.steps), "plot": table.plot, "columns": columns, "rows": rows,
            "published": published, "notes": notes}  # fmt: skip


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def markdown(found: Mapping[str, Any]) -> str:
    """A matrix per measure, systems by steps, with published numbers under ours; then notes and what is left out."""
    lines = [f"# {found['title']}"]
    for table in found["tables"]:
        lines += [
            "",
            f"## {table['title']}",
            "",
            f"{table['images']} images a cell, the first of seed {table['seed']}.",
        ]
        for column in table["columns"]:
            lines += ["", *_matrix(table, column)]
        lines += ["", *_matrix(table, {"label": _CALLS, "digits": 0, "better": ""})]
        notes = [f"- {system}: {note}" for system, note in table["notes"].items()]
        lines += ["", "Notes:", "", *notes] if notes else []
        lines += _left_out(table)
    return "\n".join(lines) + "\n"


def _matrix(table: Mapping[str, Any], column: Mapping[str, Any]) -> list[str]:
    label, digits = column["label"], column["digits"]
    better = f", {column['better']} is better" if column["better"] else ""
    lines = [
        f"**{label}**{better}",
        "",
        "| system | " + " | ".join(f"{n} {'step' if n == 1 else 'steps'}" for n in table["steps"]) + " |",
    ]
    lines.append("|---|" + "---|" * len(table["steps"]))
    for system in dict.fromkeys(row["system"] for row in table["rows"]):
        ours = {row["steps"]: _value(row, label) for row in table["rows"] if row["system"] == system}
        lines.append(_line(system, ours, table["steps"], digits))
        for one in table["published"]:
            if (one["system"], one["label"]) == (system, label):
                values = {int(n): value for n, value in one["values"].items()}
                lines.append(_line(f"*{system}, published ({one['source']})*", values, table["steps"], digits))
    return lines


def _value(row: Mapping[str, Any], label: str) -> float | None:
    return (row["evaluations"] or None) if label == _CALLS else row["figures"].get(label)


def _line(name: str, values: Mapping[int, float | None], steps: Sequence[int], digits: int) -> str:
    cells = [f"{value:.{digits}f}" if (value := values.get(n)) is not None else "-" for n in steps]
    return f"| {name} | " + " | ".join(cells) + " |"


def _left_out(table: Mapping[str, Any]) -> list[str]:
    """Every missing cell and figure with its reason; each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in table["rows"]:
        if row["why"] and row["why"] != NOT_ASKED:
            reasons.setdefault((row["system"], row["why"]), []).append(str(row["steps"]))
        for label, why in row["absent"].items():
            reasons.setdefault((label, why), []).append(f"{row['system']} {row['steps']}")
    lines = []
    for (name, why), where in reasons.items():
        shown = ", ".join(where if len(where) <= 6 else [*where[:5], f"{len(where) - 5} more"])
        lines.append(f"- {name} ({shown}): {why}")
    return ["", "Left out:", "", *lines] if lines else []


def as_csv(found: Mapping[str, Any]) -> str:
    """One row per figure: table, system, steps, evaluations, measure, value, and where a published one is from."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "system", "steps", "evaluations", "measure", "value", "source"])
    for table in found["tables"]:
        for row in table["rows"]:
            for label, value in row["figures"].items():
                writer.writerow(
                    [table["name"], row["system"], row["steps"], row["evaluations"], label, value, "measured"]
                )
        for one in table["published"]:
            for steps, value in one["values"].items():
                writer.writerow([table["name"], one["system"], steps, "", one["label"], value, one["source"]])
    return text.getvalue()


def compared(one: Path, other: Path) -> str:
    """The figures of two runs of one table as Markdown, with the difference of the second from the first.

    Raises:
        PCMError: if a file is no run, or they have no figure in common.
    """
    first, second = (_figures(path) for path in (one, other))
    shared = [key for key in first if key in second]
    if not shared:
        raise PCMError(f"{one} and {other} have no figure in common.", "two runs of one table.", "Give two of them.")
    lines = ["| table | system | steps | measure | first | second | difference |", "|---|---|---|---|---|---|---|"]
    for key in shared:
        table, system, steps, label = key
        a, b = first[key], second[key]
        lines.append(f"| {table} | {system} | {steps} | {label} | {a:.4f} | {b:.4f} | {b - a:+.4f} |")
    alone = [
        f"{len(first.keys() - second.keys())} only in the first",
        f"{len(second.keys() - first.keys())} in the second",
    ]
    return "\n".join(lines) + f"\n\n{len(shared)} figures in both, {', '.join(alone)}.\n"


def _figures(path: Path) -> dict[tuple[str, str, int, str], float]:
    file = path / "table.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text("utf-8"))
        return {
            (table["name"], row["system"], row["steps"], label): value
            for table in found["tables"]
            for row in table["rows"]
            for label, value in row["figures"].items()
            if value is not None
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PCMError(f"{file} cannot be read ({error}).", "a table.json of pcm table.", "Give another.") from error
