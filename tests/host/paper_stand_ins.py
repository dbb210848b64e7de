"""``benchmarks/paper.toml`` on tiny models and networks under the real file names.

Run as a program, it is ``pcm table`` with stand-ins for what cannot be small or is not here: CLIP's text encoders,
whose size ComfyUI fixes, SD's VAE, and ComfyUI-AnimateDiff-Evolved, unless the first argument is ``--real-motion``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent.parent
LOADER = "ADE_AnimateDiffLoaderGen1"
MOTION = "AnimateLCM_sd15_t2v.ckpt"
MODELS = {
    "sd15": ("v1-5-pruned-emaonly", "sd_turbo", "instaflow_0_9B"),
    "sdxl": ("sd_xl_base_1.0", "sd_xl_turbo_1.0_fp16", "nitrosd-realism_comfyui"),
}
LORAS = {
    kind: [
        *others,
        *(f"pcm_{kind}_smallcfg_{n}step_converted" for n in (2, 4, 8, 16)),
        *(f"pcm_{kind}_normalcfg_{n}step_converted" for n in (4, 8, 16)),
    ]
    for kind, others in {
        "sd15": ("lcm-lora-sdv1-5", "TCD-SD15-LoRA", "AnimateLCM_sd15_t2v_lora"),
        "sdxl": ("lcm-lora-sdxl", *(f"sdxl_lightning_{n}step_lora" for n in (2, 4, 8))),
    }.items()
}
SMALLER = (
    ("[512, 512]", "[64, 64]"),
    ("[1024, 1024]", "[64, 64]"),
    ("@50 ", "@3 "),
    ("length = 16", "length = 2\nsize = [128, 128]"),  # what RAFT needs
)


def make(host: Any, zoo: Any, folder: Path) -> Path:
    """The table file in ``folder``: two prompts, and beside it every model and LoRA that was ever released."""
    from test_lora_node import put

    text = (ROOT / "benchmarks" / "paper.toml").read_text("utf-8")
    for old, new in SMALLER:
        assert old in text
        text = text.replace(old, new)
    (folder / "paper.toml").write_text(text, "utf-8")
    files = folder / "paper"
    files.mkdir()
    for name in ("coco_30k", "cc12m_30k", "ucf101"):
        (files / f"{name}.txt").write_text("a cat\nthe sea\n", "utf-8")
    for kind, names in MODELS.items():
        for name in names:
            (files / f"{name}.safetensors").write_bytes(zoo[kind].path.read_bytes())
    for kind, names in LORAS.items():
        for name in names:
            made = host.base / "models" / "loras" / put(host, zoo[kind].model, name, value=0.02)
            (files / made.name).write_bytes(made.read_bytes())
    (files / MOTION).write_bytes(b"motion")
    return folder / "paper.toml"


def make_networks(files: Path, patch: Any) -> None:
    """A small network of random weights for every measure, and three images that play COCO; needs tests/core."""
    from test_measures import random_hps
    from test_metrics import save, texture, tiny_clip, tiny_inception

    for n in range(3):
        save(texture(n, 64), files / "coco_30k" / f"{n}.png")
    for name in ("clip-vit-large-patch14", "PickScore_v1"):
        tiny_clip(files / name)
    tiny_inception(files, patch).rename(files / "weights-inception-2015-12-05-6726825d.pth")
    torch.save({"state_dict": random_hps().state_dict()}, files / "HPS_v2_compressed.pt")
    torch.save(nn.Linear(8, 1).state_dict(), files / "sac+logos+ava1-l14-linearMSE.pth")
    raft = importlib.import_module("torchvision.models.optical_flow").raft_large(weights=None)
    torch.save(raft.state_dict(), files / "raft_large_C_T_SKHT_V2-ff5fadd5.pth")


class Words:
    """A text encoder that gives every text a conditioning of its own."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> Any:
        return self.given.cond(sum(text.encode()) % 1000)


class Motion:
    """AnimateDiff Loader (Gen 1), which puts nothing on."""

    FUNCTION = "put_on"

    def put_on(self, model: Any, model_name: str, beta_schedule: str) -> tuple[Any]:
        assert model_name in (MOTION, "v3_sd15_mm.ckpt") and beta_schedule == "autoselect"
        return (model,)


def load_checkpoint(loaders: Any) -> Callable[[Path], tuple[Any, Any, Any]]:
    """In place of ``loaders.load_checkpoint``."""
    import tiny

    texts = {"sd15": tiny.Tiny(None, (), 77, 768), "sdxl": tiny.Tiny(None, (), 77, 2048, pooled=1280)}

    def load(path: Path) -> tuple[Any, Any, Any]:
        kind = "sdxl" if path.stem in MODELS["sdxl"] else "sd15"
        return loaders.load_model(path), Words(texts[kind]), tiny.make_vae(4)

    return load


def main() -> None:
    sys.path.insert(0, str(ROOT))
    workers, command = (importlib.import_module(f"scripts.{name}") for name in ("workers", "table.command"))

    def load_pack(comfyui: str | None = None) -> Any:
        pack = workers.load_pack(comfyui)
        loaders = pack("nodes.host.loaders")
        loaders.load_checkpoint = load_checkpoint(loaders)
        if not real_motion:
            importlib.import_module("nodes").NODE_CLASS_MAPPINGS[LOADER] = Motion
        return pack

    arguments = sys.argv[1:]
    real_motion = arguments[0] == "--real-motion"
    command.load_pack = load_pack
    command.main(arguments[1:] if real_motion else arguments)


if __name__ == "__main__":
    main()
