"""What to distil, checked before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...pcm_core import distill, lora
from ...pcm_core.errors import PCMError
from ...pcm_core.phases import build_schedule
from .. import host
from ..host import lora as host_lora
from ..host import training as host_training
from ..host.training import Conditioning
from .fit import How


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to distil, checked.

    Attributes:
        latents: as the dataset nodes deliver them, each [B, C, ...].
        texts: one per latent, or one for all; ``negative`` is also the null caption.
        existing: name of a LoRA to go on from.
        preview_every: steps between sample grids; 0 for none.
        fit_memory: what to do where the plan does not fit the device; see ``fit``.
    """

    model: Any
    latents: list[Tensor]
    texts: list[Conditioning]
    negative: Conditioning | None
    config: distill.DistillConfig
    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    existing: str | None = None
    checkpointing: bool = False
    preview_every: int = 0
    fit_memory: How = "off"
    captions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        _check_model(self.model)
        object.__setattr__(self, "latents", _checked_latents(self.model, self.latents))
        object.__setattr__(self, "texts", _texts_of_rows(self.texts, self.latents))
        for number, text in enumerate(self.texts):
            host_training.check_conditioning(text, f"Positive {number + 1}")
        if not self.texts:
            raise PCMError("There is no positive conditioning.", "one per latent, or one for all.", "Connect one.")
        rows = sum(len(latent) for latent in self.latents)
        if len(self.texts) not in (1, len(self.latents), rows):
            raise PCMError(
                f"There are {len(self.texts)} texts for {len(self.latents)} latents.",
                "one text per latent, or one for all.",
                "Encode one caption per image or clip.",
            )
        numbers = [0] * len(self.latents) if len(self.texts) == 1 else list(range(len(self.texts)))
        object.__setattr__(self, "captions", numbers)
        if self.negative is not None:
            host_training.check_conditioning(self.negative, "Negative")
        elif self.config.guided or self.config.caption_dropout:
            raise PCMError(
                "There is no negative conditioning.",
                "one, for a guided teacher and for dropped captions.",
                "Connect an empty text to negative, or set both cfg to 1 and caption dropout to 0.",
            )


def _texts_of_rows(texts: list[Conditioning], latents: list[Tensor]) -> list[Conditioning]:
    """A text per row where a latent comes with as many texts as rows, as Resolution Bucket delivers them."""
    pairs = list(zip(texts, latents, strict=False))
    if len(texts) != len(latents) or not any(1 < len(text) == len(latent) for text, latent in pairs):
        return texts
    logging.info("Distill PCM LoRA: as many texts as latents in a batch, so each latent has its own.")
    return [[part] for text, latent in pairs for part in (text * len(latent) if len(text) == 1 else text)]


def _check_model(model: Any) -> None:
    host.sigma_table(model)  # refuses what PCM cannot serve
    if (scale := host.noise_scale(model)) != 1:
        raise PCMError(f"The model scales its noise by {scale:g}.", "1.", "This model cannot be distilled yet.")
    if model.model_dtype() == torch.float16:
        logging.warning(
            "The model is loaded in fp16, where gradients overflow easily. Load it in bf16 or fp32 to distil."
        )
    if (profile := host.profile_of(model)) is not None and profile.known:
        raise PCMError(
            f"The model carries a {profile.method} LoRA.",
            "the plain model: it is the teacher.",
            "Connect the model before Load PCM LoRA; to go on training that LoRA choose it as existing_lora.",
        )


def _checked_latents(model: Any, latents: Sequence[Tensor]) -> list[Tensor]:
    """The latents with the model's rank: pictures for a model of clips are clips of one, as in the host's samplers."""
    rank = host_training.latent_rank(model)
    if rank == 5:
        latents = [latent.unsqueeze(2) if not latent.is_nested and latent.ndim == 4 else latent for latent in latents]
    channels = host_training.latent_channels(model)
    for number, latent in enumerate(latents, 1):
        if latent.is_nested:
            raise PCMError(
                f"Latent {number} holds several streams (video and audio).",
                "one tensor.",
                "Distil a model that has one kind of latent.",
            )
        if latent.ndim != rank or latent.shape[1] != channels:
            raise PCMError(
                f"Latent {number} has shape {tuple(latent.shape)}.",
                f"[batch, {channels}, ...], {rank} dimensions: this model's latents have {channels} channels.",
                "Encode with the VAE that belongs to the model.",
            )
        if not bool(torch.isfinite(latent).all()):
            raise PCMError(f"Latent {number} holds NaN or infinity.", "finite values.", "Encode that image again.")
    return list(latents)


def metadata_for(model: Any, config: distill.DistillConfig, existing: str | None) -> Callable[[int], dict[str, str]]:
    """The metadata of the finished file, as a function of the steps taken; earlier steps of ``existing`` count."""
    before = 0
    if existing is not None:
        taken = lora.read_lora(host_lora.lora_path(existing))[1].get("pcm_train_steps", "0")
        before = int(taken) if taken.isdecimal() and len(taken) < 10 else 0

    def metadata(steps: int) -> dict[str, str]:
        return distill.distill_metadata(
            config, prediction=host_training.prediction_of(model), base_model=host.family_of(model),
            steps=before + steps, shift=host.flow_shift(model),
        )  # fmt: skip

    return metadata


def with_matching_grid(config: distill.DistillConfig, solver_grid: int) -> distill.DistillConfig:
    """The grid the sampler will visit, or the one asked for, sampled on its own edges."""
    if solver_grid == 0:
        grid, spacing = distill.matching_grid(config.phases)
        return replace(config, grid=grid, spacing=spacing)
    build_schedule(config.phases, grid=solver_grid)  # refuses a grid that does not fit
    own = config.phases <= 50 and distill.matching_grid(config.phases)
    return replace(config, grid=solver_grid, spacing=own[1] if own and own[0] == solver_grid else "aligned")
