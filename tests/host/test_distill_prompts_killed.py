"""A distillation from a prompt list alone, as a process that is killed while it draws and while it trains."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_distill_script import ENVIRONMENT, ROOT, losses, rows, same_lora

CAPTIONS = "a red circle\na blue square on white\na green cross\n"
STEPS, EVERY = 60, 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A text encoder of CLIP-L's shape, which the host's loader knows, with random weights."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768
    )
    state = {key: value.half() for key, value in transformers.CLIPTextModel(config).state_dict().items()}
    prefix = "" if next(iter(state)).startswith("text_model.") else "text_model."
    path = tmp_path_factory.mktemp("clip") / "clip_l.safetensors"
    save_file({prefix + key: value.contiguous() for key, value in state.items()}, path)
    return path


class Runs:
    """Runs of one command in a folder, each under its own name."""

    def __init__(self, model: Path, clip: Path, folder: Path) -> None:
        self.model, self.clip, self.folder = model, clip, folder
        (folder / "captions.txt").write_text(CAPTIONS, "utf-8")

    def start(self, name: str) -> subprocess.Popen[str]:
        words = {
            "model": self.model, "clip": self.clip, "clip-type": "stable_diffusion", "size": 64, "phases": 2,
            "prompts": self.folder / "captions.txt", "steps": STEPS, "save-every": EVERY, "batch": 4, "rank": 4,
            "lr": 3e-3, "warmup": 2, "out": self.folder / f"{name}.safetensors", "csv": self.folder / f"{name}.csv",
            "state": self.folder / f"{name}.pt",
        }  # fmt: skip
        command = [sys.executable, "-m", "scripts.distill", "--single"]
        command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)

    def finish(self, name: str) -> str:
        process = self.start(name)
        said = process.communicate(timeout=900)[1]
        assert process.returncode == 0, said
        return said

    def kill(self, name: str, when: Callable[[], bool]) -> None:
        """Start it and kill it as soon as ``when`` holds."""
        process = self.start(name)
        while process.poll() is None and not when():
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)

    def parts(self, name: str) -> list[Path]:
        return sorted((self.folder / f"{name}.latents.states").glob("*/*.safetensors"))

    def cache(self, name: str) -> dict:
        return torch.load(self.folder / f"{name}.latents.pt", weights_only=True)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_killed_while_drawing_and_while_training_it_ends_with_the_same_bits(zoo, clip, tmp_path):
    runs = Runs(zoo["sd15"].path, clip, tmp_path)
    said = runs.finish("whole")
    assert re.search(r"whole\.latents\.pt .*draw.* 3 captions\.", said), said
    whole = runs.cache("whole")
    assert [tuple(latent.shape) for latent in whole["latents"]] == [(22, 4, 8, 8)] * 3
    assert len(rows(tmp_path / "whole.csv")) == STEPS and not runs.parts("whole")

    runs.kill("cut", lambda: len(runs.parts("cut")) >= 3)
    kept = {part: (part.stat().st_mtime_ns, part.read_bytes()) for part in runs.parts("cut")}
    assert 3 <= len(kept) < 9 and not (tmp_path / "cut.latents.pt").exists() and not (tmp_path / "cut.csv").exists()

    unchanged: set[Path] = set()

    def training() -> bool:
        """After the first checkpoint; on the way there, parts of the first run are looked at again."""
        seen = [part for part in kept if part.exists()] if len(unchanged) < len(kept) else []
        unchanged.update(part for part in seen if len(runs.parts("cut")) > len(kept)
                         and part.stat().st_mtime_ns == kept[part][0])  # fmt: skip
        log = tmp_path / "cut.csv"
        return (tmp_path / "cut.pt").exists() and len(log.read_text("utf-8").splitlines()) > EVERY + 3

    runs.kill("cut", training)
    assert unchanged == set(kept), "what was drawn before the kill was used as it lay there"
    state = torch.load(tmp_path / "cut.pt", weights_only=True)
    assert EVERY <= state["step"] < STEPS and not (tmp_path / "cut.safetensors").exists()
    cut = runs.cache("cut")
    assert all(torch.equal(a, b) for a, b in zip(cut["latents"], whole["latents"], strict=True))

    said = runs.finish("cut")
    assert re.search(r"cut\.latents\.pt .* up to date .*3 captions\.", said), said
    assert losses(tmp_path / "cut.csv") == losses(tmp_path / "whole.csv")
    assert same_lora(tmp_path / "cut.safetensors", tmp_path / "whole.safetensors")
    assert any(value.any() for key, value in load_file(tmp_path / "cut.safetensors").items() if "lora_up" in key)
