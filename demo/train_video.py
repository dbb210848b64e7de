"""Train the video models of the demo world: the Wan autoencoder, then the Wan teacher by flow matching."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .teacher import Ema, flow_loss
from .train_vae import WEIGHTS, run_steps
from .video_world import VideoPrompt, all_video_prompts, embed_video, empty_picture, render_clips, sample_clips
from .wan import METADATA, Wan
from .wan_vae import WanVAE, from_host, to_host

TEACHER_FILE = "demo_wan.safetensors"
VAE_FILE = "demo_wan_vae.safetensors"


def shape_weight(clip: Tensor) -> Tensor:
    """Per-pixel weight [B, T, 1, H, W]: 4 within two pixels of where the shape is or was, 1 elsewhere."""
    seen = ((clip - empty_picture()).abs().amax(2) > 0.05).float()
    near = nn.functional.max_pool2d(seen, 5, stride=1, padding=2)[:, :, None]
    return 1 + 3 * near


def vae_loss(model: WanVAE, clip: Tensor, generator: torch.Generator, noise: float = 0.15) -> Tensor:
    """Weighted L1 + L2 with noisy latents, plus a penalty for latent mean 0 and std 1 per channel."""
    latent = model.encode(clip)
    strength = noise * torch.rand(len(latent), 1, 1, 1, 1, generator=generator)
    error = model.decode(latent + strength * torch.randn(latent.shape, generator=generator)) - clip
    reconstruction = (shape_weight(clip) * (error.abs() + 2 * error.square())).mean()
    mean, std = latent.mean((0, 2, 3, 4)), latent.std((0, 2, 3, 4))
    return reconstruction + 0.02 * (mean.square() + (std - 1).square()).mean()


def train_video_vae(
    steps: int, *, seed: int = 0, batch: int = 6, frames: int = 9, lr: float = 3e-3,
    folder: Path = WEIGHTS,
) -> WanVAE:  # fmt: skip
    """Train encoder and decoder on clips of ``frames`` frames; the decoder needs fine-tuning for longer clips."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = WanVAE()

    def save(step: int) -> None:
        if (step + 1) % 250 == 0:
            save_video_vae(model, folder)

    def loss(_: int) -> Tensor:
        return vae_loss(model, render_clips(sample_clips(batch, generator, frames=frames)), generator)

    run_steps("video autoencoder", steps, trained(model), loss, lr=lr, after_step=save)
    save_video_vae(model, folder)
    return model


def finetune_video_decoder(
    model: WanVAE, steps: int, *, seed: int = 1, batch: int = 6, frames: int = 9, folder: Path = WEIGHTS
) -> None:
    """Fine-tune the decoder with the encoder frozen, so that latents already used for training stay valid."""
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        clip = render_clips(sample_clips(batch, generator, frames=frames))
        with torch.no_grad():
            latent = model.encode(clip)
        strength = 0.2 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
        error = model.decode(latent + strength * torch.randn(latent.shape, generator=generator)) - clip
        return (shape_weight(clip) * (error.abs() + 2 * error.square())).mean()

    run_steps("video decoder", steps, trained(model, "decoder"), loss, lr=2e-3)
    save_video_vae(model, folder)


def trained(model: WanVAE, part: str = "") -> list[nn.Parameter]:
    """The parameters of a submodule that the forward pass uses; those of skipped layers stay zero."""
    used = {name for name, parameter in WanVAE().named_parameters() if parameter.requires_grad}
    chosen = [p for name, p in model.named_parameters() if name in used and name.startswith(part)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def save_video_vae(model: WanVAE, folder: Path = WEIGHTS) -> None:
    save_file({key: value.half().contiguous() for key, value in to_host(model).items()}, folder / VAE_FILE)


def load_video_vae(folder: Path = WEIGHTS) -> WanVAE:
    return from_host(load_file(folder / VAE_FILE))


@torch.no_grad()
def video_psnr(model: WanVAE, count: int = 90, seed: int = 99) -> float:
    """Reconstruction PSNR in dB on new clips."""
    clip = render_clips(sample_clips(count, torch.Generator().manual_seed(seed)))
    error = torch.cat([(model.decode(model.encode(c)).clamp(0, 1) - c).square() for c in clip.split(15)])
    return -10 * math.log10(error.mean().item())


class VideoPool:
    """Encoded clips [N, 16, 4, 6, 6] with their prompt indices, rendered once and sampled in training."""

    def __init__(self, vae: WanVAE, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        index = {prompt: i for i, prompt in enumerate(all_video_prompts())}
        latents, numbers = [], []
        with torch.no_grad():
            for _ in range(count // 50):
                clips = sample_clips(50, generator)
                latents.append(vae.encode(render_clips(clips)))
                labels = zip(clips.shape.tolist(), clips.colour.tolist(), clips.motion.tolist(), strict=True)
                numbers += [index[VideoPrompt(*row)] for row in labels]
        self.latents = torch.cat(latents)
        self.prompt_ids = torch.tensor(numbers)
        self.context = embed_video([*all_video_prompts(), None])

    def text(self, prompt_ids: Tensor) -> tuple[Tensor]:
        """Text embedding of prompt indices; index -1 is the null prompt."""
        return (self.context[prompt_ids],)


def train_video_teacher(
    pool: VideoPool, steps: int, *, lr: float, horizon: int | None = None, start: Wan | None = None, seed: int = 0,
    batch: int = 32, folder: Path = WEIGHTS,
) -> Wan:  # fmt: skip
    """Flow matching from scratch, or from ``start`` for another round. Saves and returns the EMA weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = (start or Wan()).train().requires_grad_(True)
    ema = Ema(model, 0.997)

    def after_step(step: int) -> None:
        ema.update()
        if (step + 1) % 250 == 0:
            save_video_teacher(ema.shadow, folder)

    run_steps(
        "video teacher", steps, model.parameters(), lambda _: flow_loss(model, pool, batch, generator), lr=lr,
        horizon=horizon, warmup=100, betas=(0.9, 0.98), weight_decay=1e-3, after_step=after_step,
    )  # fmt: skip
    save_video_teacher(ema.shadow, folder)
    return load_video_teacher(folder)


def save_video_teacher(state: dict[str, Tensor], folder: Path = WEIGHTS) -> None:
    save_file({key: value.half().contiguous() for key, value in state.items()}, folder / TEACHER_FILE, METADATA)


def load_video_teacher(folder: Path = WEIGHTS) -> Wan:
    model = Wan()
    model.load_state_dict({key: value.float() for key, value in load_file(folder / TEACHER_FILE).items()})
    return model.eval().requires_grad_(False)
