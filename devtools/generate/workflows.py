"""Write ``workflows/*.json``, their API twins in ``workflows/api``, the subgraph blueprint and ``docs/workflows.md``
from one description.

Run it after changing a node or a workflow: ``COMFYUI_PATH=... python -m devtools.generate.workflows``, with the newest
supported host. The drift test makes the same comparison.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .host_nodes import ROOT, describe_all, load
from .workflow_builder import Graph
from .workflow_files import SDXL, SDXL_SMALL
from .workflow_parts import load_lora, prompts, sample
from .workflow_tables import WORKFLOWS

FOLDER = ROOT / "workflows"
BLUEPRINT = ROOT / "subgraphs" / "PCM text to image.json"
GALLERY = ROOT / "docs" / "workflows.md"
_BLUEPRINT_ID = "6d5f4c1e-0a52-4c7e-9a53-5a2f3d1c8b07"


def version() -> str:
    """The version of the pack."""
    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def build(infos: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """The content of every file by path."""
    files: dict[Path, dict[str, Any]] = {}
    for stem, draw in WORKFLOWS.items():
        graph = Graph(infos, version())
        draw(graph)
        files[FOLDER / f"{stem}.json"] = graph.to_ui()
        files[FOLDER / "api" / f"{stem}.json"] = graph.to_api()
    files[BLUEPRINT] = blueprint(infos)
    return files


def blueprint(infos: dict[str, Any]) -> dict[str, Any]:
    """The subgraph blueprint: checkpoint, LoRA, two prompts and a size in; an image out."""
    g = Graph(infos, version())
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SDXL)
    latent = g.add("EmptyLatentImage", 0, width=1024, height=1024)
    lora = load_lora(g, 1, base[0], SDXL_SMALL)
    texts = prompts(g, 1, base[1])
    sampler = sample(g, 2, lora[0], texts, latent[0])
    picture = g.add("VAEDecode", 3, samples=sampler[0], vae=base[2])
    exposed = [
        (base, "ckpt_name"), (lora, "lora_name"), (texts[0], "text"), (latent, "width"), (latent, "height"),
        (sampler, "seed"), (sampler, "steps"), (sampler, "cfg"),
    ]  # fmt: skip
    return g.to_blueprint(BLUEPRINT.stem, _BLUEPRINT_ID, exposed, picture[0])


def gallery(infos: dict[str, Any]) -> str:
    """A page with every workflow: its screenshot, from ``devtools.generate.screenshots``, and its note."""
    parts = ["# The workflows", "", "In ComfyUI: Templates, then this pack's name under Extensions. Written by "
             "`python -m devtools.generate.workflows`; the API forms are in `workflows/api`."]  # fmt: skip
    for stem, draw in WORKFLOWS.items():
        graph = Graph(infos, version())
        draw(graph)
        heading, *text = graph.text.strip().splitlines()
        picture = f"![{heading.removeprefix('## ')}](images/{stem.replace(' ', '-')}.webp)"
        parts += ["", f"## {stem}", "", picture, *text]
    return "\n".join(parts) + "\n"


def dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    infos = describe_all(load())
    texts = {path: dump(content) for path, content in build(infos).items()} | {GALLERY: gallery(infos)}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="\n")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
