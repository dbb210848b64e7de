"""docs/contributing.md: its instructions work and the files it names exist; the README shows what a benchmark wrote."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from pcm_core import video
from pcm_core.errors import PCMError
from pcm_core.profiles import lookup, profile_from_name

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "contributing.md").read_text("utf-8")


def example(heading: str) -> dict[str, Any]:
    """The JSON under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return json.loads(re.findall(r"```json\n(.+?)```", section, re.DOTALL)[0])


def test_the_row_of_the_worked_example_configures_its_files(monkeypatch: pytest.MonkeyPatch, sd_table: torch.Tensor):
    names = re.findall(r"`(acme_turbo_\w+\.safetensors)`", PAGE)
    assert len(names) == 2 and [profile_from_name(name) for name in names] == [None, None]
    row = example("Add a few-step method")
    real = lookup.table()
    assert set(row) <= {entry for known in real["methods"] for entry in known}, "an entry no other row has"
    monkeypatch.setattr(lookup, "table", lambda: {**real, "methods": [*real["methods"], row]})
    for name, steps in zip(names, (4, 8), strict=True):
        profile = profile_from_name(name)
        assert profile is not None
        assert (profile.method, profile.base_model, profile.phases, profile.cfg) == ("Acme-Turbo", "sdxl", steps, 1)
        assert len(profile.schedule().sigmas(sd_table)) == steps + 1
    assert profile_from_name("acme_style") is None


def test_the_preset_of_the_worked_example_is_refused_until_its_file_is_known(monkeypatch: pytest.MonkeyPatch):
    ((name, file),) = example("Add a video preset").items()
    wan = video.video_models()["Wan"]
    monkeypatch.setitem(wan.presets, name, file)  # type: ignore[arg-type]
    with pytest.raises(PCMError, match=f"{name} is not for Wan"):
        wan.preset(name)
    row = {"match": "acme-wan-(?P<n>4)step", "method": "Acme-Wan", "base_model": "wan", "class": "fixed",
           "kind": "lora", "steps": "name", "shift": 5, "cfg": 1, "source": "none", "verified": False}  # fmt: skip
    real = lookup.table()
    monkeypatch.setattr(lookup, "table", lambda: {**real, "methods": [row, *real["methods"]]})
    assert wan.preset(name).steps == 4


@pytest.mark.parametrize(
    "page", ["README.md", "demo/README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_file_command_and_link_of_the_page_is_there(page: str):
    path = ROOT / page
    text = path.read_text("utf-8")
    modules = re.findall(r"python -m ((?:scripts|demo|benchmarks)\.\w+)", text)
    assert [module for module in modules if find_spec(module) is None] == []
    links = [link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    assert [link for link in links if not (path.parent / link).exists()] == []
    if page == "docs/contributing.md":
        named = re.findall(
            r"`((?:pcm_core|nodes|scripts|tests|web|demo|docs|benchmarks|workflows|assets)/[\w./]+)`", text
        )
        assert len(named) > 15 and [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_shows_the_last_run_of_the_systems():
    def table(page: str) -> list[str]:
        return [line for line in page.splitlines() if line.startswith("|")]

    written = table((ROOT / "benchmarks" / "results" / "demo_systems.md").read_text("utf-8"))
    shown = (ROOT / "README.md").read_text("utf-8").split("### Compared with other methods\n")[1].split("\n## ")[0]
    shown_rows = table(shown)
    assert len(shown_rows) > 5 and shown_rows == written[: len(shown_rows)]
