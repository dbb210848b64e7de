"""Parse the columns of PCM Compare."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...pcm_core.errors import PCMError
from ...pcm_core.phases import MAX_COUNT

_ENTRY = re.compile(
    r"(?:(?P<model>[a-z])\s*:\s*)?"
    r"(?:(?P<sampler>[\w+-]+)\s*/\s*(?P<scheduler>[\w+-]+)\s*@\s*)?"
    r"(?P<steps>auto|\d{1,6})"
    r"(?:\s+cfg\s*(?P<cfg>\d+(?:\.\d+)?))?"
    r"(?:\s*=\s*(?P<label>[^=]+))?",
    re.IGNORECASE,
)
# U+FF0C is the comma of Chinese and Japanese input methods.
_SEPARATORS = re.compile("[,\uff0c\n]")
MAX_COLUMNS = 64
_MAX_LABEL = 200  # a sheet is as wide as its labels


@dataclass(frozen=True, kw_only=True)
class Column:
    """One way to sample.

    Attributes:
        model: letter of the connected model, ``a`` for the first.
        steps: number of evaluations; 0 for the profile's own.
        cfg: ``None`` for the profile's own, or 1 for stock samplers.
        sampler, scheduler: names in the host; empty for PCM.
        label: the user's label; empty for a generated one.
    """

    model: str
    steps: int
    cfg: float | None = None
    sampler: str = ""
    scheduler: str = ""
    label: str = ""

    @property
    def title(self) -> str:
        if self.label:
            return self.label
        steps = f"{self.steps} {'step' if self.steps == 1 else 'steps'}" if self.steps else "auto"
        prefix = "" if self.model == "a" else f"{self.model}: "
        return f"{prefix}{self.sampler + ' ' if self.sampler else ''}{steps}"


def parse_columns(text: str) -> tuple[Column, ...]:
    """Columns from entries separated by commas or lines: ``4``, ``auto cfg 3``, ``b: euler/simple@25 cfg 7 = teacher``.

    Raises:
        PCMError: if there is none, there are more than 64, or one cannot be read.
    """
    entries = [entry.strip() for entry in _SEPARATORS.split(text)]
    entries = [entry for entry in entries if entry]
    if len(entries) > MAX_COLUMNS:
        raise PCMError(f"columns has {len(entries)} entries.", f"at most {MAX_COLUMNS}.", "Compare fewer at a time.")
    columns = tuple(map(_column, entries))
    if not columns:
        raise PCMError("columns is empty.", "at least one way to sample.", 'Write "1, 2, 4, 8".')
    return columns


def _column(entry: str) -> Column:
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise PCMError(
            f'columns contains "{entry}".',
            'a step count, "auto", or "sampler/scheduler@steps"; with "b:" before it and "cfg 7" or "= name" after it.',
            'Write for example "1, 2, 4, b: euler/simple@25 cfg 7 = teacher".',
        )
    part = found.groupdict(default="")
    steps = 0 if part["steps"].lower() == "auto" else int(part["steps"])
    least = 1 if part["sampler"] or part["steps"].lower() != "auto" else 0
    if not least <= steps <= MAX_COUNT:
        raise PCMError(
            f'columns contains "{entry}".', f"1 to {MAX_COUNT} steps; auto for PCM only.", "Change the number."
        )
    return Column(
        model=part["model"].lower() or "a",
        steps=steps,
        cfg=float(part["cfg"]) if part["cfg"] else None,
        sampler=part["sampler"],
        scheduler=part["scheduler"],
        label=check_label(part["label"].strip()),
    )


def check_label(label: str) -> str:
    """The label, if it can be drawn.

    Raises:
        PCMError: if it has more than 200 letters.
    """
    if len(label) > _MAX_LABEL:
        raise PCMError(f'The label "{label[:40]}..." is long.', f"at most {_MAX_LABEL} letters.", "Shorten it.")
    return label
