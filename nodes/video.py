"""PCM Video Sampler: one node for every video family the host loads, one expert or two, short clips or windows."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..pcm_core import video
from ..pcm_core.errors import PCMError
from ..pcm_core.sampling import NoiseSampler, seeded_noise
from ..pcm_core.video.noise import WINDOW_NOISES, ClipNoise
from . import host, widgets
from .checks import checked
from .guider import phase_guider
from .plan import AUTO, Plan, make_plan
from .sampler import check_noise, sample_phased
from .video_setup import Setup, second_expert, set_up, with_windows

_NODE = "PCM Video Sampler"
_FRAME_NOISES = ("independent", "mixed", "shared")
_UNSET = -1.0


@dataclass
class Clip:
    """One sampling, which may pass from the first expert to the second between two steps.

    The state goes over as it is, in the models' own space: nothing is noised twice, and masks keep working.

    Attributes:
        noise: arranges the noise of the frames.
    """

    noise: ClipNoise
    seed: int
    _shapes: list[torch.Size] = field(default_factory=list[torch.Size])
    _x: Tensor | None = None
    _fresh: NoiseSampler | None = None

    def start(self, latent: host.Latent) -> Any:
        """Starting noise like the latent, plain or nested."""
        noise = host.noise_for(latent, self.seed)
        arranged = self.noise(host.parts(noise))
        self._shapes = [part.shape for part in arranged]
        return type(noise)(arranged) if noise.is_nested else arranged[0]

    def stage(self, first: int, last: int, determinism: float) -> Any:
        """A SAMPLER that takes the steps from ``first`` up to ``last`` of the schedule it is given."""

        def sample(
            model: Any,
            x: Tensor,
            sigmas: Tensor,
            extra_args: dict[str, Any] | None = None,
            callback: Callable[[dict[str, Any]], None] | None = None,
            disable: bool | None = None,
        ) -> Tensor:
            def count_on(info: dict[str, Any]) -> None:
                if callback is not None:
                    callback({**info, "i": info["i"] + first})

            self._fresh = self._fresh or self._step_noise(x)
            self._x = sample_phased(
                model,
                x if self._x is None else self._x,
                sigmas[first : last + 1],
                extra_args,
                count_on,
                disable,
                determinism=determinism,
                whole=sigmas,
                noise_sampler=self._fresh,
                final=last == len(sigmas) - 1,
            )
            return self._x

        return host.ksampler(sample)

    def _step_noise(self, x: Tensor) -> NoiseSampler:
        draw = seeded_noise(x, self.seed)

        def sample(sigma: float, sigma_next: float) -> Tensor:
            # Samplers see a nested latent packed: [batch, 1, everything].
            noise = draw(sigma, sigma_next)
            flat = noise.flatten(1).split([math.prod(shape[1:]) for shape in self._shapes], dim=1)
            parts = self.noise([part.reshape(shape) for part, shape in zip(flat, self._shapes, strict=True)])
            return torch.cat([part.flatten(1) for part in parts], dim=1).reshape(noise.shape)

        return sample


def split_experts(
    first: Setup, second: Setup | None, plan: Plan, steps: int, boundary: float
) -> tuple[list[tuple[Setup, int, int]], tuple[str, ...]]:
    """Who takes which steps: (expert, first step, last step), and what was moved.

    Raises:
        PCMError: if the boundary is out of range, or there is one step for two experts.
    """
    total = len(plan.sigmas) - 1
    if total < 1:
        return [], ("denoise is 0: the latent is as it was.",)
    if second is None:
        return [(first, 0, total)], ()
    whole = make_plan(first.model, steps=steps).sigmas
    edge, note = video.expert_edge(whole.tolist(), boundary, host.sigma_table(first.model))
    split = int((plan.sigmas[:-1] > edge * (1 + 1e-6)).sum())
    stages = [(first, 0, split), (second, split, total)]
    return [stage for stage in stages if stage[1] < stage[2]], (note, *second.notes)


def with_guidance(conditioning: Any, value: float, *, override: bool) -> Any:
    """Conditioning with an embedded guidance; one that is there already stays unless ``override``."""
    return [
        [text, values if "guidance" in values and not override else {**values, "guidance": value}]
        for text, values in conditioning
    ]


def check_images(setup: Setup, conditioning: Any, clip: torch.Size) -> None:
    """Refuse image-to-video conditioning that was made for a clip of another length, where the model cannot pad it.

    Raises:
        PCMError: see above.
    """
    takes_images = setup.model.model.model_config.unet_config.get("in_dim") != clip[1]
    for _, values in conditioning if setup.family.whole_images and takes_images else ():
        image = values.get("concat_latent_image")
        if image is not None and image.ndim == 5 and image.shape[2] != clip[2]:
            raise PCMError(
                f"The latent has {clip[2]} latent frames, the image conditioning has {image.shape[2]}.",
                "one length.",
                "Connect the latent that the image-to-video node puts out.",
            )


@cache
def _warn_once(text: str) -> None:
    logging.warning("%s: %s", _NODE, text)


def _describe(setup: Setup, plan: Plan, cfg: str) -> str:
    """The settings in force, in one line."""
    shift = host.flow_shift(setup.model)
    values = [
        f"{setup.family.name}, {setup.profile.method if setup.profile.known else 'no preset'}",
        f"{max(len(plan.sigmas) - 1, 0)} steps",
        "sigmas " + " ".join(f"{sigma:.6g}" for sigma in plan.sigmas.tolist()),
        f"cfg {setup.profile.cfg:g}" if cfg.strip().lower() in (AUTO, "") else f"cfg {cfg.strip()}",
    ]
    if shift is not None:
        values.append(f"shift {shift:g}")
    if setup.windows is not None:
        values.append(f"windows of {setup.windows.length} latent frames, {setup.windows.overlap} shared")
    return ", ".join(values) + "."


class PCMVideoSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMVideoSampler",
            display_name="PCM Video Sampler",
            category="PCM/sampling",
            description="Samples video in a few steps: Wan, HunyuanVideo, Mochi, LTXV, LTX-2, AnimateDiff. Steps, "
            "shift, sigmas and guidance come with the LoRA or the preset. Takes a second expert (Wan 2.2) and context "
            "windows for long clips.",
            search_aliases=["phased consistency", "pcm", "video", "few step", "wan", "hunyuan", "mochi", "ltx",
                            "animatediff", "lightning", "fastvideo", "moe"],
            inputs=[
                widgets.model(),
                io.Conditioning.Input("positive", tooltip="What to make."),
                io.Conditioning.Input("negative", tooltip="What to avoid. Not used in phases whose cfg is 1."),
                io.Latent.Input("latent_image", tooltip="The clip to fill or change, with its mask if it has one."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="Of the noise. On one machine, the same seed and settings give the same bits."),
                io.Combo.Input("preset", options=[AUTO, *video.preset_names()], default=AUTO,
                               tooltip="auto: what the LoRA says, else what suits the model's family. Choose one for a "
                               "checkpoint that has a few-step LoRA merged in."),
                widgets.steps(),
                widgets.cfg(),
                widgets.denoise(),
                io.Float.Input("shift", default=0.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Linear flow shift; models that want its logarithm (LTX) get that. 0: what the "
                               "LoRA or preset wants."),
                io.Int.Input("boundary", default=875, min=0, max=1000,
                             tooltip="Timestep at which second_model takes over, moved to the nearest phase edge."),
                io.Int.Input("window", default=0, min=0, max=16384,
                             tooltip="Pictures in one context window, for clips longer than the model knows. 0: the "
                             "whole clip at once."),
                io.Int.Input("overlap", default=16, min=0, max=16384,
                             tooltip="Pictures that neighbouring windows share."),
                io.Combo.Input("window_noise", options=list(WINDOW_NOISES), default=WINDOW_NOISES[0], advanced=True,
                               tooltip="shuffled, tiled: every window starts from the same noise frames, so that they "
                               "agree. independent: they do not."),
                io.Combo.Input("frame_noise", options=list(_FRAME_NOISES), default="independent", advanced=True,
                               tooltip="Noise of different frames: independent, partly the same, or the same. For "
                               "AnimateDiff-style models."),
                io.Float.Input("frame_correlation", default=0.5, min=0.0, max=1.0, step=0.05, advanced=True,
                               tooltip="How much of the noise two frames share, for frame_noise mixed."),
                io.Float.Input("embedded_guidance", default=_UNSET, min=_UNSET, max=100.0, step=0.1, advanced=True,
                               tooltip="The guidance scalar of HunyuanVideo, which is not cfg. -1: what the "
                               "conditioning has, else what the LoRA or preset wants."),
                widgets.determinism(),
                io.Model.Input("second_model", optional=True,
                               tooltip="The low-noise expert of a pair (Wan 2.2), after its own Load PCM LoRA."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clip."),
                io.String.Output(display_name="report", tooltip="What was used, moved and assumed."),
            ],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, model: Any, positive: Any, negative: Any, latent_image: host.Latent, seed: int, preset: str, steps: int,
        cfg: str, denoise: float, shift: float, boundary: float, window: int, overlap: int, window_noise: Any,
        frame_noise: str, frame_correlation: float, embedded_guidance: float, determinism: float,
        second_model: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        check_noise(determinism, _UNSET)
        parts = host.parts(latent_image["samples"])
        setup = set_up(model, preset, steps, shift)
        setup.family.check_latent(parts[0].shape)
        setup = with_windows(setup, window, overlap, nested=len(parts) > 1, noise=window_noise)
        twin = None if second_model is None else second_expert(setup, second_model)
        if twin is not None:
            twin = with_windows(twin, window, overlap, nested=len(parts) > 1)
        latent = host.fix_latent(setup.model, latent_image)
        shape = host.parts(latent["samples"])[0].shape
        setup, positive, negative = condition(setup, positive, negative, shape, embedded_guidance)
        plan = make_plan(setup.model, steps=steps, denoise=denoise)
        stages, moved = split_experts(setup, twin, plan, steps, boundary)
        plan = replace(plan, notes=setup.notes + plan.notes + moved).report(_NODE)
        correlation = {"independent": 0.0, "mixed": frame_correlation, "shared": 1.0}[frame_noise]
        noise = ClipNoise(
            axis=setup.family.frames_axis, seed=seed, correlation=correlation, windows=setup.windows,
            arrangement=window_noise,
        )  # fmt: skip
        result = run(Clip(noise, seed), latent, stages, positive, negative, cfg, plan, determinism)
        return io.NodeOutput(result, "\n".join([_describe(setup, plan, cfg), *plan.notes, *_beta_warning(setup)]))


def run(
    clip: Clip, latent: host.Latent, stages: list[tuple[Setup, int, int]], positive: Any, negative: Any, cfg: str,
    plan: Plan, determinism: float,
) -> host.Latent:  # fmt: skip
    """Sample the latent stage by stage; one without steps comes back as it is."""
    noise, result = clip.start(latent), latent
    for expert, first, last in stages:
        guider = phase_guider(expert.model, positive, negative, cfg, plan)
        sampler = clip.stage(first, last, determinism)
        # The host's FreeNoise writes into the noise it gets: only the last stage may have the original.
        given = noise if last == len(plan.sigmas) - 1 else noise * 1.0
        result, _ = host.sample(guider, sampler, plan.sigmas, latent, seed=clip.seed, noise=given)
    return result


def condition(setup: Setup, positive: Any, negative: Any, clip: torch.Size, guidance: float) -> tuple[Setup, Any, Any]:
    """Embedded guidance where the family takes it.

    Args:
        clip: shape of the video latent.
        guidance: asked for, or -1.

    Raises:
        PCMError: if the guidance is no number of at least 0, or the conditioning is for a clip of another length.
    """
    for conditioning in (positive, negative):
        check_images(setup, conditioning, clip)
    asked = guidance != _UNSET
    if asked and not 0 <= guidance < math.inf:  # also refuses NaN
        raise PCMError(f"embedded_guidance is {guidance}.", "a number of at least 0, or -1.", "Use -1.")
    value = guidance if asked else setup.profile.embedded_guidance
    if value is not None and setup.family.embedded_guidance:
        positive, negative = (with_guidance(c, value, override=asked) for c in (positive, negative))
    elif asked:
        setup = setup.noted(f"{setup.family.name} takes no embedded guidance; {guidance:g} is not used.")
    return setup, positive, negative


def _beta_warning(setup: Setup) -> list[str]:
    warning = video.beta_warning(setup.profile, host.sigma_table(setup.model))
    if warning is None:
        return []
    _warn_once(warning)
    return [warning]
