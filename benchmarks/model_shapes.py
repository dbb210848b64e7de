"""Models of real size as ComfyUI builds them, without their weights: on the meta device, or filled at random."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from benchmarks.lora_load import SDXL
from devtools.generate import host_nodes

Conditioning = list[list[Any]]
SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768, "adm_in_channels": None,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "num_heads": 8, "num_head_channels": -1,
    "legacy": False, "use_checkpoint": False, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
SD35_MEDIUM = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 24, "input_size": None, "adm_in_channels": 2048,
    "num_patches": 147456, "pos_embed_max_size": 384, "pos_embed_scaling_factor": None, "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "x_block_self_attn_layers": list(range(13)),
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16,
    "freq_dim": 256, "text_dim": 4096, "text_len": 512, "window_size": (-1, -1), "qk_norm": True,
    "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model of real size.

    Attributes:
        config, unet: the host's class in ``supported_models`` and what its detection would find in a file.
        latent: of the size that is usual, [C, ...].
        text, pooled: tokens and width of its text, width of the pooled one.
    """

    title: str
    config: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, int]
    pooled: int | None = None

    def conditioning(self) -> Conditioning:
        values = {} if self.pooled is None else {"pooled_output": torch.zeros(1, self.pooled)}
        return [[torch.zeros(1, *self.text), values]]

    def build(self, dtype: torch.dtype, device: str = "meta") -> Any:
        """A ModelPatcher; on the meta device its sigma table alone has values. The host must run."""
        import comfy.model_base
        import comfy.model_patcher
        import comfy.supported_models

        config = getattr(comfy.supported_models, self.config)(dict(self.unet))
        config.set_inference_dtype(dtype, None)
        with torch.device(device):
            model = config.get_model({}, "", device=torch.device(device))
        model.model_sampling = comfy.model_base.model_sampling(config, model.model_type)
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


MODELS = {
    "sd15": Model("SD1.5, 512", "SD15", SD15, (4, 64, 64), (77, 768)),
    "sdxl": Model("SDXL, 1024", "SDXL", SDXL, (4, 128, 128), (77, 2048), 1280),
    "sd35": Model("SD3.5 Medium, 1024", "SD3", SD35_MEDIUM, (16, 128, 128), (154, 4096), 2048),
    "flux": Model("Flux, 1024", "Flux", FLUX, (16, 128, 128), (512, 4096), 768),
    "wan_1b": Model(
        "Wan 1.3B, 480p, 33 frames", "WAN21_T2V",
        WAN | {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, (16, 9, 60, 104), (512, 4096),
    ),
    "wan_14b": Model(
        "Wan 14B, 480p, 33 frames", "WAN21_T2V",
        WAN | {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, (16, 9, 60, 104), (512, 4096),
    ),
}  # fmt: skip

# The same networks on latents of a fourth of the side, so narrow and short that an update takes seconds on the CPU.
NARROW = {
    "sd15": replace(MODELS["sd15"], unet=SD15 | {"model_channels": 128}, latent=(4, 32, 32)),
    "sd35": replace(
        MODELS["sd35"], latent=(16, 32, 32),
        unet=SD35_MEDIUM | {
            "depth": 8, "x_block_self_attn_layers": list(range(4)),
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 512}
            },
        },
    ),
    "flux": replace(
        MODELS["flux"], latent=(16, 32, 32),
        unet=FLUX | {"hidden_size": 512, "num_heads": 4, "depth": 3, "depth_single_blocks": 6},
    ),
    "wan_1b": replace(
        MODELS["wan_1b"], latent=(16, 3, 16, 26),
        unet=WAN | {"dim": 512, "ffn_dim": 2048, "num_heads": 4, "num_layers": 8},
    ),
}  # fmt: skip

# What the host's detection knows from a file, with short texts: of the UNet one level instead of fewer channels.
DETECTED = {
    name: replace(NARROW[name], latent=latent, text=(16, 4096))
    for name, latent in (("sd35", (16, 16, 16)), ("flux", (16, 16, 16)), ("wan_1b", (16, 2, 8, 8)))
} | {
    "sd15": replace(
        MODELS["sd15"], latent=(4, 16, 16),
        unet=SD15 | {
            "num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]
        },
    ),
}  # fmt: skip


def start_host(device: str = "cpu") -> Callable[[str], ModuleType]:
    """Boot ComfyUI with the pack; returns ``module name -> module`` of the pack as the host loaded it."""
    sys.path.insert(0, os.environ.get("COMFYUI_PATH", ""))
    arguments = importlib.import_module("comfy.cli_args").args
    arguments.use_pytorch_cross_attention = True  # what a GPU uses
    torch.set_num_threads(1 if device == "cpu" else os.cpu_count() or 1)
    if device != "cpu":
        # Imported before host_nodes asks for the CPU, which comes too late then.
        arguments.disable_dynamic_vram = True
        importlib.import_module("comfy.model_management")
    host_nodes.load()
    name = str(host_nodes.ROOT).replace(".", "_x_")
    return lambda module: importlib.import_module(f"{name}.{module}")


def fill(network: nn.Module, seed: int = 0) -> None:
    """Random weights of a trained scale, of one stretch of noise that is repeated; norms one, biases zero."""
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            flat, scale = parameter.view(-1), parameter[0].numel() ** -0.5
            part = (noise.roll(number) * scale).to(parameter.dtype)
            for start in range(0, flat.numel(), len(part)):
                flat[start : start + len(part)] = part[: flat.numel() - start]
        for module in network.modules():
            if type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None:
                cast(Any, module).weight.fill_(1.0)
