"""On which frontends the browser tests ran, and what else stood beside the host: a section of docs/hosts.md.

python dev.py test --long -- tests/server -m browser --junitxml=.logs/browser.xml
python -m devtools.frontend_table
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

from .environment import OTHER_FRONTENDS, TEMPLATES
from .host import NEWEST
from .paths import LOGS, ROOT

PAGE = ROOT / "docs" / "hosts.md"
REPORT = LOGS / "browser.xml"
HEADING = "## Frontends and packages"
_LOOK = re.compile(r"\b(own|newest|oldest)-(canvas|vue)\b|\b(canvas|vue)-(own|newest|oldest)\b")
_TEXT = """{heading}

Written by `python -m devtools.frontend_table` on {date}, from a run of the browser tests, or a part of them, on
{commit} and ComfyUI {host}: the real frontend in headless Chromium, with both renderers of nodes.

{table}

Beside them: {packages}.
"""


def looks(report: Path) -> dict[tuple[str, str], Counter[str]]:
    """Outcomes of the browser tests of a JUnit report by frontend and renderer."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        match = _LOOK.search(case.get("name", ""))
        if not case.get("classname", "").startswith("tests.server.") or match is None:
            continue
        frontend, renderer, other_renderer, other_frontend = match.groups()
        failed = case.find("failure") is not None or case.find("error") is not None
        result = "failed" if failed else "passed" if case.find("skipped") is None else "skipped"
        found.setdefault((frontend or other_frontend, renderer or other_renderer), Counter())[result] += 1
    return found


def section(report: Path, today: date) -> str:
    """The section, for the report of a run."""
    own = version("comfyui_frontend_package")
    versions = {"own": own} | {name: package.partition("==")[2] for name, package in OTHER_FRONTENDS.items()}
    rows = ["| frontend | renderer | browser tests |", "| --- | --- | --- |"]
    for (frontend, renderer), counts in sorted(looks(report).items(), key=lambda item: (item[0][0] != "own", item[0])):
        name = f"{versions[frontend]} ({'of the host' if frontend == 'own' else frontend})"
        rows.append(f"| {name} | {renderer} | {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))} |")
    names = ("comfy-kitchen", "comfy-aimdo", "comfyui-workflow-templates")
    packages = [f"{name} {version(name)}" for name in names] + [TEMPLATES.replace("==", " ") + " (read, not served)"]
    suite = ElementTree.parse(report).find("testsuite")
    commit = "no commit" if suite is None else suite.get("name", "no commit")
    return _TEXT.format(
        heading=HEADING, date=today.isoformat(), commit=commit, host=NEWEST, table="\n".join(rows),
        packages=", ".join(packages),
    )  # fmt: skip


def put_into(page: str, text: str) -> str:
    """The page with this section at its end, in place of an older one."""
    return f"{page.partition(HEADING)[0].rstrip()}\n\n{text}"


def main() -> None:
    if not REPORT.exists():
        raise SystemExit("Expected .logs/browser.xml. The command that makes it is in devtools/frontend_table.py.")
    text = put_into(PAGE.read_text("utf-8"), section(REPORT, date.today()))
    PAGE.write_text(text, encoding="utf-8", newline="\n")
    print(f"{PAGE.name} is written.")


if __name__ == "__main__":
    main()
