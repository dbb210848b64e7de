"""Graphs of the demo world that a neighbour's node is put into, and what comes out of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.client import Client, Graph

LORA, STYLE, OTHER_STYLE = "demo_pcm_4phase.safetensors", "style_a.safetensors", "style_b.safetensors"
MODEL, BASE = ["lora", 0], ["base", 0]
SENTENCE = "PCM Sampler: "  # with which every line of ours about a run begins


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def world(**more: dict[str, Any]) -> Graph:
    """Model, LoRA, prompts and an empty latent of the demo world, and what a test adds."""
    return {
        "base": node("UNETLoader", unet_name="demo_sd3.safetensors", weight_dtype="default"),
        "lora": node("PCMLoraLoader", model=BASE, lora_name=LORA, strength=1.0, allow_partial=False),
        "positive": node("PCMDemoPrompt", text="a red circle on blue"),
        "negative": node("PCMDemoPrompt", text=""),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "vae": node("VAELoader", vae_name="taesd3"),
        **more,
    }


def prompts() -> dict[str, Any]:
    return {"positive": ["positive", 0], "negative": ["negative", 0]}


def ksampler(model: Any = MODEL, sampler: Any = "pcm", scheduler: Any = "pcm", **more: Any) -> dict[str, Any]:
    """The stock KSampler: what a neighbour's by-name node must agree with."""
    settings = {"seed": 7, "steps": 4, "cfg": 1.0, "denoise": 1.0, "latent_image": ["latent", 0]} | more
    return node("KSampler", model=model, **prompts(), sampler_name=sampler, scheduler=scheduler, **settings)


class Bench:
    """Runs graphs on the server with all packs."""

    def __init__(self, client: Client, base: Path, log: Callable[[], str]) -> None:
        self.client, self.base, self.log = client, base, log
        self.client.timeout = 300.0

    def latent(self, graph: Graph, name: str, output: int = 0) -> Tensor:
        """Run a graph and return the LATENT of one of its nodes, exactly."""
        keep = node("SaveLatent", samples=[name, output], filename_prefix="latents/neighbours")
        (file,) = self.client.run({**graph, "keep": keep})["keep"]["latents"]
        return load_file(self.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]

    def image(self, graph: Graph, name: str) -> Tensor:
        """Run a graph and return the IMAGE of one of its nodes, in 0..255."""
        keep = node("SaveImage", images=[name, 0], filename_prefix="neighbours")
        outputs = self.client.run({**graph, "keep": keep})
        (png,) = self.client.pictures({"keep": outputs["keep"]})
        return torch.from_numpy(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype("float32"))

    def said(self, run: Callable[[], Any]) -> list[str]:
        """What our sampler logged while ``run`` ran: its warnings, one a line."""
        before = len(self.log())
        run()
        return [line.partition(SENTENCE)[2] for line in self.log()[before:].splitlines() if SENTENCE in line]


def add_files(base: Path) -> None:
    """Two style LoRAs in the model's own names and a Q8_0 file of the demo model, in the server's model folders."""
    weights = load_file(base / "models" / "diffusion_models" / "demo_sd3.safetensors")
    modules = sorted(key.removesuffix(".weight") for key, value in weights.items()
                     if key.endswith((".qkv.weight", ".proj.weight", ".fc1.weight")) and value.ndim == 2)  # fmt: skip
    for seed, name in enumerate((STYLE, OTHER_STYLE)):
        generator, tensors = torch.Generator().manual_seed(seed), {}
        for module in modules:
            rows, columns = weights[f"{module}.weight"].shape
            tensors[f"diffusion_model.{module}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.05
            tensors[f"diffusion_model.{module}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.05
        save_file(tensors, base / "models" / "loras" / name)
    folder = base / "models" / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(weights, folder / "demo_sd3_q8.gguf")


def write_gguf(weights: dict[str, Tensor], path: Path) -> None:
    """A GGUF file as ComfyUI-GGUF's converter makes it: matrices of the blocks in Q8_0, the rest in F32."""
    writer = gguf.GGUFWriter(str(path), arch="sd3")
    kind = gguf.GGMLQuantizationType
    for key, value in weights.items():
        wide = value.ndim == 2 and value.shape[1] % 32 == 0 and "blocks" in key
        scheme = kind.Q8_0 if wide else kind.F32
        data = gguf.quants.quantize(value.float().numpy(), scheme)
        if value.ndim >= 4:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", [int(n) for n in value.shape])
        writer.add_tensor(key, data, raw_dtype=scheme)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
