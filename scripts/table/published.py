"""Numbers that others printed, to stand beside what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import entries
from .entries import checked, listed, refuse

if TYPE_CHECKING:
    from .plan import Table


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers that others printed, beside which ours are put.

    Attributes:
        source: table and page of the paper.
        table: the name of the table they stand in; empty for every table with that measure.
    """

    system: str
    label: str
    values: Mapping[int, float]
    source: str
    table: str = ""


def read_published(entry: Mapping[str, Any]) -> Published:
    """One entry of ``[[published]]``.

    Raises:
        PCMError: if it is not whole.
    """
    checked(entry, entries.PUBLISHED, "[[published]]")
    if absent := [name for name in ("system", "measure", "steps", "values", "table") if name not in entry]:
        refuse(f"A [[published]] has no {absent[0]}.", "system, measure, steps, values and table.", "Add it.")
    steps, values, system = entry["steps"], entry["values"], entry["system"]
    if len(steps) != len(values):
        found = f"[[published]] {system} lists {len(steps)} steps, but values for {len(values)}."
        refuse(found, "one value per step.", "Correct it.")
    source = f"Table {entry['table']}" + (f", page {entry['page']}" if "page" in entry else "")
    return Published(
        system=system, label=entry["measure"], source=source, table=entry.get("in", ""),
        values={n: float(value) for n, value in zip(steps, values, strict=True)},
    )  # fmt: skip


def check_published(published: Sequence[Published], tables: Sequence[Table]) -> None:
    """Refuse numbers that no table would show.

    Raises:
        PCMError: at the first.
    """
    for one in published:
        where = [table for table in tables if one.table in ("", table.name)]
        shown = [
            table for table in where
            if one.label in {column.label for column in table.columns}
            and one.system in {system.name for system in table.systems} and set(one.values) <= set(table.steps)
        ]  # fmt: skip
        if not shown:
            at = f" in {one.table}" if one.table else ""
            refuse(f"[[published]] has {one.label} of {one.system}{at} at {listed([*one.values])} steps.",
                   "a table with that system, measure and columns.", "Correct it.")  # fmt: skip
