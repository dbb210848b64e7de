"""Distil PCM LoRAs from the demo teacher with ``pcm_core.distill`` and save them as ordinary LoRA files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from pcm_core.distill import (
    ADVERSARIAL_LR,
    ADVERSARIAL_SPAN,
    Adapters,
    BlockFeatures,
    Discriminator,
    DiscriminatorHeads,
    DistillConfig,
    MatchingConfig,
    StepReport,
    Trainer,
    adaptable,
    blocks,
    matching_metadata,
)
from pcm_core.phases import phase_edges

from .teacher import SHIFT, Pool, shifted
from .train_vae import WEIGHTS

GRID = 40  # divides 1000 with 1, 2, 4 and 8 phases, so trained edges are exactly the trailing timesteps
CFG = 3.0
TABLE = shifted(torch.arange(1, 1001) / 1000)


class Denoiser:
    """The model as ``(x, sigma) -> x0`` for fixed prompts, with guidance in ComfyUI's convention."""

    def __init__(self, model: nn.Module, text: tuple[Tensor, ...], weights: dict[str, Tensor] | None = None,
                 cfg: float = 1.0, null: tuple[Tensor, ...] | None = None) -> None:  # fmt: skip
        self.model, self.text, self.weights, self.cfg, self.null = model, text, weights or {}, cfg, null

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.cfg == 1 or self.null is None:
            velocity = self.velocity(x, sigma, *self.text)
        else:
            text = (torch.cat(pair) for pair in zip(self.text, self.null, strict=True))
            cond, uncond = self.velocity(torch.cat([x, x]), torch.cat([sigma, sigma]), *text).chunk(2)
            velocity = uncond + self.cfg * (cond - uncond)
        return x - sigma.reshape(-1, *[1] * (x.ndim - 1)) * velocity

    def velocity(self, x: Tensor, sigma: Tensor, *text: Tensor) -> Tensor:
        return functional_call(self.model, self.weights, (x, 1000 * sigma, *text))


@dataclass(frozen=True)
class PoolData:
    """Training data from a pool; caption indices are prompt indices."""

    pool: Pool

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.pool.latents), (count,), generator=generator)

    def latents(self, rows: Tensor) -> Tensor:
        return self.pool.latents[rows]

    def captions(self, rows: Tensor) -> Tensor:
        return self.pool.prompt_ids[rows]


@dataclass(frozen=True)
class Critic:
    """Settings of the adversarial loss: its weight, the heads' learning rate, the noise levels and blocks they see."""

    weight: float = 0.1
    rate: float = ADVERSARIAL_LR
    span: tuple[float, float] = ADVERSARIAL_SPAN  # of the phase, from its clean end
    depth: int = 2  # how many of the last blocks feed the heads


def linears(teacher: nn.Module) -> dict[str, nn.Linear]:
    """What the demo's LoRAs train: the matrices of the blocks."""
    return {name: module for name, module in adaptable(teacher).items() if isinstance(module, nn.Linear)}


def distil(
    teacher: nn.Module, pool: Pool, phases: int, steps: int, *, rank: int, lr: float,
    start: dict[str, Tensor] | None = None, seed: int = 0, batch: int = 64, critic: Critic | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Train one LoRA, or ``start`` for another cycle, with the library's own trainer. Returns the averaged LoRA.

    Runs on the device of the pool's latents; the teacher must be on it too.
    ``phases=1`` is the consistency model that stands in for LCM. ``on_step`` is called after every update.
    """
    config = DistillConfig(
        phases=phases, grid=GRID, terminal="zero", steps=steps, batch=batch, lr=lr, cfg=(CFG, CFG), ema=0.995, seed=seed
    )
    if critic:
        config = replace(config, adversarial=critic.weight, adversarial_lr=critic.rate, adversarial_span=critic.span)
    device = pool.latents.device
    adapters = Adapters(linears(teacher), rank, generator=torch.Generator().manual_seed(seed), device=device)
    if start is not None:
        adapters.load_lora(start)

    def backbone(x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return Denoiser(teacher, pool.text(captions))(x, sigma)

    def discriminator(depth: int) -> Discriminator:
        features = BlockFeatures(backbone, list(blocks(teacher))[-depth:])
        with torch.no_grad():
            seen = features(pool.latents[:1], torch.ones(1, device=device), pool.prompt_ids[:1])
        heads = DiscriminatorHeads([part.shape[-1] for part in seen], 64, torch.Generator().manual_seed(seed))
        return Discriminator(features, heads.to(device))

    started = time.monotonic()

    def report(step: StepReport) -> None:
        if on_step:
            on_step(step)
        if step.step % 250 == 0 or step.step == steps:
            loss = sum(trainer.losses[-250:]) / len(trainer.losses[-250:])
            seconds = time.monotonic() - started
            print(f"M={phases} lr={lr:g}: step {step.step}/{steps}  loss {loss:.5f}  {seconds:.0f} s", flush=True)

    with adapters.attached():
        opponent = discriminator(critic.depth) if critic else None
        trainer = Trainer(backbone, adapters, PoolData(pool), TABLE, config, flow=True, discriminator=opponent)
        trainer.run(report)
    return adapters.lora(ema=True)


def save_lora(lora: dict[str, Tensor], name: str, phases: int, steps: int, lr: float, folder: Path = WEIGHTS,
              base: str = "demo_sd3", critic: Critic | None = None,
              matching: MatchingConfig | None = None) -> None:  # fmt: skip
    """Save the LoRA with the metadata that Load PCM LoRA reads its settings from; ``steps`` are those of all stages."""
    metadata = {
        "pcm_phases": str(phases),
        "pcm_spacing": "trailing",
        "pcm_grid": str(GRID),
        "pcm_edges": ",".join(map(str, phase_edges(phases, GRID))),
        "pcm_guidance_min": str(CFG),
        "pcm_guidance_max": str(CFG),
        "pcm_cfg": "1.0",
        "pcm_prediction": "flow",
        "pcm_shift": str(SHIFT),
        "pcm_terminal": "zero",
        "pcm_base_model": base,
        "pcm_train_steps": str(steps),
        "pcm_loss": f"pseudo-huber 1e-3, lr {lr:g}" + (f", adversarial {critic.weight:g}" if critic else ""),
    }
    if matching is not None:
        metadata |= matching_metadata(matching)
    elif phases == 1:  # stands in for LCM: any step count, renoised
        metadata |= {"pcm_determinism": "0.0", "pcm_steps": "4"}
    half = {key: value if key.endswith(".alpha") else value.half() for key, value in lora.items()}
    save_file(half, folder / name, metadata=metadata)


def load_lora(name: str, teacher: nn.Module, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """Merged weights of a shipped LoRA for ``Denoiser``."""
    file = load_file(folder / name)
    merged: dict[str, Tensor] = {}
    for key, weight in teacher.named_parameters():
        module = f"diffusion_model.{key.removesuffix('.weight')}"
        if f"{module}.lora_up.weight" in file:
            up, down = file[f"{module}.lora_up.weight"].float(), file[f"{module}.lora_down.weight"].float()
            merged[key] = weight + file[f"{module}.alpha"] / len(down) * (up @ down)
    return merged
