"""Every module of diffusers' own classes, by the name it has there, finds its weight in the host's model.

The names are read from the classes, so that a module that a newer diffusers adds or renames is missed here first.
"""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers")


def classes():
    """Base model to the tiny model of the host and a small one of diffusers, on the meta device."""
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32}
    return {
        "sd3": ("sd3", diffusers.SD3Transformer2DModel, {**small, "caption_projection_dim": 64}),
        "flux1": ("flux", diffusers.FluxTransformer2DModel, {**small, "num_single_layers": 1, "guidance_embeds": True}),
        "flux2": ("flux2", diffusers.Flux2Transformer2DModel, {**small, "num_single_layers": 1}),
        "wan": ("wan", diffusers.WanTransformer3DModel, small),
        "wan i2v": ("wan_i2v_old", diffusers.WanTransformer3DModel, {**small, "added_kv_proj_dim": 64, "image_dim": 8}),
        "hunyuan-video": ("hunyuan_video", diffusers.HunyuanVideoTransformer3DModel,
                          {**small, "num_single_layers": 1, "num_refiner_layers": 1}),
        "hunyuan-video-1.5": ("hunyuan_video15_glyphs", diffusers.HunyuanVideo15Transformer3DModel,
                              {**small, "num_refiner_layers": 1}),
        "ltxv": ("ltxv", diffusers.LTXVideoTransformer3DModel, small),
        "ltx-2": ("ltx2", diffusers.LTX2VideoTransformer3DModel, {"num_layers": 1}),
        "mochi": ("mochi", diffusers.MochiTransformer3DModel, {"num_layers": 2}),
        "qwen-image": ("qwen_image", diffusers.QwenImageTransformer2DModel, small),
        "cogvideox": ("cogvideo", diffusers.CogVideoXTransformer3DModel, small),
        "minimax-h3": ("minimax_h3", diffusers.MiniMaxH3Transformer3DModel,
                       {"num_layers": 1, "num_refiner_layers": 1}),
        "auraflow": ("auraflow", diffusers.AuraFlowTransformer2DModel,
                     {"num_mmdit_layers": 1, "num_single_dit_layers": 1}),
        "z-image": ("z_image", diffusers.ZImageTransformer2DModel, {"n_layers": 1, "n_refiner_layers": 1}),
        "krea2": ("krea2", diffusers.Krea2Transformer2DModel, {"num_layers": 1}),
        "ernie-image": ("ernie_image", diffusers.ErnieImageTransformer2DModel, {"num_layers": 1}),
        "pixart": ("pixart", diffusers.PixArtTransformer2DModel, {"num_layers": 1}),
    }  # fmt: skip


@pytest.mark.parametrize("base_model", list(classes()))
def test_every_module_of_diffusers_has_its_weight(host, zoo, base_model):
    tiny_name, kind, options = classes()[base_model]
    model = zoo[tiny_name].model
    keys = host.pack("pcm_core.lora.keys")
    weights = host.pack("nodes.host.lora").model_weights(model)
    extra = host.pack("pcm_core.lora.diffusers_names").extra_targets(weights.base_model, weights.shapes)
    index = {keys.canonical(name): target for name, target in (*extra.items(), *weights.names.items())}
    with torch.device("meta"):
        theirs = kind(**options)
    names = [name for name, module in theirs.named_modules()
             if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d)]  # fmt: skip
    assert len(names) > 10
    missing = [name for name in names if keys.canonical(name) not in index]
    assert not missing
