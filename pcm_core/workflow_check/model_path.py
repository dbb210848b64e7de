"""The way of a model from its loader through LoRAs and patches to a sampler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .graph import Graph, Node, Port
from .values import chosen_input

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
        waiting += [(above.id, entry) for entry in followed(graph, above)]
    return list(found.values())


def edges_to(graph: Graph, starts: Iterable[tuple[str, str]], target: str) -> list[tuple[str, str, Port]]:
    """The links (node, input, what feeds it) from inputs back to a node, the nearest to that node first."""
    came: dict[str, tuple[str, str, Port]] = {}
    waiting = list(starts)
    while waiting and target not in came and len(came) < _LONGEST:
        node, name = waiting.pop(0)
        source = graph.source(node, name)
        if isinstance(source, Port) and source.node not in came:
            came[source.node] = (node, name, source)
            waiting += [(source.node, entry) for entry in followed(graph, graph.nodes[source.node])]
    found: list[tuple[str, str, Port]] = []
    while target in came and len(found) < _LONGEST:
        found.append(came[target])
        target = came[target][0]
    return found


def followed(graph: Graph, node: Node) -> Iterator[str]:
    """The inputs that the model on a node's output may come from."""
    names = node.model_inputs()
    branch = chosen_input(graph, node)
    if branch:
        yield branch
        return
    # Which branch of a switch is not known: then it may be any.
    switched = [name for name in ("on_true", "on_false") if name in node.inputs] if branch == "" else []
    yield from switched or names
