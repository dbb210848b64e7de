"""Refusals that no test triggers: every ``raise``, and every call of a function that only raises, from coverage data.

    python dev.py test -- -n 2 --dist loadfile --cov=pcm_core --cov=nodes
    python -m devtools.untested_raises

The first command also prints the line coverage; ``dev.py test --long`` runs both. The exit code is 1 if a refusal of
``pcm_core`` or ``nodes`` did not run; each of these is listed.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("pcm_core", "nodes")


def refusals(source: str) -> Iterator[tuple[int, int]]:
    """First and last line of every statement that raises an exception itself."""
    tree = ast.parse(source)
    raisers = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "NoReturn"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and _called(node.value) in raisers):
            yield node.lineno, node.end_lineno or node.lineno


def _called(node: ast.expr) -> str | None:
    """The name that is called; ``None`` if it is not a call of a plain name."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def missed(files: Iterable[Path], data: CoverageData) -> tuple[int, list[str]]:
    """The number of refusals, and ``file:line`` of those that did not run."""
    count, found = 0, []
    for path in files:
        ran = set(data.lines(str(path)) or ())
        for first, last in sorted(refusals(path.read_text("utf-8"))):
            count += 1
            if ran.isdisjoint(range(first, last + 1)):
                found.append(f"{path}:{first}")
    return count, found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m devtools.untested_raises", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("data", nargs="*", default=[".coverage"], help="coverage files (default: .coverage)")
    options = parser.parse_args(arguments)
    data = CoverageData(no_disk=True)
    for name in options.data:
        one = CoverageData(name)
        one.read()
        data.update(one)
    count, found = missed((path for name in CHECKED for path in sorted((ROOT / name).rglob("*.py"))), data)
    print("\n".join([*found, f"{count - len(found)} of {count} refusals ran"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
