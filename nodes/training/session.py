"""One training run on a loaded model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...pcm_core import distill, lora
from ...pcm_core.distill.memory import Workload
from ...pcm_core.errors import PCMError
from ...pcm_core.phases import build_schedule
from ...pcm_core.sampling import sample_pcm
from .. import host
from ..drawing.loss_curve import draw_loss
from ..host import lora as host_lora
from ..host import memory as host_memory
from ..host import training as host_training
from ..host.status import show_on_node
from .fit import fit, out_of_memory_explained
from .job import Job
from .lora_file import TrainedLora, rescue_lora

Watcher = Callable[[distill.StepReport], None]
# What autograd says of a network that it cannot go through, and what that means.
_NO_GRADIENT = {
    "inplace operation": "writes over what its own gradient needs",
    "no autograd formula": "calls a kernel that has no gradient",
}
_FEATURE_BLOCKS = 9  # as many as the official SD 1.5 discriminator looks at
_HEAD_CHANNELS = 64
_PREVIEWS = 4
_CURVES = 50  # how often the loss curve is sent over a whole run


@dataclass(kw_only=True)
class Outcome:
    """What a run leaves behind, also when it was cut short."""

    lora: TrainedLora | None = None
    losses: list[float] = field(default_factory=list)
    picture: Image.Image | None = None


def run(
    job: Job,
    metadata: Callable[[int], dict[str, str]],
    *,
    watch: Callable[[Session], Watcher] | None = None,
    processes: distill.Processes | None = None,
    rescue: bool = True,
) -> Outcome:
    """Train.

    Args:
        metadata: the file's metadata after a number of steps.
        watch: is given the session before its first step, may load a checkpoint into its trainer, and returns what to
            call after every step.
        processes: this process among others that run the same job.
        rescue: whether to write what was trained when the run is cut short.

    Raises:
        PCMError: if the loss diverged or the LoRA to go on from does not fit. Whatever ends the run early, what was
            trained so far is first written to output/loras/pcm_interrupted.
    """
    outcome = Outcome()
    chosen = fit(job.model, job.texts[0], workload(job, processes), job.fit_memory)
    logging.info("Distill PCM LoRA: %s.", chosen.text)
    show_on_node(chosen.text)

    def body(guider: Any, extra_args: dict[str, Any]) -> None:
        with ExitStack() as stack, out_of_memory_explained(chosen):
            session = Session(job, guider, extra_args, processes, chosen.load, stack)
            if watch is not None:
                session.watchers.append(watch(session))
            try:
                with out_of_memory_explained(chosen):
                    session.run()
            except BaseException as error:  # the host's Cancel is no Exception on every version
                if rescue and session.trainer.step_number:
                    said = rescue_lora(session.lora(metadata))
                    if isinstance(error, PCMError):
                        raise PCMError(error.found, error.expected, f"{error.action} {said}") from error
                raise
            outcome.lora, outcome.losses = session.lora(metadata), session.trainer.losses
            outcome.picture = session.picture()

    shape = (job.config.batch, *job.latents[0].shape[1:])
    host_training.with_model(job.model, job.texts[0], shape, body, at_home=chosen.load.streaming)
    return outcome


def workload(job: Job, processes: distill.Processes | None) -> Workload:
    """The job as far as memory goes; of latents of several shapes the largest."""
    config = job.config
    return Workload(
        shape=max((tuple(latent.shape[1:]) for latent in job.latents), key=math.prod),
        rank=job.rank,
        targets=job.targets,
        batch=config.batch // (processes.count if processes else 1) or 1,
        accumulate=config.accumulate,
        guided=config.guided,
        ema=bool(config.ema),
        adversarial=bool(config.adversarial),
        checkpointing=job.checkpointing,
        autocast=config.autocast,
        device=job.model.load_device.type,
    )


class Session:
    """One run on a loaded model."""

    def __init__(
        self, job: Job, guider: Any, extra_args: dict[str, Any], processes: distill.Processes | None, load: Workload,
        stack: ExitStack,
    ) -> None:  # fmt: skip
        base = guider.inner_model
        self.job, self.load, self.base, self.root = job, load, base, base.diffusion_model
        self.device = job.model.load_device
        self.flow = host.is_flow(job.model)
        self.table = host.sigma_table(job.model)
        self.top = torch.tensor([self.table.top], device=self.device)
        stack.enter_context(host_memory.exact_layers(self.root))
        generator = torch.Generator().manual_seed(job.config.seed)
        self.adapters = distill.Adapters(
            distill.adaptable(self.root, job.targets), job.rank, alpha=job.alpha, generator=generator,
            device=self.device,
        )  # fmt: skip
        if job.existing is not None:
            self.adapters.load_lora(_existing(job.model, job.existing))
        self.backbone = host_training.Backbone(guider, extra_args, job.texts, job.negative)
        if load.streaming:
            backbone = self.backbone  # how it is entered is found out below
            stack.enter_context(host_memory.streamed(base, self.device, self.adapters, lambda: backbone.around()))
        self.data = distill.LatentSet(job.latents, job.captions, self._prepare)
        self.backbone.write_elsewhere(self.data.latents(torch.tensor([0])), self.top)
        self.trainer = distill.Trainer(
            self.backbone, self.adapters, self.data, self.table, job.config, flow=self.flow,
            discriminator=self._discriminator(generator), processes=processes,
        )  # fmt: skip
        self.watchers: list[Watcher] = []
        self.progress = host_training.Progress(job.config.steps)
        self.decode = host_training.previewer(job.model)
        self.grid: Image.Image | None = None

    def _prepare(self, batch: Tensor) -> Tensor:
        return self.base.process_latent_in(batch.to(self.device, torch.float32))

    def _discriminator(self, generator: torch.Generator) -> distill.Discriminator | None:
        if not self.job.config.adversarial:
            return None
        found = list(distill.blocks(self.root))
        if not found:
            raise PCMError("This model has no list of blocks.", "one to take features from.", "Set adversarial to 0.")
        count = min(_FEATURE_BLOCKS, len(found))
        chosen = [found[(i + 1) * len(found) // count - 1] for i in range(count)]
        features = distill.BlockFeatures(self.backbone, chosen)
        with torch.no_grad():
            rows = torch.zeros(1, dtype=torch.int64)
            sample = features(self.data.latents(rows), self.top, self.data.captions(rows))
        heads = distill.DiscriminatorHeads([tokens.shape[-1] for tokens in sample], _HEAD_CHANNELS, generator)
        return distill.Discriminator(features, heads.to(self.device))

    def run(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.adapters.attached())
            if self.load.checkpointing:
                self._check_checkpointing()
            if self.load.checkpointing and not self.load.streaming:
                stack.enter_context(self.adapters.checkpointed(self.root, self.backbone.around))
            host.check_interrupted()
            try:
                self.trainer.run(self._tell, self.backbone.around_step)
            except RuntimeError as error:
                reasons = [reason for words, reason in _NO_GRADIENT.items() if words in str(error)]
                if not reasons:
                    raise
                raise PCMError(
                    f"{type(self.base).__name__} {reasons[0]}.",
                    "a network that autograd can go through.",
                    "This family cannot be distilled on this ComfyUI.",
                ) from error

    def _check_checkpointing(self) -> None:
        if not self.backbone.checkpointable:
            raise PCMError(
                f"{type(self.base).__name__} writes over its own tensors, perhaps those where checkpointing starts.",
                "gradient_checkpointing off.",
                "Switch it off; a smaller batch_size with grad_accumulation needs less memory too.",
            )

    def _tell(self, report: distill.StepReport) -> None:
        for watcher in (self._after_step, *self.watchers):
            watcher(report)
        host.check_interrupted()

    def _after_step(self, report: distill.StepReport) -> None:
        steps, every = self.job.config.steps, self.job.preview_every
        if every and report.step % every == 0:
            self.grid = self._sample_grid()
            logging.info("Distill PCM LoRA: step %d of %d, loss %.5f", report.step, steps, report.loss)
        due = (
            report.step == steps or report.step % max(1, steps // _CURVES) == 0 or (every and report.step % every == 0)
        )
        self.progress.show(report.step, self.picture() if due else None)

    def picture(self) -> Image.Image:
        return draw_loss(self.trainer.losses, self.job.config.steps, self.grid)

    @torch.no_grad()
    def _sample_grid(self) -> Image.Image | None:
        """What the student makes of fixed noise now, one picture per text, side by side."""
        if self.decode is None:
            return None
        config = self.job.config
        captions = torch.arange(_PREVIEWS) % len(self.job.texts)
        shape = (len(captions), *self.job.latents[0].shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed)).to(self.device)
        schedule = build_schedule(config.phases, spacing=config.spacing, grid=config.grid, terminal=config.terminal)
        sigmas = schedule.sigmas(self.table)
        x = noise * (float(sigmas[0]) if self.flow else (1 + float(sigmas[0]) ** 2) ** 0.5)
        with self.adapters.use("ema"):
            latents = sample_pcm(lambda x, sigma: self.backbone(x, sigma, captions), x, sigmas)
        tiles = [self.decode(latent) for latent in latents.split(1)]
        sheet = Image.new("RGB", (sum(tile.width for tile in tiles), tiles[0].height))
        for i, tile in enumerate(tiles):
            sheet.paste(tile, (i * tile.width, 0))
        return sheet

    def lora(self, metadata: Callable[[int], dict[str, str]]) -> TrainedLora:
        tensors = self.adapters.lora(ema=bool(self.job.config.ema))
        return TrainedLora(tensors, metadata(self.trainer.step_number))


def _existing(model: Any, name: str) -> dict[str, Tensor]:
    tensors, metadata = lora.read_lora(host_lora.lora_path(name))
    weights = host_lora.model_weights(model)
    updates, _ = lora.fit(tensors, weights, metadata=metadata, name=name)
    return lora.join(updates, weights.shapes)
