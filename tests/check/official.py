"""The official workflows of ComfyUI, pinned in ``devtools.environment``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from devtools.paths import OFFICIAL_TEMPLATES

FOLDER = OFFICIAL_TEMPLATES / "comfyui_workflow_templates_json" / "templates"


def workflows() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, workflow) of every official template that runs on one's own machine."""
    found = 0
    for path in sorted(FOLDER.glob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        if isinstance(data, dict) and "nodes" in data and not path.stem.startswith(("api_", "index")):
            found += 1
            yield path.stem, data
    assert found > 250, f"{found} official workflows in {FOLDER}; run dev.py test once, which installs them"
