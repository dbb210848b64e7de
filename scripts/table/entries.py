"""The entries of each part of a table file, and the values that each accepts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pcm_core.errors import PCMError
from pcm_core.phases import MAX_COUNT

NETWORKS = ("inception", "clip", "hps", "hps21", "pick", "aes", "raft", "features")
MULTIPLE = 8  # of the sides of an image, for the VAEs of image models; other VAEs refuse a size themselves


@dataclass(frozen=True)
class Kind:
    """The values that an entry accepts: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _whole(value: Any, least: int = 0, most: int = 2**63 - 1) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most and abs(value) < 1e9
    )


def _sides(value: Any) -> bool:
    return _list_of(lambda side: _whole(side, MULTIPLE) and side % MULTIPLE == 0)(value) and len(value) == 2


def _steps(value: Any) -> bool:
    return _list_of(lambda count: _whole(count, 1, MAX_COUNT))(value) and 0 < len(value) == len(set(value))


TEXT = Kind("a text", _text)
ANY_TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of different texts", lambda value: _list_of(_text)(value) and len(value) == len(set(value)))
FILES = Kind("a file or a list of files", lambda value: _text(value) or _list_of(_text)(value))
ONE_UP = Kind("a whole number from 1", lambda value: _whole(value, 1))
FROM_0 = Kind("a whole number from 0", _whole)
STEPS = Kind(f"a list of different numbers from 1 to {MAX_COUNT}", _steps)
SIZE = Kind(f"two multiples of {MULTIPLE}, such as [512, 512]", _sides)
FRACTION = Kind("a number from 0 to 1", lambda value: _number(value, 0, 1))
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
NOT_NEGATIVE = Kind("a number from 0", lambda value: _number(value, 0))
NUMBER = Kind("a number", _number)
NUMBERS = Kind("a list of numbers", _list_of(_number))
TABLE = Kind("a table", lambda value: isinstance(value, dict))
TABLES = Kind("a list of tables", _list_of(lambda value: isinstance(value, dict)))
TABLE_OF_TABLES = Kind("tables by name", lambda value: isinstance(value, dict) and all(map(TABLE.fits, value.values())))
MEASURES = Kind("a list of measures", _list_of(lambda value: _text(value) or isinstance(value, dict)))

Entries = Mapping[str, Kind]
ONE_TABLE: Entries = {
    "name": TEXT, "title": TEXT, "prompts": TEXT, "count": ONE_UP, "per_prompt": ONE_UP, "seed": FROM_0,
    "steps": STEPS, "size": SIZE, "length": ONE_UP, "fps": POSITIVE, "negative": ANY_TEXT, "measures": MEASURES,
    "systems": TEXTS, "plot": TEXT,
}  # fmt: skip
ROOT: Entries = ONE_TABLE | {
    "folders": TEXTS, "networks": TABLE, "bases": TABLE_OF_TABLES, "references": TABLE_OF_TABLES, "tables": TABLES,
    "systems": TABLES, "published": TABLES,
}  # fmt: skip
BASE: Entries = {
    "checkpoint": TEXT, "model": TEXT, "vae": FILES, "clip": FILES, "clip_type": TEXT, "demo": TEXT, "motion": TEXT,
}  # fmt: skip
_SAMPLED: Entries = {
    "base": TEXT, "lora": TEXT, "strength": NUMBER, "checkpoint": TEXT, "model": TEXT, "method": TEXT,
    "sampling": TEXT, "cfg": NOT_NEGATIVE, "gamma": FRACTION, "determinism": FRACTION, "shift": NOT_NEGATIVE,
    "size": SIZE,
}  # fmt: skip
SYSTEM: Entries = _SAMPLED | {"name": TEXT, "steps": STEPS, "note": TEXT}
REFERENCE: Entries = {name: _SAMPLED[name] for name in ("base", "sampling", "lora", "method", "size")} | {
    "folder": TEXT, "seed": FROM_0,
}  # fmt: skip
MEASURE: Entries = {"measure": TEXT, "label": TEXT, "reference": TEXT, "against": ONE_UP}
PUBLISHED: Entries = {
    "system": TEXT, "measure": TEXT, "steps": STEPS, "values": NUMBERS, "table": ONE_UP, "page": ONE_UP, "in": TEXT,
}  # fmt: skip
FILES_OF_MEASURES: Entries = dict.fromkeys(NETWORKS, TEXT)


def checked(values: Mapping[str, Any], entries: Entries, where: str) -> Mapping[str, Any]:
    """``values``, if every entry is known and has an accepted value.

    Raises:
        PCMError: at the first that is not.
    """
    if strange := sorted(set(values) - set(entries)):
        refuse(f'{where} has an entry "{strange[0]}".', f"{', '.join(sorted(entries))}.", "Correct it.")
    for name, value in values.items():
        if not entries[name].fits(value):
            found = f"{where} has {name} = {json.dumps(value, default=str)}."
            refuse(found, f"{entries[name].words}.", "Correct it.")
    return values


def one_of(known: Mapping[str, Any], name: Any, what: str, where: str) -> Any:
    """The value of that name.

    Raises:
        PCMError: if there is none.
    """
    if name not in known:
        refuse(f'The {what} is "{name}".', f"one of {where}: {', '.join(known) or 'there are none'}.", "Correct it.")
    return known[name]


def no_doubles(names: Iterable[str], what: str) -> None:
    """Refuse names that are equal, or give the same folder.

    Raises:
        PCMError: at the first.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.get(slug(name))) == name:
            refuse(f"There are two {what} {name}.", "one name each.", "Rename one.")
        if other is not None:
            refuse(f"The {what} {other} and {name} share a folder.", "names that differ in a letter.", "Rename one.")
        seen[slug(name)] = name


def listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def refuse(found: str, expected: str, action: str) -> NoReturn:
    raise PCMError(found, expected, action)


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "system"
