"""What the panel in the frontend gets: the report with its bars, and what our nodes would change."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import PCMError
from .bars import file_bar
from .check import check_graph
from .describe import as_json
from .exchange import Exchange
from .files import Lookup
from .node_bars import node_bar
from .pcm_nodes import Exchanges
from .read import read_workflow
from .schedules import Schedules
from .shapes import items

_MOST_BARS = 100


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
    language = str(asked.get("language", "en"))
    found = as_json(report, language)
    exchanges = Exchanges(graph, report, schedules)
    mended = {entry.file for entry in report.findings}
    for file, shown in zip(report.files, found["files"], strict=True):
        bar = file_bar(file.profile, schedules)
        # The panel offers our nodes where something was found.
        exchange = exchanges.of(file) if file.title in mended else Exchange()
        shown["bar"] = None if bar is None else bar.as_json()
        shown["pcm_nodes"] = [{"kind": type(step).__name__, **dataclasses.asdict(step)} for step in exchange.steps]
        shown["pcm_reason"] = exchange.reason.sentence(language) if exchange.reason else ""
    return found


def bar_answer(asked: dict[str, Any], schedules: Schedules, lookup: Lookup | None = None) -> dict[str, Any]:
    """The bars of our nodes in the workflow of a request, by node id: a bar, or why there is none.

    Args:
        asked: ``workflow``, and ``nodes``, a list of ids.
        schedules: of the host.
        lookup: what a file on the host's disk says of itself.

    Raises:
        PCMError: if it is no workflow.
    """
    graph = read_workflow(asked.get("workflow"))
    found: dict[str, Any] = {}
    for name in items(asked.get("nodes"))[:_MOST_BARS]:
        node = graph.nodes.get(str(name))
        if node is None:
            continue
        try:
            found[node.id] = node_bar(graph, node, schedules, lookup).as_json()
        except PCMError as error:
            found[node.id] = {"error": error.found}
    return {"bars": found}
