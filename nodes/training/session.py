"""One training run on a loaded model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...pcm_core import distill, lora
from ...pcm_core.distill.memory import Workload
from ...pcm_core.errors import PCMError
from ...pcm_core.lora.joining import join
from .. import host
from ..drawing.loss_curve import draw_loss
from ..host import lora as host_lora
from ..host import memory as host_memory
from ..host import training as host_training
from ..host.backbone import Autograd, Backbone, autograd_for
from ..host.status import show_on_node
from .fit import fit, out_of_memory_explained
from .job import Job, existing_path
from .lora_file import TrainedLora, rescue_lora
from .matching import Loaded, forget_bank, matching_trainer, say
from .preview import Preview

Watcher = Callable[[distill.StepReport], None]
# What autograd says of a network that it cannot go through, and what that means.
_NO_GRADIENT = {
    "inplace operation": "writes over what its own gradient needs",
    "no autograd formula": "calls a kernel that has no gradient",
}
_FEATURE_BLOCKS = 9  # as many as the official SD 1.5 discriminator looks at
_HEAD_CHANNELS = 64
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
        watch: is given the session before its first step, may load a checkpoint into it, and returns what to call after
            every step.
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
                if rescue and session.step_number:
                    said = rescue_lora(session.lora(metadata))
                    if isinstance(error, PCMError):
                        raise PCMError(error.found, error.expected, f"{error.action} {said}") from error
                raise
            outcome.lora, outcome.losses = session.lora(metadata), session.losses
            outcome.picture = session.picture()

    shape = (job.config.batch, *job.latents[0].shape[1:])
    with host_memory.models_unloaded_when_full():
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
        adapter_dtype=job.adapter_dtype,
        device=job.model.load_device.type,
    )


class Session:
    """One run on a loaded model: a consistency stage, a matching stage, or both in turn.

    Attributes:
        trainer: of the stage that is on; ``None`` before the bank of a matching stage is there.
        on_bank: called while the bank is made, with the pairs that are there and those there will be.
    """

    def __init__(
        self, job: Job, guider: Any, extra_args: dict[str, Any], processes: distill.Processes | None, load: Workload,
        stack: ExitStack,
    ) -> None:  # fmt: skip
        base = guider.inner_model
        self.job, self.load, self.base, self.root = job, load, base, base.diffusion_model
        self.device = job.model.load_device
        table = host.sigma_table(job.model)
        self.top = torch.tensor([table.top], device=self.device)
        stack.enter_context(host_memory.exact_layers(self.root))
        generator = torch.Generator().manual_seed(job.config.seed)
        self.adapters = distill.Adapters(
            distill.adaptable(self.root, job.targets), job.rank, alpha=job.alpha, generator=generator,
            device=self.device, dtype=job.adapter_dtype,
        )  # fmt: skip
        if job.existing is not None:
            self.adapters.load_lora(_existing(job.model, existing_path(job.existing)))
        self.autograd = Autograd()
        if load.streaming:  # before the first call; how blocks are entered is found out by it
            around = lambda: self.autograd.around()  # noqa: E731
            stack.enter_context(host_memory.streamed(base, self.device, self.adapters, around))
        self.data = distill.LatentSet(job.latents, job.captions, self._prepare)
        inputs = (guider, extra_args, job.texts, job.negative)
        first = self.data.latents(torch.tensor([0]))
        self.autograd = autograd_for(Backbone(*inputs), first, self.top)
        self.backbone = Backbone(*inputs, around=self.autograd.around)
        self.loaded = Loaded(
            self.backbone, self.adapters, table, self.device, processes or distill.Processes(),
            self.autograd.checkpointable,
        )  # fmt: skip
        self.trainer = None if job.stage == "matching" else self._consistency(generator)
        self.watchers: list[Watcher] = []
        self.on_bank: Callable[[int, int], None] = lambda done, of: None
        self._bank_bar: host_training.Progress | None = None
        self.progress = host_training.Progress(job.steps)
        self.preview = Preview(job, self.loaded)
        self.sheet: Image.Image | None = None
        self.note = ""  # the last diagnosis of a matching stage
        self._earlier: list[float] = []  # losses of the stage before
        self._resume: dict[str, Any] | None = None

    def _prepare(self, batch: Tensor) -> Tensor:
        return self.base.process_latent_in(batch.to(self.device, torch.float32))

    def _consistency(self, generator: torch.Generator) -> distill.TrainingLoop:
        discriminator = self._discriminator(generator) if self.job.config.adversarial else None
        return distill.Trainer(
            self.backbone, self.adapters, self.data, self.loaded.table, self.job.config, flow=self.loaded.flow,
            discriminator=discriminator, processes=self.loaded.processes,
        )  # fmt: skip

    def _discriminator(self, generator: torch.Generator) -> distill.Discriminator:
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

    @property
    def losses(self) -> list[float]:
        """Of all steps so far, whatever their stage."""
        return [*self._earlier, *(self.trainer.losses if self.trainer else [])]

    @property
    def step_number(self) -> int:
        resumed = len(self._resume["losses"]) if self._resume and self.trainer is None else 0
        return len(self.losses) + resumed

    def state(self) -> dict[str, Any]:
        """A checkpoint of the stage that is on."""
        assert self.trainer is not None
        return self.trainer.state() | {"earlier_losses": self._earlier}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, in the stage that it was written in.

        Raises:
            PCMError: if it was made with other settings. That of a matching stage is compared once its bank is there.
        """
        if state.get("stage") == "matching":
            if self.job.matching is None:
                raise PCMError(
                    "The checkpoint is that of a matching stage.", "one of a consistency stage.", "Set the stage."
                )
            self.trainer, self._resume, self._earlier = None, state, list(state["earlier_losses"])
        elif self.trainer is None:
            raise PCMError(
                "The checkpoint is that of a consistency stage.", "one of a matching stage.", "Set the stage to both."
            )
        else:
            self.trainer.load(state)

    def run(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.adapters.attached())
            if self.load.checkpointing:
                self._check_checkpointing()
            if self.load.checkpointing and not self.load.streaming:
                stack.enter_context(self.adapters.checkpointed(self.root, self.autograd.around))
            host.check_interrupted()
            try:
                if self.trainer is not None:
                    self.trainer.run(self._tell, self.autograd.around_step)
                if self.job.matching is not None:
                    self._begin_matching().run(self._tell, self.autograd.around_step)
                    forget_bank(self.job)
            except RuntimeError as error:
                reasons = [reason for words, reason in _NO_GRADIENT.items() if words in str(error)]
                if not reasons:
                    raise
                raise PCMError(
                    f"{type(self.base).__name__} {reasons[0]}.",
                    "a network that autograd can go through.",
                    "This model cannot be distilled on this ComfyUI.",
                ) from error

    def _begin_matching(self) -> distill.TrainingLoop:
        """From the end of the consistency stage, or from the LoRA to start from, to the first matching step."""
        self.adapters.adopt_ema()
        trainer = matching_trainer(self.job, self.loaded, self._bank_progress, self._resume)
        self._earlier, self.trainer, self._resume = self.losses, trainer, None
        return trainer

    def _bank_progress(self, done: int, of: int) -> None:
        if self._bank_bar is None:
            self._bank_bar = host_training.Progress(of)
        self._bank_bar.show(done)
        self.on_bank(done, of)
        host.check_interrupted()

    def _check_checkpointing(self) -> None:
        if not self.autograd.checkpointable:
            raise PCMError(
                f"{type(self.base).__name__} writes over its own tensors, perhaps those where checkpointing starts.",
                "gradient_checkpointing off.",
                "Switch it off; a smaller batch_size with grad_accumulation needs less memory too.",
            )

    def _tell(self, report: distill.StepReport) -> None:
        report = replace(report, step=len(self._earlier) + report.step)
        for watcher in (self._after_step, *self.watchers):
            watcher(report)
        host.check_interrupted()

    def _after_step(self, report: distill.StepReport) -> None:
        steps, every = self.job.steps, self.job.preview_every
        self.note = say(report) or self.note
        if every and report.step % every == 0:
            self.sheet = self.preview.draw()
            logging.info("Distill PCM LoRA: step %d of %d, loss %.5f", report.step, steps, report.loss)
        due = (
            report.step == steps or report.step % max(1, steps // _CURVES) == 0 or (every and report.step % every == 0)
        )
        self.progress.show(report.step, self.picture() if due else None)

    def picture(self) -> Image.Image:
        return draw_loss(self.losses, self.job.steps, self.sheet, self.note)

    def lora(self, metadata: Callable[[int], dict[str, str]]) -> TrainedLora:
        return TrainedLora(self.adapters.lora(ema=True), metadata(self.step_number))


def _existing(model: Any, path: Path) -> dict[str, Tensor]:
    tensors, metadata = lora.read_lora(path)
    weights = host_lora.model_weights(model)
    updates, _ = lora.fit(tensors, weights, metadata=metadata, name=path.name)
    return join(updates, weights.shapes)
