"""The translations are those of the nodes as they are now, and the frontend can compile them."""

from __future__ import annotations

import json
import re

import pytest

from devtools.generate import locales

SPECIAL = re.compile(r"\{'[{}@|$]'\}")


@pytest.fixture(scope="module")
def nodes(host):
    return host.nodes.NODE_CLASS_MAPPINGS


def test_every_text_of_every_node_is_translated(nodes):
    memory = locales.read_memory()
    assert locales.untranslated(nodes, memory) == []
    assert locales.stale(nodes, memory) == []
    same = {text for text, chinese in memory.items() if text == chinese}
    assert all(len(text) < 12 for text in same), "a sentence left in English is no translation"


def test_files_are_what_the_script_writes(nodes):
    found = locales.render(nodes, locales.read_memory())
    for path, content in found.items():
        assert path.read_text("utf-8") == content, f"run python -m devtools.generate.locales: {path.name} has drifted"
    assert sorted(found) == sorted(locales.LOCALES.glob("*/*.json")), "no other locale file"


def test_every_input_and_output_has_a_tooltip(nodes):
    """control_after_generate is the frontend's own widget."""
    for name, node in locales.english(nodes)["nodeDefs.json"].items():
        assert node["description"], name
        for kind in ("inputs", "outputs"):
            bare = [key for key, value in node.get(kind, {}).items() if "tooltip" not in value]
            assert set(bare) <= {"control_after_generate"}, (name, bare)


@pytest.mark.parametrize("path", sorted(locales.LOCALES.glob("*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_character_means_something_to_vue_i18n(path):
    for text in locales.texts(json.loads(path.read_text("utf-8"))):
        assert not re.search(r"[{}@|$]", SPECIAL.sub("", text)), text
