"""The demo world's teacher as a diffusers model, for the notebook: the same weights, the same numbers."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file
from torch import Tensor

from .mmdit import DEPTH, GRID, HIDDEN, PATCH
from .taesd import LATENT_CHANNELS
from .teacher import SHIFT, TEACHER_FILE
from .train_vae import WEIGHTS, load_vae
from .world import POOLED_DIM, TOKEN_DIM, embed, parse_prompt, render, sample_scene


def load_transformer(folder: Path = WEIGHTS) -> SD3Transformer2DModel:
    """The frozen transformer, float32: latents [B, 16, 8, 8], timestep [B] in 0..1000, text [B, 3, 32] and [B, 32]."""
    state = {key: value.float() for key, value in load_file(folder / TEACHER_FILE).items()}
    model = SD3Transformer2DModel(
        sample_size=GRID * PATCH, patch_size=PATCH, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        num_layers=DEPTH, num_attention_heads=DEPTH, attention_head_dim=HIDDEN // DEPTH, caption_projection_dim=HIDDEN,
        joint_attention_dim=TOKEN_DIM, pooled_projection_dim=POOLED_DIM, pos_embed_max_size=GRID,
    )  # fmt: skip
    model.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(state))
    return model.eval().requires_grad_(False)


def load_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler its pipeline would have."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def text(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens [B, 3, 32] and pooled embedding [B, 32] of prompts like "a red circle on blue"; "" is the empty prompt."""
    return embed([parse_prompt(prompt) if prompt else None for prompt in prompts])


def drawings(prompts: list[str], each: int, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Training data: latents [B, 16, 8, 8] of fresh drawings, ``each`` of every prompt, and the prompt of each."""
    known = [parse_prompt(prompt) for prompt in prompts for _ in range(each)]
    scene = sample_scene(len(known), torch.Generator().manual_seed(seed), [prompt for prompt in known if prompt])
    with torch.no_grad():
        latents = load_vae().encode(render(scene))
    return latents, [index for index in range(len(prompts)) for _ in range(each)]


def images(latents: Tensor) -> Tensor:
    """Decoded images [B, 64, 64, 3] in 0..1."""
    with torch.no_grad():
        return load_vae().decode(latents).clamp(0, 1).movedim(1, -1)
