"""Which other packs were tried beside ours: writes docs/neighbours.md from the last run of tests/neighbours.

python -m devtools.neighbours_page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .paths import LOGS, ROOT

PAGE = ROOT / "docs" / "neighbours.md"
REPORT = LOGS / "neighbours.json"
HEAD = """# Beside other packs

Written by `python -m devtools.neighbours_page` on {day}, from a run of

```
python dev.py test -- tests/neighbours --packs DIR
```

on {ours} and ComfyUI {comfyui}: one server with ours and all packs of the folder in it, and graphs of the demo world
that put a pack's node beside ours. A pack that is not in the folder is skipped by name. `DIR` holds the packs as
`custom_nodes` does; their Python requirements may lie in `DIR/site-packages`.
"""


def page(report: dict[str, Any]) -> str:
    """The page: a table of the packs with their commits, and one of the graphs with their results."""
    packs = ["| pack | commit |", "| --- | --- |"]
    packs += [f"| {name} | {commit} |" for name, commit in report["packs"].items()]
    graphs = ["| pack | graph | result |", "| --- | --- | --- |"]
    graphs += [f"| {row['pack']} | {_cell(row['graph'])} | {_cell(row['result'])} |" for row in report["results"]]
    return "\n".join([HEAD.format(**report), *packs, "", *graphs, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").rstrip(".")


def main(report: Path = REPORT) -> None:
    if not report.exists():
        raise SystemExit(f"Expected {report.name} in .logs. Run python dev.py test -- tests/neighbours --packs DIR.")
    PAGE.write_text(page(json.loads(report.read_text("utf-8"))), encoding="utf-8", newline="\n")
    print(f"{PAGE.name} is written.")


if __name__ == "__main__":
    main()
