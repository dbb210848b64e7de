"""Distil in one call, for one model on one GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import PCMError
from .adapters import Adapters
from .autograd import differentiable_weights
from .config import DistillConfig, distill_metadata, usual_warmup
from .data import LatentSet
from .file import write_lora
from .loop import Backbone, StepReport
from .low_rank import adaptable
from .objective import matching_grid
from .trainer import Trainer


@dataclass(frozen=True)
class DistilledLora:
    """A trained LoRA.

    Attributes:
        tensors: the LoRA with the key names of ComfyUI, float32 on the CPU.
        metadata: the settings that Load PCM LoRA and ``profile_for`` read.
        losses: the consistency loss of every step.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    losses: list[float]

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write a ``.safetensors`` file atomically; ``dtype`` such as ``torch.float16`` halves its size.

        Returns:
            Where it is: ``path``, or a name beside it if the file there is open and the system does not replace it.

        Raises:
            PCMError: if it cannot be written.
        """
        return write_lora(Path(path), self.tensors, self.metadata, dtype)


def distill(
    model: Any,
    latents: Tensor | Sequence[Tensor],
    *,
    phases: int = 4,
    steps: int = 200,
    rank: int = 16,
    captions: Sequence[int] | None = None,
    cfg: float = 1.0,
    batch: int = 4,
    lr: float = 1e-4,
    ema: float = 0.0,
    seed: int = 0,
    targets: Sequence[str] = (),
    base_model: str = "unknown",
    prefix: str = "diffusion_model.",
    after_step: Callable[[StepReport], None] | None = None,
) -> DistilledLora:
    """Train a phased consistency LoRA (arXiv 2405.18407) and return it; the model does not change.

    Args:
        model: ``model(x, sigma [B]) -> x0`` or ``model(x, sigma [B], captions [B]) -> x0`` in sigma space, with the
            attributes ``network`` (the ``nn.Module`` to adapt), ``sigmas`` (its ascending table) and ``flow`` (whether
            latents are noised as in flow models), like a ``pcm_core`` ``Denoiser``.
        latents: clean latents [N, ...] in the model's scale, or several such batches; moved one batch at a time.
        phases: number of phases, and so of sampling steps, of the LoRA.
        steps, rank, batch, lr, ema, seed: as in ``DistillConfig`` and ``Adapters``.
        captions: one caption index per latent, passed to the model; default 0 for all.
        cfg: guidance that is distilled, in ComfyUI's convention. Above 1 the model must take captions; -1 is no
        caption.
        targets: parts of module names; default every matrix.
        base_model, prefix: base model in the metadata, and prefix of the module names in the file.
        after_step: called after every step, for a progress bar; an exception in it ends the run.

    Raises:
        PCMError: if the model lacks an attribute, takes no captions but cfg is above 1, or a setting is wrong.
    """
    network, table, flow = _parts(model)
    backbone, captioned = _backbone(model)
    if cfg != 1 and not captioned:
        raise PCMError(
            f"cfg is {cfg:g}, but the model takes no captions.",
            "a model(x, sigma, captions) that answers caption -1 without a prompt.",
            "Give the model captions, or set cfg to 1.",
        )
    grid, spacing = matching_grid(phases)
    config = replace(
        DistillConfig(phases=phases, steps=steps, batch=batch, lr=lr, ema=ema, seed=seed, cfg=(cfg, cfg)),
        grid=grid, spacing=spacing, warmup=usual_warmup(steps),
    )  # fmt: skip
    device = next(network.parameters()).device
    data = _data(latents, captions, device)
    generator = torch.Generator().manual_seed(seed)
    adapters = Adapters(adaptable(network, targets), rank, generator=generator, device=device)
    with torch.inference_mode(False), torch.enable_grad(), differentiable_weights(network), adapters.attached():
        losses = Trainer(backbone, adapters, data, table, config, flow=flow).run(after_step)
    prediction = "flow" if flow else str(getattr(model, "prediction", "eps"))
    metadata = distill_metadata(config, prediction=prediction, base_model=base_model, steps=steps)
    return DistilledLora(adapters.lora(prefix, ema=bool(ema)), metadata, losses)


def _data(latents: Tensor | Sequence[Tensor], captions: Sequence[int] | None, device: torch.device) -> LatentSet:
    batches = [latents] if isinstance(latents, Tensor) else list(latents)
    numbers = [0] * sum(len(part) for part in batches) if captions is None else captions
    return LatentSet(batches, numbers, lambda part: part.to(device, torch.float32))


def _parts(model: Any) -> tuple[nn.Module, Tensor, bool]:
    missing = [name for name in ("network", "sigmas", "flow") if not hasattr(model, name)]
    if missing:
        raise PCMError(
            f"The model has no {' and no '.join(missing)}.",
            "network (the module to adapt), sigmas (its table) and flow (how latents are noised).",
            "Pass a pcm_core Denoiser, or set these attributes.",
        )
    return cast(nn.Module, model.network), cast(Tensor, model.sigmas), bool(model.flow)


def _backbone(model: Any) -> tuple[Backbone, bool]:
    """The model with the trainer's call signature, and whether it takes captions."""
    try:
        inspect.signature(model.forward if isinstance(model, nn.Module) else model).bind(None, None, None)
    except TypeError:
        return (lambda x, sigma, captions: model(x, sigma)), False
    return cast(Backbone, model), True
