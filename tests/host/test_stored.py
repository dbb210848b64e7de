"""What 0.1.0 stored: its workflows and API prompts open, keep their values and make the pictures they made then.

``tests/data/0.1.0`` was written by commit 92f581a: its 13 workflows, its nodes' inputs (``schema.json``), and the
pictures of the tiny stand-ins (``images``).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from released import shrunk

DATA = Path(__file__).resolve().parent.parent / "data" / "0.1.0"
STEMS = sorted(path.stem for path in (DATA / "api").glob("*.json"))
SCHEMA = json.loads((DATA / "schema.json").read_text("utf-8"))


def names(node: dict) -> list[str]:
    """Inputs in the order in which the frontend stores the values of widgets."""
    return [name for kind in ("required", "optional") for name in node["input_order"].get(kind, [])]


def test_everything_was_stored():
    assert len(STEMS) == 13 and len(SCHEMA) == 10


@pytest.mark.parametrize("node", sorted(SCHEMA))
def test_inputs_keep_their_order_and_their_defaults(host, node):
    now = host.node(node).GET_NODE_INFO_V1()
    before = SCHEMA[node]
    widgets = [name for name in names(before) if before["defaults"][name] is not None]
    inputs = {name: spec for kind in ("required", "optional") for name, spec in now["input"].get(kind, {}).items()}
    assert [name for name in names(now) if name in widgets] == widgets
    later = [
        name for name in names(now) if name not in before["defaults"] and "default" in (inputs[name][1:] or [{}])[0]
    ]
    assert names(now).index(widgets[-1]) < min([names(now).index(name) for name in later], default=10**6), later
    for name in widgets:
        assert inputs[name][1]["default"] == before["defaults"][name], name
    assert list(now["output"])[: len(before["output"])] == before["output"]


@pytest.mark.parametrize("stem", STEMS)
def test_a_stored_prompt_makes_the_pictures_it_made(host, released_files, text_nodes, stem):
    run = host.run_prompt(shrunk(json.loads((DATA / "api" / f"{stem}.json").read_text("utf-8"))))
    assert run.success, [data for kind, data in run.status_messages if kind == "execution_error"]
    stored = DATA / "images" / f"{stem}.npz"
    if not stored.exists():  # a contact sheet, whose text may change, and a loss curve
        assert stem.startswith(("Compare", "Distil"))
        return
    outputs = run.history_result["outputs"]
    saved = [
        host.base / "output" / image["subfolder"] / image["filename"]
        for node in sorted(outputs, key=int)
        for image in outputs[node].get("images", [])
        if image["type"] == "output"
    ]
    then = np.load(stored)
    assert len(saved) == len(then.files) > 0
    for number, path in enumerate(saved):
        made, before = frames(path).astype(int), then[str(number)].astype(int)
        assert made.shape == before.shape
        assert before.std() > 1
        # One level of 255: another CPU rounds otherwise. On the machine that wrote them they are equal.
        assert np.abs(made - before).max() <= 1, (path, np.abs(made - before).max())


def frames(path: Path) -> np.ndarray:
    """uint8 [frames, height, width, 3]."""
    image = Image.open(path)
    found = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        found.append(np.asarray(image.convert("RGB")))
    return np.stack(found)
