"""Windows and macOS, as far as a Linux machine can stand in for them: names, paths, consoles, files that are held."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcm_core import finished_file
from pcm_core.distill.file import write_lora
from pcm_core.errors import PCMError
from pcm_core.lora import read_lora
from pcm_core.profiles import profile_for, profile_from_name
from scripts.distill.files import read_state, save_state

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "pcm_sd15_smallcfg_4step_converted.safetensors"
TENSORS = {"a.lora_up.weight": torch.ones(2, 2)}


# Names


@pytest.mark.parametrize("folder", ["", "sd15\\pcm\\", "C:\\ComfyUI\\models\\loras\\", "sd15/pcm/", "mixed/pcm\\"])
def test_a_name_with_backslashes_is_the_same_file(folder):
    assert profile_from_name(folder + NAME) == profile_from_name(NAME)
    assert profile_for(Path(folder + NAME), {}).method == "PCM"


def test_a_plain_name_is_read_with_its_folder_in_either_spelling():
    forward, backward = (profile_from_name(f"Hyper-SDXL-4steps-lora{s}pytorch_lora_weights.safetensors") for s in "/\\")
    assert forward is not None and forward == backward


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_the_case_of_a_name_means_nothing(change):
    """Windows and macOS do not tell two cases apart, and people's tools change them."""
    assert profile_from_name(change(NAME)) == profile_from_name(NAME)


def test_a_path_over_260_letters(tmp_path):
    folder = tmp_path.joinpath(*["a folder of sixty letters, as people have them in their clouds"] * 6)
    folder.mkdir(parents=True)
    path = folder / NAME
    assert len(str(path)) > 360 and write_lora(path, TENSORS, {"format": "pt"}) == path
    tensors, _ = read_lora(path)
    assert torch.equal(tensors["a.lora_up.weight"], TENSORS["a.lora_up.weight"])
    assert profile_for(path).method == "PCM"


# Files that a reader holds: Windows refuses to replace them


@pytest.fixture
def held(monkeypatch):
    """Names that a reader has mapped; ``Path.replace`` onto one fails as it does on Windows."""
    names: set[Path] = set()
    real = os.replace

    def replace(self, target):
        if Path(target) in names:
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        real(self, target)
        return Path(target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(finished_file, "_PAUSE", 0.0)
    return names


def test_a_held_lora_stays_and_the_new_one_is_beside_it(tmp_path, held):
    path = tmp_path / "mine.safetensors"
    assert write_lora(path, TENSORS, {"format": "pt"}) == path
    held.add(path)
    other = tmp_path / "mine.new.safetensors"
    for value in (2.0, 3.0):
        written = write_lora(path, {"a.lora_up.weight": torch.full((2, 2), value)}, {"format": "pt"})
        assert written == other
        assert float(load_file(other)["a.lora_up.weight"][0, 0]) == value
    assert float(load_file(path)["a.lora_up.weight"][0, 0]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.new.safetensors", "mine.safetensors"]
    held.add(other)
    with pytest.raises(PCMError, match=r"mine\.safetensors cannot be written"):
        write_lora(path, TENSORS, {"format": "pt"})
    assert not list(tmp_path.glob("*.part"))


def test_a_scanner_that_holds_a_file_for_a_moment_is_waited_for(tmp_path, held, monkeypatch):
    path = tmp_path / "mine.safetensors"
    write_lora(path, TENSORS, {"format": "pt"})
    held.add(path)
    monkeypatch.setattr(finished_file.time, "sleep", lambda _: held.clear())
    assert write_lora(path, TENSORS, {"format": "pt"}) == path


def test_a_folder_that_may_not_be_written_is_refused_as_before(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PCMError, match=r"cannot be written .*Permission denied"):
        write_lora(tmp_path / "mine.safetensors", TENSORS, {"format": "pt"})


def test_a_held_checkpoint_is_beside_and_said_and_a_held_cache_ends_the_run(tmp_path, held, capsys):
    path = tmp_path / "run.pt"
    state = {"step": 1, "losses": [], "adapters": {}, "generator": 0, "config": {}, "optimizer": {}}
    save_state(state, path)
    held.add(path)
    save_state({**state, "step": 2}, path)
    assert (read_state(path)["step"], read_state(tmp_path / "run.new.pt")["step"]) == (1, 2)
    assert "run.pt is open in another program" in (said := capsys.readouterr().err) and "run.new.pt" in said
    with pytest.raises(SystemExit, match=r"The new cache is .*run\.new\.pt"):
        save_state(state, path, "cache")


# Folders without symlinks


def test_a_disk_without_links_gets_copies_of_files_and_a_sentence_for_folders(tmp_path, monkeypatch):
    from devtools import base
    from devtools.errors import DevError

    def refuse(*_, **__):
        raise OSError(95, "Operation not supported")

    (tmp_path / "source.txt").write_text("1", encoding="utf-8", newline="\n")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    base.link_file(tmp_path / "link.txt", tmp_path / "source.txt")
    assert (tmp_path / "link.txt").read_text("utf-8") == "1" and not (tmp_path / "link.txt").is_symlink()
    with pytest.raises(DevError, match="cannot hold a link"):
        base.link_folder(tmp_path / "packs", tmp_path)


def test_the_pack_itself_makes_no_links():
    for room in ("pcm_core", "nodes", "scripts"):
        for path in (ROOT / room).rglob("*.py"):
            assert "symlink" not in path.read_text("utf-8"), path


# Consoles


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp936"])
@pytest.mark.parametrize("command", ["lora", "check"])
def test_every_name_can_be_printed_on_every_console(tmp_path, encoding, command):
    folder = tmp_path / "\u4eba\u7269 caf\u00e9 \U0001f600"
    folder.mkdir()
    if command == "lora":
        path = folder / f"\u4eba_{NAME}"
        module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        save_file(
            {f"{module}.lora_down.weight": torch.ones(4, 320), f"{module}.lora_up.weight": torch.ones(320, 4)}, path
        )
    else:
        path = folder / "\u4eba.json"
        path.write_text(json.dumps({"1": {"class_type": "\u4eba", "inputs": {"text": "\U0001f600"}}}), encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-m", "scripts", command, str(path)], cwd=ROOT, env=environment,
                          capture_output=True, check=False)  # fmt: skip
    assert b"Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr.decode(encoding, "replace")
    done.stdout.decode(encoding)


def _texts(path: Path) -> list[tuple[int, str]]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return [
        (node.lineno, node.value) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_what_our_code_says_is_ascii():
    """So that nothing but people's own names can be new to a console; the Chinese comma is read, never written."""
    for room in ("pcm_core", "nodes", "scripts"):
        for path in (ROOT / room).rglob("*.py"):
            for line, text in _texts(path):
                assert text.replace("\uff0c", ",").isascii(), f"{path.relative_to(ROOT)}:{line}"


def test_text_files_say_their_encoding():
    """Without one, Windows opens them in its own; and what is written has the line ends of every other system."""
    for room in ("pcm_core", "nodes", "scripts", "devtools", "demo", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    names = {keyword.arg for keyword in node.keywords}
                    if node.func.attr == "write_text":
                        assert len(node.args) > 1 or "encoding" in names, where
                        assert "newline" in names, where
                    if node.func.attr == "read_text":
                        assert node.args or "encoding" in names, where
