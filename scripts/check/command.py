"""Check workflow files, with ComfyUI's own schedulers where ``--comfyui`` gives one.

    pcm check workflow.json                              exit code 1 where something is wrong
    pcm check *.json --json --comfyui ComfyUI            every scheduler judged, findings as JSON
    pcm check workflow.json --mend mended.json           the same workflow with everything mended

The check itself is ``pcm_core.workflow_check``, which needs no ComfyUI.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pcm_core.sigma_table import SigmaTable
from pcm_core.workflow_check import command

from ..workers import load_pack


class HostSchedules:
    """The schedules of a ComfyUI checkout. The pack in it has its own ``pcm_core``, whose tables are made ours here."""

    def __init__(self, comfyui: str) -> None:
        level = logging.root.level
        logging.disable(logging.INFO)  # what ComfyUI says when it is imported
        self.host: Any = load_pack(comfyui)("nodes.host.schedules").HostSchedules()
        logging.disable(logging.NOTSET)
        logging.root.setLevel(level)
        self.table = lru_cache(maxsize=200)(self._table)

    def _table(self, base: str, shift: float | None) -> SigmaTable | None:
        found = self.host.table(base, shift)
        return None if found is None else SigmaTable(found.sigmas, found.flow)

    def sigmas(self, base: str, shift: float | None, scheduler: str, steps: int) -> tuple[float, ...] | None:
        return self.host.sigmas(base, shift, scheduler, steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return command.main(arguments, HostSchedules)
