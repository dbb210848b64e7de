"""``pcm check`` as people run it: exit codes, text, JSON, mending; and the texts of the frontend in both languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from right_graphs import as_ui, build, right

from devtools.generate.locales import COMMANDS, SETTINGS
from pcm_core.workflow_check.check import messages
from pcm_core.workflow_check.command import main

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(as_ui(build(right("pcm_sdxl_small", steps=20, cfg=7.0)))), "utf-8")
    return path


def test_a_wrong_workflow_exits_1_and_says_why(wrong: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(wrong)]) == 1
    said = capsys.readouterr().out
    assert "KSampler (10) takes 20 steps; PCM is made for 4." in said and "steps of node 10 = 4" in said
    assert "cfg 7; PCM is made for cfg 1 to 2" in said and "wangfuyun/PCM_Weights" in said


def test_mending_writes_a_clean_workflow(wrong: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "mended.json"
    assert main([str(wrong), "--mend", str(out)]) == 1
    assert main([str(out)]) == 0
    assert "Nothing to mend." in capsys.readouterr().out


def test_json_is_json(wrong: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(wrong), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)[str(wrong)]
    assert [found["rule"] for found in report["findings"]] == ["steps", "cfg_range"] and report["wrong"]


def test_what_is_no_workflow_exits_2(wrong: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "other.json"
    other.write_text("[1]", "utf-8")
    assert main([str(other), str(wrong)]) == 2
    assert "no workflow" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["a.json", "b.json", "--mend", "c.json"], ["a.json", "--comfyui", "nowhere"]])
def test_options_that_do_not_go_together_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err


def test_without_comfyui_it_says_what_it_could_not_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(build(right("pcm_sdxl_small", scheduler="no such scheduler"))), "utf-8")
    assert main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "not judged" in said and "--comfyui PATH" in said


def test_every_message_is_there_in_both_languages():
    for rule, texts in messages().items():
        assert set(texts) == {"en", "zh"}, rule
        assert [len(pair) for pair in texts.values()] == [2, 2], rule
    script = (ROOT / "web" / "js" / "pcm.js").read_text("utf-8")
    for entry in (*COMMANDS.values(), *SETTINGS.values()):
        assert all(f'"{text}"' in script for text in entry.values())
    for name in (*COMMANDS, *SETTINGS):
        assert name.replace("_", ".") in script
