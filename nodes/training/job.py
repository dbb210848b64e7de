"""What to distil, checked before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...pcm_core import distill, lora
from ...pcm_core.errors import PCMError
from ...pcm_core.phases import build_schedule
from .. import host
from ..host import lora as host_lora
from ..host import training as host_training
from ..host.backbone import Conditioning
from .fit import How

Stage = Literal["consistency", "matching", "both"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to distil; see ``checked``.

    Attributes:
        latents: as the dataset nodes deliver them, each [B, C, ...].
        texts: one per latent, or one for all; ``negative`` is also the null caption.
        captions: the number of its text for every latent, or for every row.
        adapter_dtype: of the adapters; below float32 their masters and the optimizer are in main memory.
        existing: a LoRA to go on from: its name among the host's, or a file.
        preview_every: steps between sample grids; 0 for none.
        fit_memory: what to do where the plan does not fit the device; see ``fit``.
        matching: the matching stage; ``None`` where ``stage`` is ``consistency``.
        bank: folder of the matching stage's bank; ``None`` for one that is thrown away.
        new_bank: make the bank anew.
    """

    model: Any
    latents: list[Tensor]
    texts: list[Conditioning]
    negative: Conditioning | None
    captions: list[int]
    config: distill.DistillConfig
    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    adapter_dtype: torch.dtype = torch.float32
    existing: str | Path | None = None
    checkpointing: bool = False
    preview_every: int = 0
    fit_memory: How = "off"
    stage: Stage = "consistency"
    matching: distill.MatchingConfig | None = None
    bank: Path | None = None
    new_bank: bool = False

    @classmethod
    def checked(
        cls, *, model: Any, latents: Sequence[Tensor], texts: list[Conditioning], negative: Conditioning | None,
        config: distill.DistillConfig, **more: Any,
    ) -> Job:  # fmt: skip
        """A job whose parts fit together; latents and texts are brought to the model's form.

        Raises:
            PCMError: if they do not.
        """
        _check_model(model)
        latents = _checked_latents(model, latents)
        texts = _texts_of_rows(texts, latents)
        captions = _checked_captions(texts, latents)
        job = cls(
            model=model, latents=latents, texts=texts, negative=negative, captions=captions, config=config, **more
        )  # fmt: skip
        _check_negative(job)
        _check_start(job)
        return job

    @property
    def steps(self) -> int:
        """Of all stages, the warm-up of the fake included."""
        consistency = 0 if self.stage == "matching" else self.config.steps
        return consistency + (self.matching.all_steps if self.matching else 0)


def _checked_captions(texts: list[Conditioning], latents: list[Tensor]) -> list[int]:
    for number, text in enumerate(texts):
        host_training.check_conditioning(text, f"Positive {number + 1}")
    if not texts:
        raise PCMError("There is no positive conditioning.", "one per latent, or one for all.", "Connect one.")
    if len(texts) not in (1, len(latents), sum(len(latent) for latent in latents)):
        raise PCMError(
            f"There are {len(texts)} texts for {len(latents)} latents.",
            "one text per latent, or one for all.",
            "Encode one caption per image or clip.",
        )
    return [0] * len(latents) if len(texts) == 1 else list(range(len(texts)))


def _check_negative(job: Job) -> None:
    if job.negative is not None:
        host_training.check_conditioning(job.negative, "Negative")
    elif job.config.guided or job.config.caption_dropout:
        raise PCMError(
            "There is no negative conditioning.",
            "one, for a guided teacher and for dropped captions.",
            "Connect an empty text to negative, or set both cfg to 1 and caption dropout to 0.",
        )
    elif job.matching is not None and job.matching.guided:
        raise PCMError(
            "There is no negative conditioning.",
            "one, for the guidance of the matching stage.",
            "Connect an empty text to negative, or set matching_cfg to 1.",
        )


def _check_start(job: Job) -> None:
    """A matching stage goes on from a LoRA of its own phases."""
    if job.stage != "matching":
        return
    if job.existing is None:
        raise PCMError(
            "The matching stage has no LoRA to start from.",
            "an existing_lora of the same phases.",
            "Choose one, or set stage to both.",
        )
    phases = lora.read_lora(existing_path(job.existing))[1].get("pcm_phases")
    if phases is not None and phases != str(job.config.phases):
        raise PCMError(
            f"The LoRA to start from has {phases} phases.",
            f"{job.config.phases}, as many as are trained.",
            f"Set phases to {phases}, or choose another LoRA.",
        )


def existing_path(existing: str | Path) -> Path:
    """The file of a LoRA to go on from."""
    return existing if isinstance(existing, Path) else Path(host_lora.lora_path(existing))


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


def metadata_for(
    model: Any, config: distill.DistillConfig, existing: str | Path | None,
    matching: distill.MatchingConfig | None = None,
) -> Callable[[int], dict[str, str]]:  # fmt: skip
    """The metadata of the finished file, as a function of the steps taken; earlier steps of ``existing`` count."""
    before = 0
    if existing is not None:
        taken = lora.read_lora(existing_path(existing))[1].get("pcm_train_steps", "0")
        before = int(taken) if taken.isdecimal() and len(taken) < 10 else 0

    def metadata(steps: int) -> dict[str, str]:
        found = distill.distill_metadata(
            config, prediction=host_training.prediction_of(model), base_model=host.base_model_of(model),
            steps=before + steps, shift=host.flow_shift(model),
        )  # fmt: skip
        return found | (distill.matching_metadata(matching) if matching else {})

    return metadata


def with_matching_grid(config: distill.DistillConfig, solver_grid: int) -> distill.DistillConfig:
    """The grid the sampler will visit, or the one asked for, sampled on its own edges."""
    if solver_grid == 0:
        grid, spacing = distill.matching_grid(config.phases)
        return replace(config, grid=grid, spacing=spacing)
    build_schedule(config.phases, grid=solver_grid)  # refuses a grid that does not fit
    own = config.phases <= 50 and distill.matching_grid(config.phases)
    return replace(config, grid=solver_grid, spacing=own[1] if own and own[0] == solver_grid else "aligned")
