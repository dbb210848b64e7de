"""Sentences about what was not done, in every language of the frontend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Note:
    """One sentence.

    Attributes:
        key: of ``reasons.json``.
        facts: (name, text) pairs that fill it.
    """

    key: str
    facts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, key: str, **facts: Any) -> Note:
        """A note with these facts."""
        return cls(key, tuple((name, str(fact)) for name, fact in facts.items()))

    def sentence(self, language: str = "en") -> str:
        """The sentence in a language, English where there is no other."""
        texts = reasons()[self.key]
        return texts.get(language, texts["en"]).format_map(dict(self.facts))


@cache
def reasons() -> Mapping[str, Mapping[str, str]]:
    """Every sentence by its key and language."""
    return json.loads(Path(__file__).with_name("reasons.json").read_text(encoding="utf-8"))
