"""Where the values of a profile come from, for people to read up."""

from __future__ import annotations

from ..profiles import source_by_name
from .files import FewStepFile


def source_of(file: FewStepFile) -> str:
    """The source that the table of methods names for a file, a link where it is one; empty if there is none."""
    if "metadata" in file.profile.sources.values():
        return f"the metadata of {file.title}"
    return source_by_name(file.name, file.kind)
