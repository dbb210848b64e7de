"""Write ``locales/en`` from the nodes' schemas, and ``locales/zh`` from the same texts and their translations.

Run it after adding or rewording a node, an input or a tooltip: ``COMFYUI_PATH=... python -m
devtools.generate.locales``. It lists the texts that ``zh.json`` lacks, with ``""`` to fill in. The drift test makes the
same comparison.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .host_nodes import ROOT, describe, is_ours, load

LOCALES = ROOT / "locales"
MEMORY = Path(__file__).parent / "zh.json"
Tree = dict[str, Any]
# What web/js/pcm.js registers, under the keys that the frontend makes of the ids.
COMMANDS: Tree = {"PhasedConsistency_CheckFewStepSettings": {"label": "Check few-step settings"}}
SETTINGS: Tree = {
    "PhasedConsistency_CheckOnOpen": {
        "name": "Check few-step settings when a workflow opens",
        "tooltip": "Shows a badge where a sampler does not do what the few-step file on its model is made for.",
    }
}


def english(nodes: dict[str, Any]) -> dict[str, Tree]:
    """The content of each file of ``locales/en``, before escaping."""
    infos = {name: describe(node) for name, node in sorted(nodes.items()) if is_ours(node)}
    parts = {part for info in infos.values() for part in info["category"].split("/")}
    return {
        "nodeDefs.json": {name: _node(info) for name, info in infos.items()},
        "commands.json": COMMANDS,
        "settings.json": SETTINGS,
        "main.json": {"nodeCategories": {part: part for part in sorted(parts)}},
    }


def _node(info: Tree) -> Tree:
    inputs: Tree = {}
    for kind in ("required", "optional"):
        for name, (_, *options) in info["input"].get(kind, {}).items():
            inputs[name] = _text(options[0].get("display_name") or name, options[0].get("tooltip"))
            if options[0].get("control_after_generate"):
                inputs["control_after_generate"] = {"name": "control after generate"}
    tooltips = info["output_tooltips"] or [None] * len(info["output_name"])
    outputs = {
        str(i): _text(name, tip) for i, (name, tip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    found = {"display_name": info["display_name"], "description": info["description"]}
    return {**found, **({"inputs": inputs} if inputs else {}), **({"outputs": outputs} if outputs else {})}


def _text(name: str, tooltip: str | None) -> Tree:
    return {"name": name, **({"tooltip": tooltip} if tooltip else {})}


def texts(tree: Tree) -> Iterator[str]:
    """Every text of a tree."""
    for value in tree.values():
        if isinstance(value, dict):
            yield from texts(value)
        else:
            yield value


def mapped(tree: Tree, change: Callable[[str], str]) -> Tree:
    """The tree with every text changed."""
    return {key: mapped(value, change) if isinstance(value, dict) else change(value) for key, value in tree.items()}


def escape(text: str) -> str:
    """Escape the characters with a meaning in vue-i18n messages, which is what the frontend compiles texts as."""
    return "".join(f"{{'{letter}'}}" if letter in "{}@|$" else letter for letter in text)


def render(nodes: dict[str, Any], memory: dict[str, str]) -> dict[Path, str]:
    """The content of every locale file by path. Texts without a translation stay in English."""
    files: dict[Path, str] = {}
    for name, tree in english(nodes).items():
        for language, change in (("en", escape), ("zh", lambda text: escape(memory.get(text) or text))):
            content = json.dumps(mapped(tree, change), indent=2, ensure_ascii=False) + "\n"
            files[LOCALES / language / name] = content
    return files


def untranslated(nodes: dict[str, Any], memory: dict[str, str]) -> list[str]:
    """Texts that ``zh.json`` lacks."""
    return sorted({text for tree in english(nodes).values() for text in texts(tree)} - {t for t in memory if memory[t]})


def stale(nodes: dict[str, Any], memory: dict[str, str]) -> list[str]:
    """Texts of ``zh.json`` that no node uses any more."""
    return sorted(set(memory) - {text for tree in english(nodes).values() for text in texts(tree)})


def read_memory() -> dict[str, str]:
    return json.loads(MEMORY.read_text("utf-8"))


def main() -> None:
    nodes, memory = load(), read_memory()
    for path, content in render(nodes, memory).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8", newline="\n")
    missing, unused = untranslated(nodes, memory), stale(nodes, memory)
    if missing:
        print("Translate in zh.json:", json.dumps(dict.fromkeys(missing, ""), indent=1))
    if unused:
        print("Remove from zh.json:", json.dumps(unused, indent=1))
    sys.exit(bool(missing or unused))


if __name__ == "__main__":
    main()
