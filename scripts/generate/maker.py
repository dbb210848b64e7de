"""Load a model in the host, and make an image or clip for a prompt and seed: the work of ``pcm generate``.

Sampling is that of the nodes: PCM Sampler and PCM Compare for images, PCM Video Sampler for clips. Every image is made
alone, so its bits depend only on its own prompt, seed and settings.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..workers import ROOT, Pack
from .motion import with_motion

WEIGHTS = ROOT / "demo" / "weights"
# The files of --demo, and the size of its images.
DEMOS: dict[str, dict[str, Any]] = {
    "picture": {
        "model": WEIGHTS / "demo_sd3.safetensors",
        "vae": [WEIGHTS / "taesd3_encoder.safetensors", WEIGHTS / "taesd3_decoder.safetensors"],
        "size": (64, 64),
    },
    "video": {
        "model": WEIGHTS / "demo_wan.safetensors",
        "vae": [WEIGHTS / "demo_wan_vae.safetensors"],
        "size": (48, 48),
        "length": 13,
        "shift": 3.0,
    },
}
Sample = Callable[[Any, Any, int], Any]
Loaded = dict[tuple[Any, ...], tuple[Any, Any, Any]]  # MODEL, CLIP and VAE by the files they are from


class SayOnce(logging.Filter):
    """Drops repeated log messages, as a context: a warning about the settings would come with every image."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def __enter__(self) -> None:
        logging.getLogger().addFilter(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self.said
        self.said.add(text)
        return new


class ImageMaker:
    """The model, and everything that is decided once for all images.

    Args:
        loaded: models that an earlier maker loaded, by their files; only the last are kept.

    Attributes:
        settings: everything but prompt and seed that determines the images, for the manifest.
    """

    def __init__(
        self, options: argparse.Namespace, pack: Pack, prompts: Sequence[str], loaded: Loaded | None = None
    ) -> None:
        self.files = pack("nodes.host.loaders")
        self.files.quiet()
        model, self.vae, self.texts = _load(options, self.files, prompts, {} if loaded is None else loaded)
        if options.lora:
            model = pack("nodes.load_lora").load_lora(model, options.lora, options.strength)[0]
        if options.motion:
            comfyui = Path(options.comfyui or os.environ["COMFYUI_PATH"])
            model = with_motion(model, options.motion.resolve(), comfyui)
        model = with_method(model, options, pack)
        self.negative = self.texts(options.negative)
        self.settings = _named(options)
        self.sample = _ready(self, model, options, pack)

    @torch.inference_mode()
    def make(self, prompt: str, seed: int) -> list[Image.Image]:
        """Make one image, or the frames of one clip."""
        samples = self.sample(self.texts(prompt), self.negative, seed)
        return self.files.decode(self.vae, samples)


def _load(
    options: argparse.Namespace, files: Any, prompts: Sequence[str], loaded: Loaded
) -> tuple[Any, Any, Callable[[str], Any]]:
    """MODEL, VAE and ``text -> conditioning``."""
    key = (options.checkpoint, options.model, *(options.vae or []), None, *(options.clip or []), options.clip_type)
    if key not in loaded:
        loaded.clear()  # before the next is loaded: two may not fit
        loaded[key] = _load_files(options, files)
    model, clip, vae = loaded[key]
    if options.demo:
        return model, vae, _demo_texts(options.demo, [*prompts, options.negative])
    if vae is None or clip is None:
        sys.exit(f"There is no {'VAE' if vae is None else 'text encoder'}. Give it with --vae or --clip.")
    return model, vae, files.text_encoder(clip)


def _load_files(options: argparse.Namespace, files: Any) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE; ``None`` for what no file holds."""
    model = clip = vae = None
    if options.checkpoint:
        model, clip, vae = files.load_checkpoint(options.checkpoint)
    if options.model:
        model = files.load_model(options.model)
    if model is None:
        sys.exit(f"{options.checkpoint} holds no diffusion model. Give one with --model.")
    if options.vae:
        vae = files.load_vae(options.vae, model)
    if options.clip:
        clip = files.load_clip(options.clip, options.clip_type)
    return model, clip, vae


def with_method(model: Any, options: argparse.Namespace, pack: Pack) -> Any:
    """The model with the settings of its few-step method: those of ``--method``, else of its own file's name.

    ``--gamma`` and ``--determinism`` go on top. A model without any of these is returned as it is.
    """
    host, profiles = pack("nodes.host"), pack("pcm_core.profiles")
    profile = host.profile_of(model)
    if options.method:
        if options.method in profiles.method_choices():
            profile = profiles.profile_of_method(options.method)
        else:
            profile = profiles.profile_from_name(options.method, None)
        if profile is None:
            sys.exit(
                f'--method is "{options.method}", which is no few-step method or file of one that this pack knows.'
            )
    elif profile is None and not options.lora:
        profile = profiles.profile_from_name((options.model or options.checkpoint).name, "checkpoint")
    noise = {name: getattr(options, name) for name in ("gamma", "determinism") if getattr(options, name) is not None}
    if noise:
        profile = replace(profile or pack("pcm_core.profiles").PCMProfile(), **({"gamma": None} | noise))
    return model if profile is None else host.attach_profile(model, profile)


def _demo_texts(kind: str, texts: Sequence[str]) -> Callable[[str], Any]:
    """The demo world's own text encoder, after checking every text."""
    world, video = (importlib.import_module(f"demo.{name}") for name in ("world", "video_world"))

    def encode(text: str) -> Any:
        if kind == "video":
            return [[video.embed_video([video.parse_video_prompt(text)]), {}]]
        context, pooled = world.embed([world.parse_prompt(text)])
        return [[context, {"pooled_output": pooled}]]

    try:
        known = {text: encode(text) for text in texts}
    except ValueError as error:
        sys.exit(str(error))
    return known.__getitem__


def _named(options: argparse.Namespace) -> dict[str, Any]:
    """The options that determine the images, with files by name and digest."""
    given = [
        options.checkpoint,
        options.model,
        options.lora,
        options.motion,
        *(options.vae or []),
        *(options.clip or []),
    ]
    width, height = options.size
    asked = {name: getattr(options, name) for name in ("method", "gamma", "determinism")}
    return {
        "files": {path.name: digest(path) for path in given if path},
        "strength": options.strength if options.lora else None,
        "negative": options.negative,
        "width": width,
        "height": height,
        "length": options.length,
        **{name: value for name, value in asked.items() if value is not None},  # so that older manifests stay true
    }


def digest(path: Path) -> str:
    """The first sixteen digits of the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()[:16]


def column_of(options: argparse.Namespace, pack: Pack) -> Any:
    """The one way to sample that --sampling names.

    Raises:
        PCMError, SystemExit: if it names none, several, or a sampler or scheduler that the host does not have.
    """
    columns = pack("nodes.sampling.columns").parse_columns(options.sampling)
    if len(columns) > 1 or columns[0].model != "a":
        sys.exit(f'--sampling is "{options.sampling}". Name one way: auto, 4, or euler/simple@25 cfg 3.')
    if columns[0].sampler:
        pack("nodes.host").check_names(columns[0].sampler, columns[0].scheduler)
    return columns[0]


def _ready(maker: ImageMaker, model: Any, options: argparse.Namespace, pack: Pack) -> Sample:
    """Prepare the sampling that was asked for, and add it to the settings."""
    host, column, frames = pack("nodes.host"), column_of(options, pack), None
    setup: Any = None
    if options.length:
        setup = pack("nodes.sampling.video_setup").set_up(model, "auto", column.steps, options.shift)
        model, frames = setup.model, setup.video_model.latent_frames(options.length, "length")
    elif options.shift:
        model = _with_shift(host, model, options.shift)
    batch = (
        frames if setup and setup.video_model.frames_axis == 0 else None
    )  # AnimateDiff: a frame is an image of the batch
    samples = maker.files.empty_latent(maker.vae, *options.size, None if batch else frames)
    latent = host.fix_latent(model, {"samples": samples.repeat(batch or 1, *[1] * (samples.ndim - 1))})
    sampling = pack("nodes.sampling.comparison").Sampling(column, model, latent, name="generate")
    maker.settings |= {
        "sampler": f"{column.sampler}/{column.scheduler}" if column.sampler else "PCM",
        "steps": sampling.steps,
        "cfg": sampling.cfg,
        "shift": host.flow_shift(model),
        "sigmas": [float(f"{sigma:.6g}") for sigma in sampling.sigmas.tolist()],
    }
    if setup and not column.sampler:
        return _clips(setup, sampling, latent, pack)

    def sample(positive: Any, negative: Any, seed: int) -> Any:
        guider = sampling.guider(positive, negative)
        return host.sample(guider, sampling.sampler, sampling.sigmas, latent, seed=seed)[0]["samples"]

    return sample


def _with_shift(host: Any, model: Any, shift: float) -> Any:
    if host.flow_shift(model) is None:
        sys.exit(f"--shift is {shift:g}, and this is not a flow model, so it has none. Leave it out.")
    return host.with_flow_shift(model, shift)


def _clips(setup: Any, sampling: Any, latent: Any, pack: Pack) -> Sample:
    """As the PCM Video Sampler does it, with its defaults."""
    video, noise = pack("nodes.sampling.clip"), pack("pcm_core.video.noise").ClipNoise

    def sample(positive: Any, negative: Any, seed: int) -> Any:
        ready, positive, negative = video.condition(setup, positive, negative, latent["samples"].shape, -1.0)
        clip = video.Clip(noise(axis=setup.video_model.frames_axis, seed=seed), seed)
        stages = [(ready, 0, sampling.steps)]
        return video.run(clip, latent, stages, positive, negative, sampling.plan)["samples"]

    return sample
