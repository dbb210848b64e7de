"""Sampling one clip: starting noise, one expert or two, image conditioning."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...pcm_core import video
from ...pcm_core.errors import PCMError
from ...pcm_core.plan import Plan
from ...pcm_core.sampling import NoiseSampler, seeded_noise
from ...pcm_core.video.noise import ClipNoise
from .. import host
from .function import refuse_broken, walk
from .guidance import phase_guider
from .plan import UNSET
from .settings import with_guidance
from .video_setup import Setup


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

    def stage(self, first: int, last: int, r: Sequence[float]) -> Any:
        """A SAMPLER that takes the steps from ``first`` up to ``last`` of the schedule it is given; ``r`` of each."""

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
            self._x = walk(
                model,
                x if self._x is None else self._x,
                sigmas[first : last + 1],
                extra_args,
                refuse_broken(count_on, sigmas),
                disable,
                r=r[first:last],
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
    first: Setup, second: Setup | None, plan: Plan, boundary: float
) -> tuple[list[tuple[Setup, int, int]], tuple[str, ...]]:
    """Who takes which steps: (expert, first step, last step), and what was moved.

    Raises:
        PCMError: if the boundary is out of range, or there is one step for two experts.
    """
    total = plan.steps
    if not total:
        return [], ("denoise is 0: the latent is as it was.",)
    if second is None:
        return [(first, 0, total)], ()
    edge, note = video.expert_edge(plan.whole.tolist(), boundary, plan.table)
    split = int((plan.sigmas[:-1] > edge * (1 + 1e-6)).sum())
    stages = [(first, 0, split), (second, split, total)]
    return [stage for stage in stages if stage[1] < stage[2]], (note, *second.notes)


def check_images(setup: Setup, conditioning: Any, clip: torch.Size) -> None:
    """Refuse image-to-video conditioning that was made for a clip of another length, where the model cannot pad it.

    Raises:
        PCMError: see above.
    """
    takes_images = setup.model.model.model_config.unet_config.get("in_dim") != clip[1]
    for _, values in conditioning if setup.video_model.whole_images and takes_images else ():
        image = values.get("concat_latent_image")
        if image is not None and image.ndim == 5 and image.shape[2] != clip[2]:
            raise PCMError(
                f"The latent has {clip[2]} latent frames, the image conditioning has {image.shape[2]}.",
                "one length.",
                "Connect the latent output of the image-to-video node.",
            )


def run(
    clip: Clip, latent: host.Latent, stages: list[tuple[Setup, int, int]], positive: Any, negative: Any, plan: Plan
) -> host.Latent:
    """Sample the latent stage by stage; one without steps comes back as it is."""
    noise, result = clip.start(latent), latent
    for expert, first, last in stages:
        guider = phase_guider(expert.model, positive, negative, plan)
        sampler = clip.stage(first, last, plan.r)
        # The host's FreeNoise writes into the noise it gets: only the last stage may have the original.
        given = noise if last == plan.steps else noise * 1.0
        result, _ = host.sample(guider, sampler, plan.sigmas, latent, seed=clip.seed, noise=given)
    return result


def condition(setup: Setup, positive: Any, negative: Any, clip: torch.Size, guidance: float) -> tuple[Setup, Any, Any]:
    """Set the embedded guidance if the video model uses it.

    Args:
        clip: shape of the video latent.
        guidance: asked for, or -1.

    Raises:
        PCMError: if the guidance is no number of at least 0, or the conditioning is for a clip of another length.
    """
    for conditioning in (positive, negative):
        check_images(setup, conditioning, clip)
    asked = guidance != UNSET
    if asked and not 0 <= guidance < math.inf:  # also refuses NaN
        raise PCMError(f"embedded_guidance is {guidance}.", "a number of at least 0, or -1.", "Use -1.")
    value = guidance if asked else setup.profile.embedded_guidance
    if value is not None and setup.video_model.embedded_guidance:
        positive, negative = (with_guidance(c, value, override=asked) for c in (positive, negative))
    elif asked:
        setup = setup.noted(f"{setup.video_model.name} takes no embedded guidance; {guidance:g} is not used.")
    return setup, positive, negative
