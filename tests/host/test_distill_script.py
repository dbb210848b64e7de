"""The command line: one process, resume, two gloo processes that do what one does, and its refusals."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def inputs(host, zoo, tmp_path_factory):
    """A tiny SD3 checkpoint and a cache of latents and texts for it."""
    given = zoo["sd3"]
    folder = tmp_path_factory.mktemp("distill")
    cache = {
        "latents": [given.latent(1, seed=i)["samples"] for i in range(4)],
        "texts": [given.cond(i) for i in range(4)],
        "negative": given.cond(9),
    }
    torch.save(cache, folder / "cache.pt")
    return given.path, folder / "cache.pt"


def arguments(inputs, folder: Path, name: str, *more: str, processes: int = 1) -> list[str]:
    model, cache = inputs
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=29641"]
    return [
        *launch, "-m", "scripts.distill", "--model", str(model), "--latents", str(cache),
        "--out", str(folder / f"{name}.safetensors"), "--csv", str(folder / f"{name}.csv"),
        "--state", str(folder / f"{name}.pt"), "--phases", "2", "--batch", "4", "--rank", "4", "--lr", "3e-3",
        "--warmup", "2", *(["--single"] if processes == 1 else []), *more,
    ]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(inputs, folder: Path, name: str, *more: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    words = arguments(inputs, folder, name, *more, processes=processes)
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)


def cut_short(inputs, folder: Path, name: str, *more: str, after: int, by: int) -> str:
    """Start a run and send it a signal once its log has that many steps; returns what it said."""
    process = subprocess.Popen(
        arguments(inputs, folder, name, *more), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    log = folder / f"{name}.csv"
    while process.poll() is None and (not log.exists() or len(log.read_text("utf-8").splitlines()) <= after):
        time.sleep(0.005)
    process.send_signal(by)
    said = process.communicate(timeout=600)[1]
    assert process.returncode != 0, said
    return said


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(path: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(path)]


def same_lora(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(second[key], first[key]) for key in first)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_processes_are_one_run(inputs, tmp_path):
    """The same global batch on two gloo processes gives the loss curve of one."""
    pytest.importorskip("accelerate")
    whole = command(inputs, tmp_path, "whole", "--steps", "8")
    assert whole.returncode == 0, whole.stderr
    assert "8/8" in whole.stderr
    pair = command(inputs, tmp_path, "pair", "--steps", "8", processes=2)
    assert pair.returncode == 0, pair.stderr
    expected, found = losses(tmp_path / "whole.csv"), losses(tmp_path / "pair.csv")
    assert len(expected) == len(found) == 8
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_that_was_killed_or_interrupted_goes_on_to_the_same_bits(inputs, tmp_path):
    steps = ("--steps", "200", "--save-every", "20")
    whole = command(inputs, tmp_path, "whole", *steps)
    assert whole.returncode == 0, whole.stderr

    cut_short(inputs, tmp_path, "cut", *steps, after=30, by=signal.SIGKILL)
    state = torch.load(tmp_path / "cut.pt", weights_only=True)
    assert 20 <= state["step"] < 200 and state["step"] % 20 == 0
    assert len(rows(tmp_path / "cut.csv")) > state["step"], "steps after the checkpoint are in the log"

    said = cut_short(inputs, tmp_path, "cut", *steps, after=state["step"] + 25, by=signal.SIGINT)
    stopped = torch.load(tmp_path / "cut.pt", weights_only=True)["step"]
    assert state["step"] + 25 <= stopped < 200 and f"Interrupted at step {stopped}" in said
    assert not (tmp_path / "cut.safetensors").exists()

    (tmp_path / "cut.csv").unlink()
    command(inputs, tmp_path, "cut", *steps)
    assert [row["step"] for row in rows(tmp_path / "cut.csv")] == [str(i) for i in range(stopped + 1, 201)]
    assert rows(tmp_path / "cut.csv") == rows(tmp_path / "whole.csv")[stopped:]
    assert same_lora(tmp_path / "cut.safetensors", tmp_path / "whole.safetensors")

    # A finished checkpoint gives the same LoRA again; with other settings it is refused.
    assert command(inputs, tmp_path, "cut", *steps).returncode == 0
    assert same_lora(tmp_path / "cut.safetensors", tmp_path / "whole.safetensors")
    other = command(inputs, tmp_path, "cut", *steps, "--lr", "1e-3")
    assert other.returncode != 0 and "other settings" in other.stderr


def test_the_log_goes_on_after_the_checkpoint(tmp_path):
    """Rows of steps that will be run again are dropped, an absent log gets its head."""
    from types import SimpleNamespace

    from scripts.distill import StepLog

    def write(log: StepLog, *steps: int) -> None:
        for step in steps:
            log(SimpleNamespace(step=step, loss=0.5, generator_loss=0.0, discriminator_loss=0.0, grad_norm=1, lr=1e-3))

    path = tmp_path / "log.csv"
    write(StepLog(path, done=0), 1, 2, 3, 4)
    write(StepLog(path, done=2), 3, 4, 5)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5"]
    with path.open("a", encoding="utf-8") as file:
        file.write("6,0.")  # cut off while it was written
    write(StepLog(path, done=5), 6)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5", "6"]
    path.unlink()
    write(StepLog(path, done=6), 7)
    assert losses(path) == [0.5]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    from scripts import distill

    path = tmp_path / "state.pt"
    distill.save_state({"step": 1}, path)

    def full(state, where):
        where.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(distill.torch, "save", full)
    with pytest.raises(SystemExit, match="cannot be written"):
        distill.save_state({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_data_must_be_named(tmp_path):
    from scripts import distill

    with pytest.raises(SystemExit, match="either --images or --latents"):
        distill.main(["--model", "m", "--out", "o"])


def test_several_processes_need_accelerate(monkeypatch):
    from scripts import processes

    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="pip install accelerate"):
        processes.Workers.start(single=False, on_cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = processes.Workers.start(single=False, on_cpu=True)
    assert (alone.rank, alone.count, alone.first) == (0, 1, True)


def test_captions_and_encoders_are_asked_for(tmp_path):
    from scripts import distill

    files = type("Files", (), {"PICTURES": (".png",)})
    options = distill.parser().parse_args(["--model", "m", "--out", "o", "--images", str(tmp_path)])
    with pytest.raises(SystemExit, match="--vae and --clip"):
        distill.encode_images(options, files)
    options.vae, options.clip = tmp_path / "v", [tmp_path / "c"]
    with pytest.raises(SystemExit, match="holds no pictures"):
        distill.encode_images(options, files)
    (tmp_path / "a.png").touch()
    with pytest.raises(SystemExit, match=r"1 captions are missing, a\.txt first"):
        distill.encode_images(options, files)
