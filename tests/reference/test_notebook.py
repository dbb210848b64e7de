"""docs/pcm_core.ipynb runs from top to bottom, and its outputs are what its text says."""

from __future__ import annotations

import re

import pytest

nbformat = pytest.importorskip("nbformat")
notebook = pytest.importorskip("devtools.generate.notebook")


def said(content) -> str:
    return "".join(output.text for cell in content.cells for output in cell.get("outputs", []) if "text" in output)


def test_the_notebook_runs_and_the_lora_helps():
    content = notebook.executed()
    drawn = sum("image/png" in output.get("data", {}) for cell in content.cells for output in cell.get("outputs", []))
    assert drawn == 4
    text = said(content)
    assert "PCM 4 phases" in text and "[1.0, 0.9, 0.75, 0.5, 0.0]" in text
    before, after = map(float, re.findall(r"(\d\.\d+) without the LoRA, (\d\.\d+) with it", text)[0])
    assert after < 0.8 * before, text


def test_the_stored_outputs_are_of_these_cells():
    stored = nbformat.read(notebook.NOTEBOOK, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "python -m devtools.generate.notebook"
    )
    assert "with it, 4 evaluations each" in said(stored)
