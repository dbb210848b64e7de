"""Distill PCM LoRA without latents on a server that is killed while it draws: the same prompt gives the same bits."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from recipes import node
from safetensors.torch import load_file

from demo.client import Client, Graph
from devtools.base import make_base
from devtools.server import Server

SETTINGS = {
    "phases": 2, "steps": 12, "batch_size": 4, "grad_accumulation": 1, "learning_rate": 1e-3, "rank": 4,
    "cfg_min": 3.0, "cfg_max": 3.0, "caption_dropout": 0.0, "adversarial": 0.0, "loss": "huber", "ema": 0.0,
    "seed": 0, "existing_lora": "[none]", "targets": "", "solver_grid": 0, "gradient_checkpointing": False,
    "compute": "model", "preview_every": 0, "width": 64, "height": 64,
}  # fmt: skip


def graph() -> Graph:
    """A model, a list of prompts, and nothing else."""
    return {
        "1": node("UNETLoader", unet_name="demo_sd3.safetensors", weight_dtype="default"),
        "2": node("PCMDemoPrompt", text="a red circle on blue"),
        "3": node("PCMDemoPrompt", text="a green cross on white"),
        "4": node("CreateList", **{"inputs.input0": ["2", 0], "inputs.input1": ["3", 0]}),
        "5": node("PCMDemoPrompt", text=""),
        "6": node("PCMDistillLora", model=["1", 0], positive=["4", 0], negative=["5", 0], **SETTINGS),
        "7": node("PCMSaveLora", lora=["6", 0], prefix="alone", dtype="fp32"),
    }


def parts(base: Path) -> list[Path]:
    return sorted((base / "output" / "pcm_states").glob("*/*.safetensors"))


def finished(base: Path, comfyui: Path) -> dict[str, torch.Tensor]:
    """The LoRA that the prompt ends with on a server of its own."""
    with Server(Path(sys.executable), comfyui, base) as server, Client(server.url) as client:
        client.run(graph())
    (path,) = (base / "output" / "loras").glob("alone*.safetensors")
    return load_file(path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_server_killed_while_it_draws(comfyui, tmp_path):
    bases = [tmp_path / name for name in ("whole", "cut")]
    for base in bases:
        make_base(base)
    whole = finished(bases[0], comfyui)
    assert len(parts(bases[0])) == 8 and any(value.any() for key, value in whole.items() if "lora_up" in key)

    with Server(Path(sys.executable), comfyui, bases[1]) as server, Client(server.url) as client:
        client.queue(graph())
        process = server.process
        assert process is not None
        while process.poll() is None and len(parts(bases[1])) < 3:
            time.sleep(0.005)
        Server.signal_group(process, "SIGKILL")
        process.wait(timeout=60)
    kept = {part: part.stat().st_mtime_ns for part in parts(bases[1])}
    assert 3 <= len(kept) < 8 and not list((bases[1] / "output").glob("loras/alone*"))

    again = finished(bases[1], comfyui)
    assert len(parts(bases[1])) == 8 and all(part.stat().st_mtime_ns == made for part, made in kept.items())
    assert again.keys() == whole.keys() and all(torch.equal(again[key], whole[key]) for key in whole)
