"""Train the teacher of the demo world: flow matching with caption dropout, so that CFG works."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .mmdit import MMDiT
from .taesd import Autoencoder
from .train_vae import WEIGHTS, run_steps
from .world import Prompt, all_prompts, embed, render, sample_scene

TEACHER_FILE = "demo_sd3.safetensors"
SHIFT = 3.0  # the host's default for SD3
CAPTION_DROPOUT = 0.12


class LatentPool:
    """Encoded images with their prompts, rendered once and sampled in training; on the autoencoder's device."""

    def __init__(self, vae: Autoencoder, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        device = next(vae.parameters()).device
        latents, labels = [], []
        with torch.no_grad():
            for _ in range(count // 250):
                scene = sample_scene(250, generator)
                latents.append(vae.encode(render(scene).to(device)))
                labels += [Prompt(*row) for row in zip(scene.shape.tolist(), scene.colour.tolist(),
                                                       scene.background.tolist(), strict=True)]  # fmt: skip
        self.latents = torch.cat(latents)
        index = {prompt: i for i, prompt in enumerate(all_prompts())}
        self.prompt_ids = torch.tensor([index[prompt] for prompt in labels])
        self.context, self.pooled = (text.to(device) for text in embed([*all_prompts(), None]))

    def text(self, prompt_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Context and pooled text embedding of prompt indices; index -1 is the null prompt."""
        return self.context[prompt_ids], self.pooled[prompt_ids]


def shifted(u: Tensor, shift: float = SHIFT) -> Tensor:
    """The linear timestep shift of SD3: ``sigma = shift u / (1 + (shift - 1) u)``."""
    return shift * u / (1 + (shift - 1) * u)


class Pool(Protocol):
    """Latents [N, ...] with their prompt indices [N], and the text embedding of an index; -1 is the null prompt."""

    latents: Tensor
    prompt_ids: Tensor

    def text(self, prompt_ids: Tensor) -> tuple[Tensor, ...]: ...


def flow_loss(model: torch.nn.Module, pool: Pool, size: int, generator: torch.Generator) -> Tensor:
    """Mean squared velocity error. Half of the noise levels are uniform and half shifted, both stratified."""
    rows = torch.randint(len(pool.latents), (size,), generator=generator)
    latents, prompts = pool.latents[rows], pool.prompt_ids[rows]
    dropped = torch.rand(size, generator=generator) < CAPTION_DROPOUT
    text = pool.text(torch.where(dropped, -1, prompts))
    u = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    sigma = torch.where(torch.arange(size) % 2 == 0, u, shifted(u))
    noise = torch.randn(latents.shape, generator=generator)
    mix = sigma.reshape(-1, *[1] * (latents.ndim - 1))
    velocity = model((1 - mix) * latents + mix * noise, 1000 * sigma, *text)
    return (velocity - (noise - latents)).square().mean()


class Ema:
    """Exponential moving average of a module's parameters."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        for name, value in self.model.named_parameters():
            self.shadow[name].lerp_(value, 1 - self.decay)


def train_teacher(vae: Autoencoder, steps: int, *, seed: int = 0, batch: int = 128, folder: Path = WEIGHTS) -> MMDiT:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = LatentPool(vae, 48_000, seed)
    model = MMDiT()
    ema = Ema(model, 0.9985)

    def after_step(step: int) -> None:
        ema.update()
        if (step + 1) % 1000 == 0:
            save_teacher(ema.shadow, folder)

    run_steps(
        "teacher", steps, model.parameters(), lambda _: flow_loss(model, pool, batch, generator), lr=2e-3,
        warmup=200, betas=(0.9, 0.98), weight_decay=1e-3, after_step=after_step,
    )  # fmt: skip
    save_teacher(ema.shadow, folder)
    return load_teacher(folder)


def save_teacher(state: dict[str, Tensor], folder: Path = WEIGHTS) -> None:
    save_file({key: value.half().contiguous() for key, value in state.items()}, folder / TEACHER_FILE)


def load_teacher(folder: Path = WEIGHTS) -> MMDiT:
    model = MMDiT()
    model.load_state_dict({key: value.float() for key, value in load_file(folder / TEACHER_FILE).items()})
    return model.eval().requires_grad_(False)
