"""What the panel in the frontend gets: the report with its bars, and what our nodes would change."""

from __future__ import annotations

import dataclasses
from typing import Any

from .bars import file_bar
from .check import check_graph
from .describe import as_json
from .files import Lookup
from .pcm_nodes import pcm_nodes
from .read import read_workflow
from .schedules import Schedules


def answer(asked: dict[str, Any], schedules: Schedules, lookup: Lookup | None = None) -> dict[str, Any]:
    """Check the workflow of a request.

    Args:
        asked: ``workflow``, and ``language`` of the sentences.
        schedules: of the host.
        lookup: what a file on the host's disk says of itself.

    Raises:
        PCMError: if it is no workflow.
    """
    graph = read_workflow(asked.get("workflow"))
    report = check_graph(graph, schedules, lookup)
    found = as_json(report, str(asked.get("language", "en")))
    for file, shown in zip(report.files, found["files"], strict=True):
        bar = file_bar(file.profile, schedules)
        steps = pcm_nodes(graph, report, file)
        shown["bar"] = None if bar is None else bar.as_json()
        shown["pcm_nodes"] = [{"kind": type(step).__name__, **dataclasses.asdict(step)} for step in steps]
    return found
