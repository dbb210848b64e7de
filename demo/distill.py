"""Distil PCM LoRAs from the demo teacher with ``pcm_core.distill`` and write them as files like any other LoRA."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from pcm_core.distill import SolverGrid, phased_loss
from pcm_core.phases import phase_edges

from .mmdit import MMDiT
from .teacher import SHIFT, LatentPool, shifted
from .train_vae import WEIGHTS, run_steps

RANK = 24
GRID = 40  # divides 1000 with 1, 2, 4 and 8 phases, so trained edges are exactly the trailing timesteps
CFG = 3.0
TABLE = shifted(torch.arange(1, 1001) / 1000)


class Lora(nn.Module):
    """Low-rank additions to every matrix of a model. ``merged`` gives W + up @ down for ``functional_call``."""

    def __init__(self, model: MMDiT, rank: int = RANK) -> None:
        super().__init__()
        self.base = {name: value for name, value in model.named_parameters() if name.endswith(".weight")}
        self.base = {name: value for name, value in self.base.items() if value.ndim == 2}
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, weight in self.base.items():
            key = name.replace(".", "/")
            self.down[key] = nn.Parameter(torch.randn(rank, weight.shape[1]) * weight.shape[1] ** -0.5)
            self.up[key] = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def merged(self) -> dict[str, Tensor]:
        keys = {name: name.replace(".", "/") for name in self.base}
        return {name: weight + self.up[keys[name]] @ self.down[keys[name]] for name, weight in self.base.items()}

    def state(self) -> dict[str, Tensor]:
        """The file: ``diffusion_model.<module>.lora_up/lora_down.weight`` in float16, with alpha = rank."""
        out: dict[str, Tensor] = {}
        for name in self.base:
            module, key = f"diffusion_model.{name.removesuffix('.weight')}", name.replace(".", "/")
            out[f"{module}.lora_up.weight"] = self.up[key].detach().half()
            out[f"{module}.lora_down.weight"] = self.down[key].detach().half()
            out[f"{module}.alpha"] = torch.tensor(float(len(self.down[key])))
        return out


class Denoiser:
    """The model as ``(x, sigma) -> x0`` under one text, with guidance in ComfyUI's convention."""

    def __init__(self, model: nn.Module, text: tuple[Tensor, Tensor], weights: dict[str, Tensor] | None = None,
                 cfg: float = 1.0, null: tuple[Tensor, Tensor] | None = None) -> None:  # fmt: skip
        self.model, self.text, self.weights, self.cfg, self.null = model, text, weights or {}, cfg, null

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.cfg == 1 or self.null is None:
            velocity = self.velocity(x, sigma, *self.text)
        else:
            context, pooled = (torch.cat(pair) for pair in zip(self.text, self.null, strict=True))
            cond, uncond = self.velocity(torch.cat([x, x]), torch.cat([sigma, sigma]), context, pooled).chunk(2)
            velocity = uncond + self.cfg * (cond - uncond)
        return x - sigma[:, None, None, None] * velocity

    def velocity(self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        return functional_call(self.model, self.weights, (x, 1000 * sigma, context, pooled))


def distil(
    teacher: MMDiT, pool: LatentPool, phases: int, steps: int, *, lr: float, start: Lora | None = None, seed: int = 0,
    batch: int = 64, ema: float = 0.995,
) -> Lora:  # fmt: skip
    """Train one LoRA, or ``start`` for another cycle. ``phases=1`` is the consistency model that plays LCM."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    grid = SolverGrid.from_table(TABLE, phases, GRID, terminal="zero")
    lora = start or Lora(teacher)
    shadow = {name: value.detach().clone() for name, value in lora.named_parameters()}

    def loss(_: int) -> Tensor:
        latents, prompts = pool.batch(batch, generator)
        text, null = pool.text(prompts), pool.text(torch.full_like(prompts, -1))
        merged = lora.merged()
        detached = {name: value.detach() for name, value in merged.items()}
        index = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch * GRID
        return phased_loss(
            Denoiser(teacher, text, merged),
            Denoiser(teacher, text, cfg=CFG, null=null),
            Denoiser(teacher, text, detached),
            latents, torch.randn(latents.shape, generator=generator), index.long(), grid, flow=True,
        )  # fmt: skip

    @torch.no_grad()
    def average(step: int) -> None:
        for name, value in lora.named_parameters():
            shadow[name].lerp_(value, 1 - min(ema, (step + 1) / (step + 10)))

    run_steps(f"M={phases} lr={lr:g}", steps, lora.parameters(), loss, lr=lr, warmup=50, after_step=average)
    lora.load_state_dict(shadow)
    return lora


def save_lora(lora: Lora, name: str, phases: int, steps: int, lr: float, folder: Path = WEIGHTS) -> None:
    """Write the file with the metadata from which Load PCM LoRA configures everything downstream."""
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
        "pcm_base_model": "demo_sd3",
        "pcm_train_steps": str(steps),
        "pcm_loss": f"pseudo-huber 1e-3, lr {lr:g}",
    }
    if phases == 1:  # plays LCM: any step count, renoised
        metadata |= {"pcm_determinism": "0.0", "pcm_steps": "4"}
    save_file({key: value.contiguous() for key, value in lora.state().items()}, folder / name, metadata=metadata)


def load_lora(name: str, teacher: MMDiT, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """Merged weights of a shipped LoRA for ``Denoiser``."""
    file = load_file(folder / name)
    merged: dict[str, Tensor] = {}
    for key, weight in teacher.named_parameters():
        module = f"diffusion_model.{key.removesuffix('.weight')}"
        if f"{module}.lora_up.weight" in file:
            up, down = file[f"{module}.lora_up.weight"].float(), file[f"{module}.lora_down.weight"].float()
            merged[key] = weight + file[f"{module}.alpha"] / len(down) * (up @ down)
    return merged
