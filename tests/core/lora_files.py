"""LoRA files for tests: a small SD3-like model, its keys in every spelling, safetensors files byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch

from pcm_core.lora.keys import Target

WIDTH = 6
SHAPES = {
    f"diffusion_model.joint_blocks.{i}.{name}.weight": shape
    for i in range(2)
    for name, shape in {
        "x_block.attn.qkv": (3 * WIDTH, WIDTH), "x_block.attn.proj": (WIDTH, WIDTH),
        "x_block.mlp.fc1": (4 * WIDTH, WIDTH), "x_block.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }.items()
}  # fmt: skip


def key_map() -> dict[str, Target]:
    """Native and diffusers names as the host maps them, with parts of a fused qkv and one norm with swapped halves."""
    targets = {key.removesuffix(".weight"): Target(key) for key in SHAPES}
    for i in range(2):
        ours, theirs = f"diffusion_model.joint_blocks.{i}.x_block", f"transformer.transformer_blocks.{i}"
        for part, letter in enumerate("qkv"):
            targets[f"{theirs}.attn.to_{letter}"] = Target(f"{ours}.attn.qkv.weight", (part * WIDTH, WIDTH))
        targets[f"{theirs}.attn.to_out.0"] = Target(f"{ours}.attn.proj.weight")
        targets[f"{theirs}.ff.net.0.proj"] = Target(f"{ours}.mlp.fc1.weight")
        targets[f"{theirs}.norm1.linear"] = Target(f"{ours}.adaLN_modulation.1.weight", None, True)
    return targets


def shape_of(target: Target) -> tuple[int, ...]:
    shape = SHAPES[target.weight]
    return shape if target.rows is None else (target.rows[1], *shape[1:])


def lora(names: list[str], rank: int = 2, alpha: float | None = 1.0, seed: int = 0, dtype=torch.float32):
    """A PEFT-style LoRA for some names of ``key_map``, and the update of each name at strength 1."""
    generator, targets = torch.Generator().manual_seed(seed), key_map()
    tensors, updates = {}, {}
    for name in names:
        rows, columns = shape_of(targets[name])
        down = torch.randn(rank, columns, generator=generator).to(dtype)
        up = torch.randn(rows, rank, generator=generator).to(dtype)
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        updates[name] = (up.float() @ down.float()) * (1 if alpha is None else alpha / rank)
    return tensors, updates


def update_of(output: dict[str, torch.Tensor], weight: str) -> torch.Tensor:
    """What the host adds to a weight: alpha / rank * up down."""
    stem = weight.removesuffix(".weight")
    up, down = output[f"{stem}.lora_up.weight"].float(), output[f"{stem}.lora_down.weight"].float()
    scale = float(output[f"{stem}.alpha"]) / len(down) if f"{stem}.alpha" in output else 1.0
    return scale * up @ down


def pack(header: dict | bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file made from any header and a length that may be wrong."""
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    raw = raw.encode() if isinstance(raw, str) else raw
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: list, start: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
