"""docs/formats.md: base model x key format x adapter x storage, a slice of it here and all of it in the long run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tiny_image
import tiny_video

from devtools.generate import formats


@pytest.fixture(scope="module")
def matrix(host, zoo, tmp_path_factory):
    """The generator's matrix on the host that is running."""
    made = formats.Matrix.__new__(formats.Matrix)
    made.host, made.zoo, made.tiny = host, zoo, tiny
    made.folder, made.sentences, made.last = tmp_path_factory.mktemp("matrix"), {}, (("", ""), None)
    assert set(zoo) >= set(tiny_image.FACTORIES) | set(tiny_video.FACTORIES)
    return made


@pytest.mark.parametrize("storage", formats.STORAGE)
@pytest.mark.parametrize("kind", formats.ADAPTERS)
def test_a_slice(matrix, kind, storage):
    if matrix.stored("sd3", storage) is None:
        pytest.skip(f"this host has no {storage}")
    for mode in formats.MODES:
        for spelling in ("`lora_unet_`", "diffusers' names"):
            cell = matrix.cell("sd3", spelling, kind, storage, mode)
            assert cell.startswith("exact") or (mode == "bypass" and cell == "-"), cell


@pytest.mark.long
@pytest.mark.parametrize("family", formats.MODELS.values())
def test_every_cell(matrix, family):
    for storage in formats.STORAGE:
        for mode in formats.MODES:
            for kind in formats.ADAPTERS:
                cells = {matrix.cell(family, spelling, kind, storage, mode) for spelling in formats.SPELLINGS}
                assert all(cell.startswith(("exact", "refused")) or cell == "-" for cell in cells), (storage, cells)


def test_the_page_holds_no_wrong_cell():
    text = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text("utf-8")
    assert "exact" in text and "WRONG" not in text
    assert all(f"| {name} | {kind} |" in text for name in formats.MODELS for kind in formats.ADAPTERS)
