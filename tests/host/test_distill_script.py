"""The command line: one process, resume, two gloo processes that do what one does, and its refusals."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
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


def command(inputs, folder: Path, name: str, *more: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    model, cache = inputs
    arguments = [
        "-m", "scripts.distill", "--model", str(model), "--latents", str(cache),
        "--out", str(folder / f"{name}.safetensors"),
        "--log", str(folder / f"{name}.csv"), "--phases", "2", "--batch", "4", "--rank", "4", "--lr", "3e-3",
        "--warmup", "2", *more,
    ]  # fmt: skip
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=29641"]
    else:
        arguments.append("--single")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launch, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def losses(path: Path) -> list[float]:
    with path.open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.long
def test_resume_and_two_processes_are_one_run(inputs, tmp_path):
    pytest.importorskip("accelerate")
    whole = command(
        inputs, tmp_path, "whole", "--steps", "8", "--state", str(tmp_path / "whole.pt"), "--save-every", "4"
    )
    assert whole.returncode == 0, whole.stderr
    assert "8/8" in whole.stderr
    pair = command(inputs, tmp_path, "pair", "--steps", "8", processes=2)
    assert pair.returncode == 0, pair.stderr
    expected, found = losses(tmp_path / "whole.csv"), losses(tmp_path / "pair.csv")
    assert len(expected) == len(found) == 8
    assert found == pytest.approx(expected, rel=1e-4)
    # A finished checkpoint is resumed to the same LoRA, bit for bit; with other settings it is refused.
    state = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert state["step"] == 8
    again = command(inputs, tmp_path, "again", "--steps", "8", "--state", str(tmp_path / "whole.pt"))
    assert again.returncode == 0, again.stderr
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "again"))
    assert first.keys() == second.keys() and all(torch.equal(second[key], first[key]) for key in first)
    other = command(inputs, tmp_path, "other", "--steps", "8", "--lr", "1e-3", "--state", str(tmp_path / "whole.pt"))
    assert other.returncode != 0 and "other settings" in other.stderr


def test_data_must_be_named(tmp_path):
    from scripts import distill

    with pytest.raises(SystemExit, match="either --images or --latents"):
        distill.main(["--model", "m", "--out", "o"])


def test_several_processes_need_accelerate(monkeypatch):
    from scripts import distill

    monkeypatch.setattr(distill.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="pip install accelerate"):
        distill.Workers.start(single=False, on_cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = distill.Workers.start(single=False, on_cpu=True)
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
