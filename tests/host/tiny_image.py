"""Tiny models of further families, built without the loader, which knows them at full size only.

They serve what hangs on the model's class: its LoRA names and its sigmas. The oldest hosts lack some of them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch


def _direct(
    name: str, unet: dict[str, Any], shape: tuple[int, ...], width: int = 24, pooled: int | None = None
) -> tiny.Tiny:
    import comfy.supported_models

    config = getattr(comfy.supported_models, name, None)
    if config is None:
        pytest.skip(f"this host has no {name}")
    return tiny.Tiny(tiny._direct(config, unet), (shape,), 12, width, pooled=pooled)


def quantised_sd3(plain: tiny.Tiny, folder: Path, scheme: str) -> tiny.Tiny:
    """``tiny.sd3`` with the matrices of its blocks in one of the host's quantised formats, through its own loader."""
    import comfy.quant_ops
    from safetensors.torch import load_file, save_file

    if scheme not in comfy.quant_ops.QUANT_ALGOS:
        pytest.skip(f"this host has no {scheme}")
    layout = comfy.quant_ops.QUANT_ALGOS[scheme]["comfy_tensor_layout"]
    options = {"scale": "recalculate"} if scheme != "int8_tensorwise" else {}
    label = torch.tensor(list(json.dumps({"format": scheme}).encode()), dtype=torch.uint8)
    state: dict[str, torch.Tensor] = {}
    for key, value in load_file(str(plain.path)).items():  # the model in memory may have a LoRA merged into it
        if key.startswith("joint_blocks.") and key.endswith(".weight") and value.ndim == 2:
            value = value.bfloat16() if scheme == "nvfp4" else value.float()
            state |= comfy.quant_ops.QuantizedTensor.from_float(value, layout, **options).state_dict(key)
            state[key.removesuffix("weight") + "comfy_quant"] = label.clone()
        else:
            state[key] = value
    path = folder / f"tiny_sd3_{scheme}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    with torch.inference_mode():  # as the executor does: such tensors cannot be moved in it otherwise
        return replace(plain, model=tiny.load(path), path=path)


def auraflow(_: Path) -> tiny.Tiny:
    unet = {"cond_seq_dim": 24, "max_seq": 64, "n_double_layers": 1, "n_layers": 2, "dim": 64, "n_heads": 2,
            "global_conddim": 64}  # fmt: skip
    return _direct("AuraFlow", unet, (4, 8, 8))


def z_image(_: Path) -> tiny.Tiny:
    """Lumina 2, which is Z-Image in the host but for the width that detection looks for."""
    unet = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": 24, "n_layers": 1,
            "qk_norm": True, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [8, 8, 8], "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 16}  # fmt: skip
    return _direct("Lumina2", unet, (16, 8, 8))


def qwen_image(_: Path) -> tiny.Tiny:
    unet = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 1, "attention_head_dim": 32,
            "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (8, 12, 12)}  # fmt: skip
    return _direct("QwenImage", unet, (16, 1, 8, 8))


def _flux(name: str, **values: Any) -> tiny.Tiny:
    from comfy.ldm.flux.model import FluxParams

    common = {"context_in_dim": 32, "hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1}
    unet = tiny.known(FluxParams, **common, **values)
    return _direct(name, unet, (unet["in_channels"], 8, 8), 32, pooled=16)


def flux_schnell(_: Path) -> tiny.Tiny:
    return _flux(
        "FluxSchnell", in_channels=16, out_channels=16, vec_in_dim=16, mlp_ratio=4.0, axes_dim=[16, 56, 56],
        theta=10000, patch_size=2, qkv_bias=True, guidance_embed=False, txt_ids_dims=[],
    )  # fmt: skip


def flux2(_: Path) -> tiny.Tiny:
    return _flux(
        "Flux2", in_channels=128, out_channels=128, vec_in_dim=None, mlp_ratio=3.0, axes_dim=[32] * 4, theta=2000,
        patch_size=1, qkv_bias=False, guidance_embed=True, global_modulation=True, mlp_silu_act=True, ops_bias=False,
        txt_ids_dims=[3],
    )  # fmt: skip


def hunyuan_video15(_: Path, *, glyphs: bool = False) -> tiny.Tiny:
    from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

    unet = tiny.known(
        HunyuanVideoParams, in_channels=65, patch_size=[1, 1, 1], out_channels=32, vec_in_dim=None, meanflow=False,
        axes_dim=[16, 56, 56], context_in_dim=32, hidden_size=128, mlp_ratio=4.0, num_heads=1, depth=1,
        depth_single_blocks=0, theta=256, qkv_bias=True, byt5=glyphs, guidance_embed=False, vision_in_dim=32,
        use_cond_type_embedding=True, meanflow_sum=False,
    )  # fmt: skip
    return _direct("HunyuanVideo15", {"image_model": "hunyuan_video", **unet}, (32, 3, 4, 4), 32, pooled=768)


def hunyuan_video15_glyphs(folder: Path) -> tiny.Tiny:
    """With the second text encoder, as released: it reads the letters of quoted words."""
    return hunyuan_video15(folder, glyphs=True)


def ernie_image(_: Path) -> tiny.Tiny:
    unet = {"image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 1, "text_in_dim": 24,
            "ffn_hidden_size": 64, "rope_axes_dim": (8, 12, 12)}  # fmt: skip
    return _direct("ErnieImage", unet, (128, 4, 4))


def krea2(_: Path) -> tiny.Tiny:
    unet = {"image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 32, "heads": 2, "kvheads": 2, "layers": 1,
            "txtlayers": 2, "txtheads": 2, "txtkvheads": 2}  # fmt: skip
    return _direct("Krea2", unet, (16, 8, 8), 64)


def lens(_: Path) -> tiny.Tiny:
    unet = {"image_model": "lens", "num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2,
            "enc_hidden_dim": 24, "axes_dims_rope": (8, 12, 12)}  # fmt: skip
    return _direct("Lens", unet, (128, 4, 4), 96)


def mage_flow(_: Path) -> tiny.Tiny:
    unet = {"image_model": "mage_flow", "num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2,
            "joint_attention_dim": 24, "axes_dims_rope": (8, 12, 12)}  # fmt: skip
    return _direct("MageFlow", unet, (128, 4, 4))


def minimax_h3(_: Path) -> tiny.Tiny:
    unet = {"image_model": "minimax_h3", "hidden_size": 64, "num_layers": 1, "token_refiner_num_layers": 1,
            "num_attention_heads": 2, "attention_head_dim": 16, "ffn_hidden_size": 48, "text_dim": 24,
            "time_embed_hidden_size": 40, "time_embed_dim": 32}  # fmt: skip
    return _direct("MiniMaxH3", unet, (24, 3, 4, 4))


def minimax_h3_av(_: Path) -> tiny.Tiny:
    """With heads wide enough for its positions, and latents of a video and its sound."""
    unet = {"image_model": "minimax_h3", "hidden_size": 64, "num_layers": 1, "token_refiner_num_layers": 1,
            "num_attention_heads": 1, "attention_head_dim": 128, "ffn_hidden_size": 64, "text_dim": 32,
            "timestep_input_dim": 256, "time_embed_hidden_size": 64, "time_embed_dim": 32}  # fmt: skip
    return replace(_direct("MiniMaxH3", unet, (), 32), shapes=((24, 2, 4, 4), (32, 2, 4)))


def anima(_: Path) -> tiny.Tiny:
    """Without its text adapter, which has one size only; conditioning with no token ids goes past it."""
    anima_model = pytest.importorskip("comfy.ldm.anima.model", reason="this host has no Anima")
    small = functools.partial(
        anima_model.LLMAdapter, source_dim=32, target_dim=32, model_dim=32, num_layers=1, num_heads=2
    )
    unet = {"image_model": "anima", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True,
            "model_channels": 64, "num_blocks": 1, "num_heads": 2, "crossattn_emb_channels": 32,
            "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1,
            "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 16, "extra_per_block_abs_pos_emb": False,
            "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
            "rope_enable_fps_modulation": False}  # fmt: skip
    with mock.patch.object(anima_model, "LLMAdapter", small):
        return _direct("Anima", unet, (16, 1, 8, 8), 32)


def pixart(_: Path) -> tiny.Tiny:
    unet = {"image_model": "pixart_sigma", "hidden_size": 64, "depth": 1, "num_heads": 2, "caption_channels": 24,
            "micro_condition": False, "pred_sigma": True}  # fmt: skip
    return _direct("PixArtSigma", unet, (4, 8, 8))


def hidream(_: Path) -> tiny.Tiny:
    unet = {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
            "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [24, 24],
            "text_emb_dim": 24, "axes_dims_rope": (16, 16), "llama_layers": [0, 1]}  # fmt: skip
    return _direct("HiDream", unet, (16, 8, 8))


FACTORIES = {
    "hunyuan_video15_glyphs": hunyuan_video15_glyphs, "minimax_h3": minimax_h3, "pixart": pixart, "hidream": hidream,
    "auraflow": auraflow, "z_image": z_image, "qwen_image": qwen_image, "flux_schnell": flux_schnell, "flux2": flux2,
    "hunyuan_video15": hunyuan_video15, "ernie_image": ernie_image, "krea2": krea2, "lens": lens,
    "mage_flow": mage_flow, "minimax_h3_av": minimax_h3_av, "anima": anima,
}  # fmt: skip
