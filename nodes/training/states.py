"""Training latents that the teacher draws itself: captions are all that is needed.

They are drawn without guidance. Training adds noise to them, and takes them for samples of what the teacher was trained
on; guided ones are something else, and on the demo world a LoRA trained on them was half again as far from the teacher
(benchmarks/results/experiments.md).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.safetensors_file import read_tensors
from .. import host
from ..host import training as host_training
from ..host.adapters import tensors_in
from ..host.lora import own_weights
from ..host.status import show_on_node
from ..host.training import Conditioning
from .job import Job

STEPS = 20  # of the teacher's sampling, Euler
_AT_LEAST = 64  # latents of a run; fewer captions get several each
# In how many samples of the training a latent may come: with few latents the LoRA learns them, see "Captions alone" in
# benchmarks/results/experiments.md.
_USES = 16
_ROWS = 8  # latents at once
# An update costs about as much as this many evaluations per latent: four passes, and a backward one.
_EVALUATIONS_PER_UPDATE = 6


@dataclass(frozen=True)
class Size:
    """Of what is drawn, in pixels and frames."""

    width: int
    height: int
    length: int = 1

    def latent(self, model: Any) -> tuple[int, ...]:
        """The shape of one latent.

        Raises:
            PCMError: if a side is smaller than one latent pixel.
        """
        space, time = host.latent_ratios(model)
        sides = (self.height // space, self.width // space)
        if min(sides) < 1 or self.length < 1:
            raise PCMError(
                f"The size is {self.width} x {self.height} x {self.length}.",
                f"at least {space} x {space} pixels and 1 frame.",
                "Choose the size that the model was made for.",
            )
        frames = ((self.length - 1) // time + 1,) if host_training.latent_rank(model) == 5 else ()
        return (host_training.latent_channels(model), *frames, *sides)


def with_drawn_latents(job: Job, folder: Path) -> Job:
    """The job with latents that its model draws from its texts; those of an earlier, interrupted call are kept.

    Args:
        job: with one latent per text, of which only the shape counts.
        folder: where parts are kept, in a folder of their own for these texts, this model and these settings.

    Raises:
        PCMError: if the folder cannot be written.
    """
    config = job.config
    count = latents_per_text(config.steps * config.batch * config.accumulate, len(job.texts))
    shape, rows = tuple(job.latents[0].shape[1:]), [index for index, _ in enumerate(job.texts) for _ in range(count)]
    place = folder / _key(job, count)
    _say_cost(job, len(rows))
    drawn: list[Tensor] = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for number, (index, start, size) in enumerate(_batches(len(job.texts), count)):
            part = place / f"{number:06}.safetensors"
            if (kept := _kept(part)) is None:
                kept = _draw(job, index, start, (size, *shape))
                _keep(part, kept)
            drawn.append(kept)
    except (OSError, SafetensorError) as error:
        raise PCMError(f"{place} cannot be written ({error}).", "a writable folder.", "Free some space.") from error
    latents = torch.cat(drawn)
    return replace(job, latents=[latents[i * count : (i + 1) * count] for i in range(len(job.texts))])


def latents_per_text(samples: int, texts: int) -> int:
    """So many that each is used ``_USES`` times at most in a training of so many ``samples``."""
    return math.ceil(max(_AT_LEAST, samples / _USES) / texts)


def placeholders(model: Any, texts: list[Conditioning], size: Size) -> list[Tensor]:
    """One empty latent per text, for ``with_drawn_latents`` to replace."""
    shape = size.latent(model)
    return [torch.zeros(1, *shape) for _ in texts]


def _batches(texts: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Text, number of its first latent over all, latents: each batch is of one text."""
    for index in range(texts):
        for first in range(0, count, _ROWS):
            yield index, index * count + first, min(_ROWS, count - first)


def _say_cost(job: Job, latents: int) -> None:
    evaluations = latents * STEPS
    updates = evaluations // (_EVALUATIONS_PER_UPDATE * job.config.batch * job.config.accumulate)
    text = (
        f"draws {latents} latents from {len(job.texts)} captions first: {evaluations} evaluations of the model, about "
        f"as long as {updates} steps of training"
    )
    logging.info("Distill PCM LoRA: %s.", text)
    show_on_node(text)


def _kept(part: Path) -> Tensor | None:
    try:
        return read_tensors(part)[0]["latents"] if part.exists() else None
    except (PCMError, KeyError):  # cut off, or no file of ours: it is drawn again
        return None


def _keep(part: Path, latents: Tensor) -> None:
    partial = part.with_suffix(".part")
    try:
        safetensors_torch.save_file({"latents": latents.contiguous()}, partial)  # pyright: ignore[reportUnknownMemberType]
        partial.replace(part)
    except (OSError, SafetensorError):
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _draw(job: Job, index: int, first: int, shape: tuple[int, ...]) -> Tensor:
    """Latents of one text by the teacher's own sampling, each from a seed of its own, whatever the batch."""
    noise = torch.stack(
        [torch.randn(shape[1:], generator=torch.Generator().manual_seed((job.config.seed + first + row) % 2**63))
         for row in range(shape[0])]
    )  # fmt: skip
    guider = host.CFGGuider(job.model)
    guider.set_conds(job.texts[index], job.texts[index])
    guider.set_cfg(1.0)
    sampler, sigmas = host.stock_sampling(job.model, "euler", "simple", STEPS, 1.0)
    latent, _ = host.sample(guider, sampler, sigmas, {"samples": torch.zeros(shape)}, seed=job.config.seed, noise=noise)
    return latent["samples"].detach().float().cpu().clone()


def _key(job: Job, count: int) -> str:
    """A name for what decides the latents: model with its patches, texts, shape, seed."""
    settings = (tuple(job.latents[0].shape[1:]), job.config.seed, count, STEPS)
    digest = hashlib.sha256(repr(settings).encode())
    for name, weight, patches in own_weights(job.model):
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(_bytes(weight.flatten()[:8]))
        for strength, patch, own, *_ in patches:
            digest.update(f"{strength} {own}".encode())
            for tensor in tensors_in(patch):
                digest.update(_bytes(tensor.flatten()[:8]))
    for text in job.texts:
        _add_text(digest, text)
    return digest.hexdigest()[:24]


def _add_text(digest: Any, text: Conditioning) -> None:
    for embedding, values in text:
        tensors = [embedding, *(value for _, value in sorted(values.items()) if isinstance(value, Tensor))]
        for tensor in tensors:
            if tensor is not None:
                digest.update(_bytes(tensor))


def _bytes(tensor: Any) -> bytes:
    plain = tensor.dequantize() if hasattr(tensor, "layout_cls") else tensor
    return plain.detach().float().cpu().contiguous().numpy().tobytes()
