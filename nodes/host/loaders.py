"""Load models, encode texts and images, and decode latents with the host's own code, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...pcm_core.errors import PCMError
from .pictures import PICTURES as PICTURES
from .pictures import as_seen, say
from .training import Conditioning


def quiet() -> None:
    """Turn off the progress bar of every single image."""
    comfy.utils.set_progress_bar_enabled(False)


def load_model(path: Path) -> Any:
    """Load a diffusion model file like UNETLoader."""
    return comfy.sd.load_diffusion_model(str(path))


def load_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """Load MODEL, CLIP and VAE like CheckpointLoaderSimple; ``None`` for those that the file does not contain."""
    return comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3]


def load_vae(files: Sequence[Path], model: Any = None) -> Any:
    """Load a VAE file, or TAESD's two files: the encoder, then the decoder.

    Args:
        model: the model whose latents TAESD decodes; not used for a single file.

    Raises:
        PCMError: if the host finds no VAE in the files.
    """
    state: dict[str, Tensor] = {}
    metadata = None
    if len(files) == 1:
        state, metadata = comfy.utils.load_torch_file(str(files[0]), return_metadata=True)
    else:
        for part, file in zip(("encoder", "decoder"), files, strict=True):
            tensors: Any = comfy.utils.load_torch_file(str(file))
            state |= {f"taesd_{part}.{key}": value for key, value in tensors.items()}
        latent_format = model.get_model_object("latent_format")  # TAESD works in the model's own scale
        state["vae_scale"] = torch.tensor(latent_format.scale_factor)
        state["vae_shift"] = torch.tensor(getattr(latent_format, "shift_factor", 0.0))
    vae = comfy.sd.VAE(sd=state, metadata=metadata)
    try:
        vae.throw_exception_if_invalid()
    except RuntimeError as error:
        raise PCMError(f"{files[0].name} holds no VAE.", "one that ComfyUI loads.", "Give another file.") from error
    return vae


def empty_latent(vae: Any, width: int, height: int, frames: int | None = None) -> Tensor:
    """An empty latent (zeros) for an image of that size, or for a clip of ``frames`` latent frames.

    Raises:
        PCMError: if the VAE cannot make that size.
    """
    cell = int(vae.spacial_compression_encode())
    if width % cell or height % cell or min(width, height) < cell:
        raise PCMError(f"The size is {width} x {height}.", f"multiples of {cell}.", "Round it.")
    size = (height // cell, width // cell)
    return torch.zeros(1, vae.latent_channels, *(() if frames is None else (frames,)), *size)


def decode(vae: Any, samples: Tensor) -> list[Image.Image]:
    """Decode a latent to images, or to the frames of a clip in order, rounded like Save Image."""
    pictures = vae.decode(samples)
    values = (255.0 * pictures.reshape(-1, *pictures.shape[-3:]).cpu().numpy()).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(value) for value in values]


@torch.no_grad()
def encode_pictures(vae: Path, pictures: Sequence[Path], size: int) -> list[Tensor]:
    """Latents [1, C, ...] of pictures ``as_seen``, scaled and centre-cropped to ``size`` squared."""
    model = load_vae([vae])
    say(pictures)
    latents: list[Tensor] = []
    for path in pictures:
        square = ImageOps.fit(as_seen(path), (size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255)[None]
        latents.append(model.encode(pixels).cpu())
    return latents


def load_clip(files: Sequence[Path], kind: str) -> Any:
    """Load a text encoder like the CLIP loaders.

    Raises:
        PCMError: if the host has no text encoder of that kind.
    """
    types = comfy.sd.CLIPType
    if kind.upper() not in types.__members__:
        known = ", ".join(name.lower() for name in types.__members__)
        raise PCMError(f'The text encoder type is "{kind}".', f"one of {known}.", "Correct --clip-type.")
    return comfy.sd.load_clip([str(file) for file in files], clip_type=types[kind.upper()])


def text_encoder(clip: Any) -> Callable[[str], Conditioning]:
    """A function ``text -> conditioning``, like CLIPTextEncode."""
    return torch.no_grad()(lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)))


def encode_texts(files: Sequence[Path], kind: str, texts: Sequence[str]) -> list[Conditioning]:
    """Conditionings of texts.

    Raises:
        PCMError: if the host knows no text encoder of that kind.
    """
    encode = text_encoder(load_clip(files, kind))
    return [encode(text) for text in texts]
