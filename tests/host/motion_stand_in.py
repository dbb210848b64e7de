"""A UNet with the blocks of SD 1.5 and a motion module for it, as ComfyUI-AnimateDiff-Evolved wants them: it knows their
widths by heart, so neither can be tiny. Both are as light as their layout allows, in fp16 files of 1.3 and 0.7 GB.
"""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file

WIDTHS = (320, 640, 1280, 1280)


def make_unet(path: Path) -> None:
    """Attention at the first level alone."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=32, in_channels=4, model_channels=320, out_channels=4, num_res_blocks=[2] * 4,
        channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, *[0] * 6], transformer_depth_output=[*[1] * 3, *[0] * 9],
        transformer_depth_middle=-1, context_dim=768, use_spatial_transformer=True, use_linear_in_transformer=False,
        num_heads=8, num_head_channels=-1, legacy=False, use_checkpoint=False, **tiny._ops(),
    )  # fmt: skip
    tiny.save(tiny.fill(unet), path)


def make_motion(path: Path) -> None:
    """A file of AnimateDiff's motion modules as AnimateLCM's is, without positions; one attention in place of two."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def weight(name: str, *shape: int) -> None:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.0
        ones = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        tensors[name] = (torch.randn(shape, generator=generator) * scale + ones).half()

    def module(where: str, width: int) -> None:
        block = f"{where}.transformer_blocks.0"
        for name in (f"{where}.norm", f"{block}.norms.0", f"{block}.ff_norm"):
            weight(f"{name}.weight", width)
            weight(f"{name}.bias", width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            weight(f"{block}.attention_blocks.0.{name}.weight", width, width)
        weight(f"{block}.attention_blocks.0.to_out.0.bias", width)
        for name, out, into in ((f"{where}.proj_in", width, width), (f"{where}.proj_out", width, width),
                                (f"{block}.ff.net.0.proj", 8 * width, width),
                                (f"{block}.ff.net.2", width, 4 * width)):  # fmt: skip
            weight(f"{name}.weight", out, into)
            weight(f"{name}.bias", out)

    for side, widths, count in (("down_blocks", WIDTHS, 2), ("up_blocks", WIDTHS[::-1], 3)):
        for level, width in enumerate(widths):
            for index in range(count):
                module(f"{side}.{level}.motion_modules.{index}.temporal_transformer", width)
    save_file(tensors, path)
