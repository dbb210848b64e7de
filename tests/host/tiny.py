"""Tiny random models of real architectures, loaded by the host's own loader wherever its detection allows.

Import inside a test or fixture only: nothing here works before ``conftest`` has booted the host.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
Conditioning = list[list[Any]]


@dataclass
class Tiny:
    """A model with conditioning and latents that fit it.

    ``path`` is the checkpoint, for tests that load it again; ``None`` for models the loader cannot make tiny.
    """

    model: Any
    shapes: tuple[tuple[int, ...], ...]
    tokens: int
    width: int
    extra: dict[str, Any] = field(default_factory=dict)
    pooled: int | None = None
    path: Path | None = None

    def cond(self, seed: int = 1) -> Conditioning:
        generator = torch.Generator().manual_seed(seed)
        values = dict(self.extra)
        if self.pooled is not None:
            values["pooled_output"] = torch.randn(1, self.pooled, generator=generator)
        return [[torch.randn(1, self.tokens, self.width, generator=generator), values]]

    @property
    def positive(self) -> Conditioning:
        return self.cond(1)

    @property
    def negative(self) -> Conditioning:
        return self.cond(2)

    def latent(self, batch: int = 1, seed: int | None = None) -> dict[str, Any]:
        """An empty latent, or a random picture where a seed is given."""
        generator = torch.Generator().manual_seed(seed or 0)
        tensors = [torch.zeros(batch, *shape) for shape in self.shapes]
        if seed is not None:
            tensors = [torch.randn(t.shape, generator=generator) for t in tensors]
        if len(tensors) == 1:
            return {"samples": tensors[0]}
        import comfy.nested_tensor

        return {"samples": comfy.nested_tensor.NestedTensor(tensors)}


class Zoo:
    """Tiny models by name, made on first use and kept; the checkpoints lie in ``folder``."""

    def __init__(self, folder: Path, more: dict[str, Callable[[Path], Tiny]] | None = None) -> None:
        self.folder, self.factories = folder, FACTORIES | (more or {})
        self._made: dict[str, Tiny] = {}

    def __getitem__(self, name: str) -> Tiny:
        if name not in self._made:
            self._made[name] = self.factories[name](self.folder)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.factories)


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a trained scale: matrices by fan-in, norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            if p.ndim == 1:
                p.fill_(1.0 if name.rsplit(".", 1)[-1] in ("weight", "scale", "gamma") else 0.0)
            elif p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)
        for _, b in sorted(module.named_buffers()):
            if b.is_floating_point():
                b.copy_(torch.randn(b.shape, generator=generator) * 0.02)
    return module


def save(module: nn.Module, path: Path, config: dict[str, Any] | None = None, prefix: str = "") -> Path:
    """Write fp16 weights as a checkpoint; ``config`` becomes the metadata from which the host reads sizes."""
    from safetensors.torch import save_file

    state = {prefix + key: value.detach() for key, value in module.state_dict().items()}
    state = {key: (v.half() if v.is_floating_point() else v).contiguous() for key, v in state.items()}
    save_file(state, path, metadata={"config": json.dumps({"transformer": config})} if config else None)
    return path


def load(path: Path) -> Any:
    """Through ``comfy.sd.load_diffusion_model``, which is what UNETLoader calls; computes in fp32."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(path))


def make_vae(channels: int) -> Any:
    """A random TAESD as the host's VAE, for latents of so many channels."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    state = fill(TAESD(latent_channels=channels)).state_dict()
    return comfy.sd.VAE(sd={**state, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)})


def known(params: Any, **values: Any) -> dict[str, Any]:
    """The values this host's params class or constructor knows: they grow from release to release."""
    if dataclasses.is_dataclass(params):
        names = {f.name for f in dataclasses.fields(params)}
    else:
        names = set(inspect.signature(params.__init__).parameters)
    return {key: value for key, value in values.items() if key in names}


def _ops() -> dict[str, Any]:
    import comfy.ops

    return {"device": "cpu", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}


# Through the real loader


def sd15(folder: Path) -> Tiny:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=32, in_channels=4, model_channels=320, out_channels=4, num_res_blocks=[1], channel_mult=[1],
        transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1, context_dim=768,
        use_spatial_transformer=True, use_linear_in_transformer=False, num_heads=8, num_head_channels=-1,
        legacy=False, use_checkpoint=False, **_ops(),
    )  # fmt: skip
    path = save(fill(unet), folder / "tiny_sd15.safetensors")
    return Tiny(load(path), ((4, 8, 8),), 77, 768, path=path)


def sdxl(folder: Path) -> Tiny:
    """As KOALA-700M, whose depth list is the smallest that detection takes for SDXL."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=32, in_channels=4, model_channels=320, out_channels=4, num_res_blocks=[3], channel_mult=[1],
        transformer_depth=[0, 2, 5], transformer_depth_output=[0] * 4, transformer_depth_middle=-2, context_dim=2048,
        adm_in_channels=2816, num_classes="sequential", use_spatial_transformer=True, use_linear_in_transformer=True,
        num_heads=-1, num_head_channels=64, legacy=False, use_checkpoint=False, **_ops(),
    )  # fmt: skip
    path = save(fill(unet), folder / "tiny_sdxl.safetensors")
    return Tiny(load(path), ((4, 8, 8),), 77, 2048, pooled=1280, path=path)


def sd3(folder: Path) -> Tiny:
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    context = {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}}
    model = OpenAISignatureMMDITWrapper(
        input_size=None, patch_size=2, in_channels=16, depth=2, adm_in_channels=16, context_embedder_config=context,
        num_patches=64, pos_embed_max_size=8, pos_embed_scaling_factor=None, out_channels=16, **_ops(),
    )  # fmt: skip
    path = save(fill(model), folder / "tiny_sd3.safetensors")
    return Tiny(load(path), ((16, 8, 8),), 12, 32, pooled=16, path=path)


def flux(folder: Path) -> Tiny:
    from comfy.ldm.flux.model import Flux, FluxParams

    params = known(
        FluxParams, in_channels=16, out_channels=16, vec_in_dim=16, context_in_dim=32, hidden_size=128, mlp_ratio=4.0,
        num_heads=1, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
        guidance_embed=True, txt_ids_dims=[],
    )  # fmt: skip
    path = save(fill(Flux(image_model="flux", **params, **_ops())), folder / "tiny_flux.safetensors")
    return Tiny(load(path), ((16, 8, 8),), 12, 32, pooled=16, path=path)


def _wan(folder: Path, name: str, channels: int, shape: tuple[int, ...]) -> Tiny:
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v", in_dim=channels, dim=128, ffn_dim=64, freq_dim=256, text_dim=4096, out_dim=channels,
        num_heads=1, num_layers=1, **_ops(),
    )  # fmt: skip
    path = save(fill(model), folder / f"{name}.safetensors")
    return Tiny(load(path), (shape,), 12, 4096, path=path)


def wan(folder: Path) -> Tiny:
    return _wan(folder, "tiny_wan", 16, (16, 3, 8, 8))


def wan22(folder: Path) -> Tiny:
    return _wan(folder, "tiny_wan22_5b", 48, (48, 3, 4, 4))


def hunyuan_video(folder: Path) -> Tiny:
    from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams

    params = known(
        HunyuanVideoParams, in_channels=16, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=768, meanflow=False,
        axes_dim=[16, 56, 56], context_in_dim=32, hidden_size=128, mlp_ratio=4.0, num_heads=1, depth=1,
        depth_single_blocks=1, theta=256, qkv_bias=True, byt5=False, guidance_embed=True, vision_in_dim=None,
        use_cond_type_embedding=False, meanflow_sum=False,
    )  # fmt: skip
    path = save(fill(HunyuanVideo(image_model="hunyuan_video", **params, **_ops())), folder / "tiny_hyvid.safetensors")
    return Tiny(load(path), ((16, 3, 8, 8),), 12, 32, pooled=768, path=path)


def ltxv(folder: Path) -> Tiny:
    from comfy.ldm.lightricks.model import LTXVModel

    model = LTXVModel(
        in_channels=128, cross_attention_dim=256, attention_head_dim=8, num_attention_heads=32, caption_channels=4096,
        num_layers=1, **_ops(),
    )  # fmt: skip
    path = save(fill(model), folder / "tiny_ltxv.safetensors")
    mask = torch.ones(1, 12, dtype=torch.long)  # an integer: a float mask would be taken as additive
    return Tiny(load(path), ((128, 3, 4, 4),), 12, 4096, {"attention_mask": mask}, path=path)


def ltx2(folder: Path) -> Tiny:
    """Nested latents: video and audio. The text connector pads to 1024 tokens."""
    from comfy.ldm.lightricks.av_model import LTXAVModel

    config = {
        "num_attention_heads": 2, "attention_head_dim": 32, "caption_channels": 24, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 16, "audio_cross_attention_dim": 32, "cross_attention_dim": 64,
        "connector_attention_head_dim": 12, "connector_num_attention_heads": 2, "connector_num_layers": 1,
    }  # fmt: skip
    model = LTXAVModel(num_layers=1, **_ops(), **config)
    path = save(fill(model), folder / "tiny_ltx2.safetensors", config)
    mask = torch.ones(1, 1024, dtype=torch.long)
    return Tiny(load(path), ((128, 3, 4, 4), (8, 10, 16)), 12, 24, {"attention_mask": mask}, path=path)


def cogvideo(folder: Path) -> Tiny:
    """V_PREDICTION_DDPM: here to be refused."""
    cogvideo_model = pytest.importorskip("comfy.ldm.cogvideo.model", reason="this host has no CogVideoX")
    model = cogvideo_model.CogVideoXTransformer3DModel(
        num_attention_heads=1, attention_head_dim=64, in_channels=16, time_embed_dim=32, text_embed_dim=24,
        num_layers=1, patch_size=2, use_rotary_positional_embeddings=True, **_ops(),
    )  # fmt: skip
    path = save(fill(model), folder / "tiny_cogvideo.safetensors")
    return Tiny(load(path), ((16, 3, 8, 8),), 12, 24, path=path)


# Without the loader: detection fixes these families at full size


def _direct(
    config_class: Any, unet: dict[str, Any], sampling: dict[str, Any] | None = None, model_type: str | None = None
) -> Any:
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher

    config = config_class(dict(unet))
    config.sampling_settings = {**config.sampling_settings, **(sampling or {})}
    config.set_inference_dtype(torch.float32, None)
    if model_type is not None:
        config.model_type = lambda state, prefix="": comfy.model_base.ModelType[model_type]
    model = config.get_model({}, "", device=CPU)
    fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), offload_device=CPU)


def _unet(
    sampling: dict[str, Any] | None = None, model_type: str | None = None, levels: tuple[int, ...] = (1,)
) -> Callable[[Path], Tiny]:
    def make(folder: Path) -> Tiny:
        import comfy.supported_models

        depth = len(levels)

        unet = {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "context_dim": 24,
            "num_res_blocks": [1] * depth, "channel_mult": list(levels), "transformer_depth": [1] * depth,
            "transformer_depth_output": [1, 1] * depth,
            "transformer_depth_middle": 1, "use_spatial_transformer": True, "adm_in_channels": None, "legacy": False,
            "use_linear_in_transformer": False, "use_checkpoint": False, "use_temporal_attention": False,
            "use_temporal_resblock": False,
        }  # fmt: skip
        return Tiny(_direct(comfy.supported_models.SD15, unet, sampling, model_type), ((4, 8, 8),), 12, 24)

    return make


def mochi(folder: Path) -> Tiny:
    import comfy.model_detection
    import comfy.supported_models

    unet = comfy.model_detection.detect_unet_config({"t5_yproj.weight": torch.empty(1)}, "")
    # The joint block asserts hidden_size_x * mlp_ratio_x == 12288.
    unet.update(
        depth=2, num_heads=2, hidden_size_x=96, hidden_size_y=48, t5_feat_dim=24, t5_token_length=12, mlp_ratio_x=128.0
    )
    mask = torch.ones(1, 12, dtype=torch.long)
    model = _direct(comfy.supported_models.GenmoMochi, unet)
    return Tiny(model, ((12, 3, 8, 8),), 12, 24, {"attention_mask": mask})


FACTORIES: dict[str, Callable[[Path], Tiny]] = {
    "eps": _unet(),
    "eps_deep": _unet(levels=(1, 2, 4)),  # FreeU looks for its channel counts
    "v": _unet(model_type="V_PREDICTION"),
    "v_zsnr": _unet({"zsnr": True}, "V_PREDICTION"),
    "edm": _unet({"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002}, "EDM"),
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "wan": wan,
    "wan22": wan22,
    "hunyuan_video": hunyuan_video,
    "ltxv": ltxv,
    "ltx2": ltx2,
    "mochi": mochi,
    "cogvideo": cogvideo,
}


def fingerprint(value: Any) -> str:
    """A hash of every tensor in nested tensors, dicts, lists and tuples: equal before and after, or it was written."""
    import hashlib

    digest = hashlib.sha256()

    def visit(item: Any) -> None:
        if isinstance(item, Tensor):
            digest.update(item.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                digest.update(str(key).encode())
                visit(item[key])
        elif getattr(item, "is_nested", False):
            visit(list(item.unbind()))
        elif isinstance(item, list | tuple):
            for part in item:
                visit(part)
        else:
            digest.update(repr(item).encode())

    visit(value)
    return digest.hexdigest()
