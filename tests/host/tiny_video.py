"""Tiny video models beside those of ``tiny``: image-to-video forms, and the second expert of a pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
import torch


def wan_i2v(folder: Path) -> tiny.Tiny:
    """The layout of Wan 2.2 image-to-video: 16 latent channels, 4 of the mask, 16 of the picture."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v", in_dim=36, dim=128, ffn_dim=64, freq_dim=256, text_dim=4096, out_dim=16, num_heads=1,
        num_layers=1, **tiny._ops(),
    )  # fmt: skip
    path = tiny.save(tiny.fill(model), folder / "tiny_wan_i2v.safetensors")
    return tiny.Tiny(tiny.load(path), ((16, 3, 8, 8),), 12, 4096, path=path)


def wan_i2v_old(folder: Path) -> tiny.Tiny:
    """The layout of Wan 2.1 image-to-video, which also reads the picture's CLIP features."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="i2v", in_dim=36, dim=128, ffn_dim=64, freq_dim=256, text_dim=4096, out_dim=16, num_heads=1,
        num_layers=1, **tiny._ops(),
    )  # fmt: skip
    path = tiny.save(tiny.fill(model), folder / "tiny_wan_i2v_old.safetensors")
    return tiny.Tiny(tiny.load(path), ((16, 3, 8, 8),), 12, 4096, path=path)


def wan_twin(folder: Path) -> tiny.Tiny:
    """``tiny.wan`` with other weights."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v", in_dim=16, dim=128, ffn_dim=64, freq_dim=256, text_dim=4096, out_dim=16, num_heads=1,
        num_layers=1, **tiny._ops(),
    )  # fmt: skip
    path = tiny.save(tiny.fill(model, seed=1), folder / "tiny_wan_twin.safetensors")
    return tiny.Tiny(tiny.load(path), ((16, 3, 8, 8),), 12, 4096, path=path)


def hunyuan_i2v(folder: Path) -> tiny.Tiny:
    from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams

    params = tiny.known(
        HunyuanVideoParams, in_channels=33, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=768, meanflow=False,
        axes_dim=[16, 56, 56], context_in_dim=32, hidden_size=128, mlp_ratio=4.0, num_heads=1, depth=1,
        depth_single_blocks=1, theta=256, qkv_bias=True, byt5=False, guidance_embed=True, vision_in_dim=None,
        use_cond_type_embedding=False, meanflow_sum=False,
    )  # fmt: skip
    model = tiny.fill(HunyuanVideo(image_model="hunyuan_video", **params, **tiny._ops()))
    path = tiny.save(model, folder / "tiny_hyvid_i2v.safetensors")
    return tiny.Tiny(tiny.load(path), ((16, 3, 8, 8),), 12, 32, pooled=768, path=path)


def linear_beta(folder: Path) -> tiny.Tiny:
    """SD 1.5 with the noise schedule of AnimateDiff: diffusers' linear betas, which the host calls sqrt_linear."""
    return tiny._unet({"beta_schedule": "sqrt_linear", "linear_start": 0.00085, "linear_end": 0.012})(folder)


FACTORIES = {
    "wan_i2v": wan_i2v,
    "wan_i2v_old": wan_i2v_old,
    "wan_twin": wan_twin,
    "hunyuan_i2v": hunyuan_i2v,
    "linear_beta": linear_beta,
}


def wan_vae() -> Any:
    """A narrow Wan 2.1 VAE: the host reads its width from the file."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    vae = WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
    return comfy.sd.VAE(sd=tiny.fill(vae).state_dict(), dtype=torch.float32)


def with_frames(model: tiny.Tiny, frames: int) -> tiny.Tiny:
    """The same model with longer clips."""
    first, *rest = model.shapes
    return replace(model, shapes=((first[0], frames, *first[2:]), *rest))


def mask_frames(latent: torch.Tensor, kept: int) -> torch.Tensor:
    """A noise mask that keeps the first frames of a [B, C, T, H, W] latent."""
    mask = torch.ones(latent.shape[0], 1, *latent.shape[2:])
    mask[:, :, :kept] = 0
    return mask
