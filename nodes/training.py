"""Distillation inside the host: from latents and texts to a LoRA, with previews, and nothing lost when it stops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..pcm_core import distill, lora
from ..pcm_core.errors import PCMError
from ..pcm_core.phases import build_schedule
from ..pcm_core.sampling import sample_pcm
from . import host, host_lora, host_training
from .host_training import Conditioning
from .lora_file import TrainedLora, rescue_lora
from .loss_plot import draw_loss

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


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to distil, checked.

    Attributes:
        latents: as the dataset nodes deliver them, each [B, C, ...].
        texts: one per latent, or one for all; ``negative`` is also the null caption.
        existing: name of a LoRA to go on from.
        preview_every: steps between sample grids; 0 for none.
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
                "Encode one caption per picture or clip.",
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
            raise PCMError(f"Latent {number} holds NaN or infinity.", "finite values.", "Encode that picture again.")
    return list(latents)


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

    def body(guider: Any, extra_args: dict[str, Any]) -> None:
        session = Session(job, guider, extra_args, processes)
        if watch is not None:
            session.watchers.append(watch(session))
        try:
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
    host_training.with_model(job.model, job.texts[0], shape, body)
    return outcome


class Session:
    """One run on a loaded model."""

    def __init__(self, job: Job, guider: Any, extra_args: dict[str, Any], processes: distill.Processes | None) -> None:
        base = guider.inner_model
        self.job, self.base, self.root = job, base, base.diffusion_model
        self.device = job.model.load_device
        self.flow = host.is_flow(job.model)
        self.table = host.sigma_table(job.model)
        self.top = torch.tensor([self.table.top], device=self.device)
        generator = torch.Generator().manual_seed(job.config.seed)
        self.adapters = distill.Adapters(
            distill.adaptable(self.root, job.targets), job.rank, alpha=job.alpha, generator=generator,
            device=self.device,
        )  # fmt: skip
        if job.existing is not None:
            self.adapters.load_lora(_existing(job.model, job.existing))
        self.backbone = host_training.Backbone(guider, extra_args, job.texts, job.negative)
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
            if self.job.checkpointing:
                self._check_checkpointing()
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
    targets, shapes = host_lora.lora_targets(model)
    family = host.family_of(model)
    return lora.normalize(tensors, targets, shapes, metadata=metadata, name=name, model_family=family)[0]


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
