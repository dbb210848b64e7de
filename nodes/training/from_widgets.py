"""What the widgets of Distill PCM LoRA mean: a job, and its run."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ...pcm_core.distill import (
    ADVERSARIAL_LR,
    ADVERSARIAL_SPAN,
    DistillConfig,
    MatchingConfig,
    matching_after,
    usual_warmup,
)
from ..host import lora as host_lora
from ..inputs import DTYPES, NONE
from .job import Job, metadata_for, with_matching_grid
from .session import Outcome, run
from .states import Size, placeholders, with_drawn_latents


def distil(
    positive: list[Any], latents: list[Any] | None, negative: list[Any] | None, values: dict[str, Any]
) -> Outcome:
    """Train as the widgets say; without latents the model draws its own.

    Raises:
        PCMError: as ``Job.checked`` and ``run``.
    """
    if latents is None:
        size = Size(values.get("width", 512), values.get("height", 512), values.get("length", 1))
        empty = [{"samples": samples} for samples in placeholders(values["model"], positive, size)]
        job = job_of(empty, positive, negative, values)
        if job.stage != "matching":  # which needs no latents at all
            job = with_drawn_latents(job, host_lora.states_folder())
    else:
        job = job_of(latents, positive, negative, values)
    return run(job, metadata_for(job.model, job.config, job.existing, job.matching))


def job_of(latents: list[Any], positive: list[Any], negative: list[Any] | None, values: dict[str, Any]) -> Job:
    """The job that the widgets say; those that an older prompt does not name have their defaults.

    Raises:
        PCMError: as ``Job.checked``.
    """
    config = DistillConfig(
        phases=values["phases"],
        steps=values["steps"],
        batch=values["batch_size"],
        accumulate=values["grad_accumulation"],
        lr=values["learning_rate"],
        warmup=usual_warmup(values["steps"]),
        loss=values["loss"],
        cfg=(values["cfg_min"], values["cfg_max"]),
        caption_dropout=values["caption_dropout"],
        ema=values["ema"],
        adversarial=values["adversarial"],
        adversarial_span=ADVERSARIAL_SPAN,
        adversarial_lr=ADVERSARIAL_LR,
        autocast=torch.bfloat16 if values["compute"] == "bf16" else None,
        seed=values["seed"] % 2**63,
    )
    if any(latent.get("noise_mask") is not None for latent in latents):
        logging.warning("Distill PCM LoRA: the masks of the latents are not used.")
    if negative and len(negative) > 1:
        logging.warning("Distill PCM LoRA: %d negatives came, the first is used for all.", len(negative))
    config = with_matching_grid(config, values["solver_grid"])
    return Job.checked(
        model=values["model"],
        latents=[latent["samples"] for latent in latents],
        texts=positive,
        negative=negative[0] if negative else None,
        config=config,
        rank=values["rank"],
        targets=tuple(part.strip() for part in values["targets"].split(",") if part.strip()),
        adapter_dtype=DTYPES[values.get("adapter_dtype", "fp32")],
        existing=None if values["existing_lora"] == NONE else values["existing_lora"],
        checkpointing=values["gradient_checkpointing"],
        preview_every=values["preview_every"],
        fit_memory=values.get("fit_memory", "auto"),
        stage=values.get("stage", "consistency"),
        matching=_matching(config, values),
    )


def _matching(config: DistillConfig, values: dict[str, Any]) -> MatchingConfig | None:
    if values.get("stage", "consistency") == "consistency":
        return None
    return matching_after(config, steps=values.get("matching_steps", 450), cfg=values.get("matching_cfg", 6.0))
