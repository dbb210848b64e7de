"""The matching stage of a session: its bank, its trainer, and what it says on the way."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pcm_core import distill
from ...pcm_core.distill.loop import NULL_CAPTION
from ...pcm_core.sigma_table import SigmaTable
from ..host import training as host_training
from ..host.status import show_on_node
from .job import Job

_PAIRS = 6400  # of the demo world; a bank of more than the updates use is wasted
_CHUNK = 16


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded and attached, as both stages use it."""

    backbone: distill.Backbone
    adapters: distill.Adapters
    table: SigmaTable
    device: torch.device
    processes: distill.Processes
    checkpointable: bool

    @property
    def flow(self) -> bool:
        return self.table.flow


def matching_trainer(
    job: Job, loaded: Loaded, progress: Callable[[int, int], None], resume: dict[str, Any] | None = None
) -> distill.MatchingTrainer:
    """The trainer of the matching stage, its bank made or read.

    Args:
        loaded: its student holds the LoRA to start from.
        progress: called with the pairs of the bank that are there and those there will be.
        resume: a checkpoint of this stage to go on from.

    Raises:
        PCMError: if the bank is that of another model, or the checkpoint has other settings.
    """
    assert job.matching is not None
    config = replace(job.matching, recompute=loaded.checkpointable and job.config.phases > 1)
    adapters = loaded.adapters
    if resume is not None:
        adapters.student.load(resume["start"])
    plan = distill.BankPlan.of(
        loaded.table, config.phases, config.grid, config.terminal, whole=config.walk == "path",
        shape=tuple(job.latents[0].shape[1:]), texts=len(job.texts),
        pairs=min(_PAIRS, config.steps * config.batch * config.accumulate),
        chunk=_CHUNK, cfg=config.teacher_cfg, flow=loaded.flow, seed=config.seed,
    )  # fmt: skip
    key = f"{distill.fingerprint(adapters)} {_texts_key(job)}"
    store = _store(bank_folder(job, key), plan, key, loaded.processes, refresh=job.new_bank and resume is None)
    logging.info("Distill PCM LoRA: %s", plan.announcement())
    show_on_node(plan.announcement())
    bank = store.make(_models(loaded, config.teacher_cfg), loaded.device, progress, loaded.processes)
    trainer = distill.MatchingTrainer(
        loaded.backbone, adapters, bank, plan, loaded.table, config, flow=loaded.flow, processes=loaded.processes
    )
    if resume is not None:
        trainer.load(resume)
    return trainer


def _store(
    folder: Path, plan: distill.BankPlan, key: str, processes: distill.Processes, *, refresh: bool
) -> distill.BankStore:  # fmt: skip
    """The store of a folder that processes share: the first one throws old chunks away before the others look."""
    first = processes.rank == 0
    store = distill.BankStore(folder, plan, key, refresh=refresh) if first else None
    processes.average([torch.zeros(1)])
    return store or distill.BankStore(folder, plan, key)


def bank_folder(job: Job, key: str) -> Path:
    """Where the bank lies: the folder asked for, or one of its own among what the host throws away."""
    if job.bank is not None:
        return job.bank
    return (
        host_training.temporary_folder("pcm_bank") / hashlib.sha256(f"{key} {job.matching}".encode()).hexdigest()[:16]
    )


def forget_bank(job: Job) -> None:
    """Throw away the banks that were only for this run, or for its resumption."""
    if job.bank is None:
        shutil.rmtree(host_training.temporary_folder("pcm_bank"), ignore_errors=True)


def say(report: distill.StepReport) -> str:
    """A line in the log for every diagnosis, and a warning where the samples contract.

    Returns:
        The same in short for the preview; empty without a diagnosis.
    """
    found = report.diagnosis if isinstance(report, distill.MatchingReport) else None
    if found is None:
        return ""
    assert isinstance(report, distill.MatchingReport)
    text = (
        f"held-out distance {found.distance:.4f}, spread {found.spread:.3f} of the teacher's, "
        f"matching {report.matching:.3f}, guidance {report.guidance:.3f}"
    )
    logging.info("Distill PCM LoRA: %s", text)
    if found.fell:
        logging.warning(
            "Distill PCM LoRA: samples under one text lie closer together than at the start (spread %.3f). "
            "Fewer updates or a lower matching_cfg keep them apart.", found.spread,
        )  # fmt: skip
    return text + (", which has fallen" if found.fell else "")


def _models(loaded: Loaded, cfg: float) -> Callable[[Tensor], tuple[distill.Denoiser, distill.Denoiser]]:
    """From captions to the student and the guided teacher under them."""
    adapters, backbone = loaded.adapters, loaded.backbone

    def under(captions: Tensor) -> tuple[distill.Denoiser, distill.Denoiser]:
        both = torch.cat([captions, torch.full_like(captions, NULL_CAPTION)])

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            with adapters.use("student"):
                return backbone(x, sigma, captions).float()

        def teacher(x: Tensor, sigma: Tensor) -> Tensor:
            with adapters.use("off"):
                if cfg == 1:
                    return backbone(x, sigma, captions).float()
                found = backbone(torch.cat([x, x]), torch.cat([sigma, sigma]), both).float()
            conditional, unconditional = found.chunk(2)
            return distill.guided(conditional, unconditional, torch.full((len(x),), cfg).to(x))

        return student, teacher

    return under


def _texts_key(job: Job) -> str:
    """What tells one list of texts from another."""
    digest = hashlib.sha256()
    for text in (*job.texts, *([job.negative] if job.negative else [])):
        for part in (text[0][0], text[0][1].get("pooled_output")):
            if isinstance(part, Tensor):
                digest.update(
                    str(tuple(part.shape)).encode() + part.detach().float().cpu().contiguous().numpy().tobytes()
                )
    return digest.hexdigest()[:16]
