"""Train the autoencoder of the demo world and write the two files the host's VAELoader calls ``taesd3``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .taesd import Autoencoder, narrow, widen
from .world import render, sample_scene

WEIGHTS = Path(__file__).parent / "weights"
ENCODER_FILE = "taesd3_encoder.safetensors"
DECODER_FILE = "taesd3_decoder.safetensors"
REPORT = 50  # iterations between printed losses


def cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def run_steps(
    what: str,
    steps: int,
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    lr: float,
    horizon: int | None = None,
    warmup: int = 100,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """The training loop of every demo model: AdamW, warm-up, cosine decay, gradients clipped to norm 1.

    ``horizon`` is the length of the cosine if training stops before its end; default ``steps``.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, horizon or steps, warmup))
    started, running = time.monotonic(), 0.0
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if after_step is not None:
            after_step(step)
        running += loss.item()
        if (step + 1) % REPORT == 0 or step + 1 == steps:
            count = (step % REPORT) + 1
            seconds = time.monotonic() - started
            print(f"{what}: step {step + 1}/{steps}  loss {running / count:.5f}  {seconds:.0f} s", flush=True)
            running = 0.0


def edge_weight(picture: Tensor) -> Tensor:
    """Per-pixel weight [B, 1, H, W]: 1 in flat areas, up to 5 within a pixel of an edge."""
    dx = nn.functional.pad((picture[..., 1:] - picture[..., :-1]).abs().amax(1, keepdim=True), (0, 1))
    dy = nn.functional.pad((picture[..., 1:, :] - picture[..., :-1, :]).abs().amax(1, keepdim=True), (0, 0, 0, 1))
    near = nn.functional.max_pool2d((dx + dy).clamp(max=1), 3, stride=1, padding=1)
    return 1 + 4 * near


def vae_loss(model: Autoencoder, picture: Tensor, generator: torch.Generator) -> Tensor:
    """Edge-weighted L1 + L2 with noisy latents, plus penalties for latent mean 0, std 1 per channel and smoothness."""
    latent = model.encode(picture)
    noise = torch.randn(latent.shape, generator=generator)
    strength = 0.15 * torch.rand(len(latent), 1, 1, 1, generator=generator)
    error = model.decode(latent + strength * noise) - picture
    weight = edge_weight(picture)
    reconstruction = (weight * (error.abs() + 2 * error.square())).mean()
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    moments = (mean.square() + (std - 1).square()).mean()
    rough = (latent[..., 1:] - latent[..., :-1]).abs().mean() + (latent[..., 1:, :] - latent[..., :-1, :]).abs().mean()
    return reconstruction + 0.02 * moments + 0.002 * rough


def train_vae(steps: int, seed: int = 0, batch: int = 24, folder: Path = WEIGHTS) -> Autoencoder:
    """Train encoder and decoder together, then the decoder alone on frozen latents for a quarter of the steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Autoencoder().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def pictures() -> Tensor:
        return render(sample_scene(batch, generator)).contiguous(memory_format=torch.channels_last)

    def save(step: int) -> None:
        if (step + 1) % 500 == 0:
            save_vae(model, folder)

    run_steps(
        "autoencoder", steps, model.parameters(), lambda _: vae_loss(model, pictures(), generator), lr=2e-3,
        after_step=save,
    )  # fmt: skip
    save_vae(model, folder)
    return model


def finetune_decoder(model: Autoencoder, steps: int, seed: int = 1, batch: int = 24, folder: Path = WEIGHTS) -> None:
    """Fine-tune the decoder with the encoder frozen, so that latents already used for training stay valid."""
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        picture = render(sample_scene(batch, generator)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latent = model.encode(picture)
        strength = 0.15 * torch.rand(batch, 1, 1, 1, generator=generator)
        error = model.decode(latent + strength * torch.randn(latent.shape, generator=generator)) - picture
        return (edge_weight(picture) * (error.abs() + 2 * error.square())).mean()

    run_steps("decoder", steps, model.decoder.parameters(), loss, lr=1e-3)
    save_vae(model, folder)


def save_vae(model: Autoencoder, folder: Path = WEIGHTS) -> None:
    for half, name in ((model.encoder, ENCODER_FILE), (model.decoder, DECODER_FILE)):
        state = {key: value.half().contiguous() for key, value in widen(half).items()}
        save_file(state, folder / name)


def load_vae(folder: Path = WEIGHTS) -> Autoencoder:
    """The shipped autoencoder with its padding removed, which makes it several times faster."""
    model = Autoencoder()
    narrow(model.encoder, load_file(folder / ENCODER_FILE))
    narrow(model.decoder, load_file(folder / DECODER_FILE))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def psnr(model: Autoencoder, count: int = 512, seed: int = 99) -> float:
    """Reconstruction PSNR in dB on new images."""
    picture = render(sample_scene(count, torch.Generator().manual_seed(seed)))
    error = torch.cat([(model.decode(model.encode(p)).clamp(0, 1) - p).square() for p in picture.split(64)])
    return -10 * math.log10(error.mean().item())
