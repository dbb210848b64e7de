"""A UNet with the blocks of SD 1.5, and a motion module for it as ComfyUI-AnimateDiff-Evolved reads them.

That pack knows the widths by heart, so neither can be tiny. Both are as light as their layout allows, in fp16.
"""

from __future__ import annotations

from pathlib import Path

import tiny
import torch

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


def make_motion(path: Path, *, positions: bool) -> None:
    """A file of motion modules with one attention in place of two.

    Args:
        positions: as in those of AnimateDiff v3, of 32 frames; AnimateLCM's have none.
    """
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def weight(name: str, *shape: int) -> None:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.0
        ones = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        tensors[name] = torch.randn(shape, generator=generator).mul_(scale).add_(ones).half()

    def module(where: str, width: int) -> None:
        block = f"{where}.transformer_blocks.0"
        for name in (f"{where}.norm", f"{block}.norms.0", f"{block}.ff_norm"):
            weight(f"{name}.weight", width)
            weight(f"{name}.bias", width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            weight(f"{block}.attention_blocks.0.{name}.weight", width, width)
        weight(f"{block}.attention_blocks.0.to_out.0.bias", width)
        if positions:
            weight(f"{block}.attention_blocks.0.pos_encoder.pe", 1, 32, width)
        for name, out, into in ((f"{where}.proj_in", width, width), (f"{where}.proj_out", width, width),
                                (f"{block}.ff.net.0.proj", 8 * width, width),
                                (f"{block}.ff.net.2", width, 4 * width)):  # fmt: skip
            weight(f"{name}.weight", out, into)
            weight(f"{name}.bias", out)

    for side, widths, count in (("down_blocks", WIDTHS, 2), ("up_blocks", WIDTHS[::-1], 3)):
        for level, width in enumerate(widths):
            for index in range(count):
                module(f"{side}.{level}.motion_modules.{index}.temporal_transformer", width)
    torch.save(tensors, path)


def with_custom_node(comfyui: Path, node: Path, folder: Path) -> Path:
    """A ComfyUI checkout in ``folder``, of links to another, with one custom node."""
    (folder / "custom_nodes").mkdir(parents=True)
    for path in comfyui.iterdir():
        if path.name not in ("custom_nodes", "models"):
            (folder / path.name).symlink_to(path)
    (folder / "models").mkdir()
    (folder / "custom_nodes" / node.name).symlink_to(node)
    return folder
