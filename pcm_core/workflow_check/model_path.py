"""The way of a model from its loader through LoRAs and patches to a sampler."""

from __future__ import annotations

from collections.abc import Iterator

from .graph import Graph, Node, Port
from .values import switch_branch

_LONGEST = 10_000


def model_path(graph: Graph, node: Node, name: str) -> list[Node]:
    """The nodes a model input comes from, the nearest first; both ways where two models are merged."""
    found: dict[str, Node] = {}
    waiting = [(node.id, name)]
    while waiting and len(found) < _LONGEST:
        source = graph.source(*waiting.pop(0))
        if not isinstance(source, Port) or source.node in found:
            continue
        above = graph.nodes[source.node]
        found[above.id] = above
        waiting += [(above.id, entry) for entry in _followed(graph, above)]
    return list(found.values())


def _followed(graph: Graph, node: Node) -> Iterator[str]:
    names = node.model_inputs()
    if node.type == "ComfySwitchNode":
        branch = switch_branch(graph, node)
        linked = [name for name in ("on_true", "on_false") if name in node.inputs]
        yield from [branch] if branch else linked
        return
    # The first connected input is what a switch of another pack lets through.
    yield from names[:1] if "switch" in node.type.lower() else names
