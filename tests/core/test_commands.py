"""The command ``pcm`` from a clone and from a wheel, with and without the packages it needs."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from scripts import commands, workers

ROOT = Path(__file__).resolve().parent.parent.parent


def lora(folder: Path) -> Path:
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    path = folder / "pcm_sd15_smallcfg_4step_converted.safetensors"
    save_file({f"{module}.lora_down.weight": torch.ones(4, 320), f"{module}.lora_up.weight": torch.ones(320, 4)}, path)
    return path


def python(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COMFYUI_PATH")}
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)


def test_the_overview_names_every_command(capsys):
    assert commands.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in commands.COMMANDS.items():
        assert name in text and command.help in text
        assert callable(importlib.import_module(command.module, package="scripts").main), name
    assert commands.main([]) == 2
    assert commands.main(["destil"]) == 2
    assert 'no command "destil"' in capsys.readouterr().err


def test_a_command_is_one_row_of_the_table(monkeypatch, capsys):
    seen: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "acme", SimpleNamespace(main=lambda words: seen.append(list(words))))
    monkeypatch.setitem(commands.COMMANDS, "acme", commands.Command(module="acme", help="does it"))
    assert commands.main(["acme", "--fast", "--help"]) == 0 and seen == [["--fast", "--help"]]


def test_a_missing_extra_is_one_sentence(monkeypatch):
    needs = (("acme_module", "acme"), ("PIL", "pillow"))
    absent = commands.Command(module="acme", help="", needs=needs, extra="metrics")
    monkeypatch.setitem(commands.COMMANDS, "acme", absent)
    with pytest.raises(SystemExit, match=r'pcm acme needs acme, which this Python lacks.*pip install "\.\[metrics\]"'):
        commands.main(["acme"])


def test_the_module_of_a_command_is_the_command(capsys, monkeypatch):
    for name in ("distill", "generate", "metrics"):
        monkeypatch.setattr(sys, "argv", ["-m", "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"scripts.{name}", run_name="__main__")
        assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: pcm {name} ")


def test_lora_from_a_clone(tmp_path):
    ended = python("-m", "scripts", "lora", lora(tmp_path), cwd=ROOT)
    assert ended.returncode == 0 and "phases: 4" in ended.stdout, ended.stderr
    assert python("-m", "pcm_core.lora", lora(tmp_path), cwd=ROOT).stdout == ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What ``pip install .`` puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("pcm_core", "scripts", "pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source / name)
    made = python("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, source, cwd=folder)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def copy(source: Path, target: Path) -> None:
    for path in [source] if source.is_file() else source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            place = target / path.relative_to(source) if source.is_dir() else target
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def test_a_wheel_has_every_package_and_no_folder_called_scripts(installed):
    def modules(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}

    assert modules(installed / "pcm_core") == modules(ROOT / "pcm_core")
    assert modules(installed / "pcm_commands") == modules(ROOT / "scripts")
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pcm_core").rglob("*.json")}
    assert all((installed / name).is_file() for name in data)
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"pcm_core", "pcm_commands"}


def test_the_console_script_of_a_wheel(installed, tmp_path):
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "pcm = pcm_commands.commands:main" in entry.read_text("utf-8")
    start = "import sys; from pcm_commands.commands import main; sys.exit(main())"
    where = {"cwd": tmp_path, "PYTHONPATH": str(installed)}
    ended = python("-c", start, "lora", lora(tmp_path), **where)
    assert ended.returncode == 0 and "phases: 4" in ended.stdout, ended.stderr
    ended = python("-c", start, "generate", "prompts.txt", "out", "--model", lora(tmp_path), **where)
    assert ended.returncode == 1 and "prompts.txt does not exist" in ended.stderr
    (tmp_path / "prompts.txt").write_text("a lighthouse", "utf-8")
    words = ("-c", start, "generate", "prompts.txt", "out", "--single", "--model", lora(tmp_path))
    ended = python(*words, **where)
    assert ended.returncode == 1 and "--comfyui PATH, or in COMFYUI_PATH" in ended.stderr
    (tmp_path / "host" / "comfy").mkdir(parents=True)
    (tmp_path / "host" / "comfy" / "sd.py").touch()
    ended = python(*words, "--comfyui", tmp_path / "host", **where)
    assert ended.returncode == 1 and "runs the nodes of the pack, which pip does not install" in ended.stderr


def test_the_pack_in_custom_nodes_serves_the_installed_commands(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "ROOT", tmp_path)
    pack = tmp_path / "custom_nodes" / "phased-consistency"
    copy(ROOT / "pyproject.toml", pack / "pyproject.toml")
    text = (pack / "pyproject.toml").read_text("utf-8")
    version = text.split('\nversion = "')[1].split('"')[0]
    monkeypatch.setattr(workers.importlib.metadata, "version", lambda name: version)
    assert workers.pack_root(tmp_path) == pack
    monkeypatch.setattr(workers.importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(SystemExit, match=rf"is version {version} of the pack, this command 0\.0\.1"):
        workers.pack_root(tmp_path)
    (pack / "pyproject.toml").write_text('[project]\nname = "another"\n', "utf-8")
    with pytest.raises(SystemExit, match="Clone the pack there, or install from a clone with pip install -e"):
        workers.pack_root(tmp_path)


def test_processes_stop_together():
    """If one process fails, the others stop too instead of waiting forever."""

    def peers(failed: float) -> workers.Workers:
        def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            assert reduction == "mean"
            return (tensor + failed) / 2

        cpu = torch.device("cpu")
        return workers.Workers(SimpleNamespace(process_index=0, num_processes=2, device=cpu, reduce=reduce))

    with peers(0.0).together():
        pass
    with pytest.raises(SystemExit, match=r"Another process could not go on; it says why\."), peers(1.0).together():
        pass
    for one in (peers(0.0), peers(1.0), workers.Workers()):
        with pytest.raises(KeyError, match="mine"), one.together():
            raise KeyError("mine")
