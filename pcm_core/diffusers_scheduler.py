"""The phase jumps as a scheduler for diffusers pipelines. Importing this module needs diffusers.

    >>> pipe.scheduler = PCMScheduler.from_profile(profile_for(lora), pipe.scheduler.config)
    >>> pipe(prompt, num_inference_steps=4, guidance_scale=0)

diffusers keeps the latents of diffusion models in variance-preserving space, ``x / sqrt(1 + sigma^2)`` in our terms,
and those of flow models as we do. A step converts to sigma space in float32, jumps, and converts back.
"""
# pyright: reportMissingTypeArgument=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false, reportPrivateImportUsage=false
# (diffusers has few type hints.)

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .denoiser import Prediction, predicted_x0, read_scheduler
from .errors import PCMError
from .plan import Plan, plan
from .profiles import PCMProfile, profile_from_metadata, profile_to_metadata
from .sampling import jump, stochastic_jump
from .sigma_table import SigmaTable

_BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


@dataclass
class PCMSchedulerOutput(BaseOutput):
    """The latent after a step, and the predicted x0."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class PCMScheduler(SchedulerMixin, ConfigMixin):
    """Follows the plan of a profile; made by ``from_profile``, saved and loaded like every diffusers scheduler.

    Args:
        profile: the ``pcm_*`` metadata of the profile (``profile_to_metadata``); default: an unknown profile.
        num_train_timesteps, prediction_type: those of the model.
        beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: those of a diffusion model.
        use_flow_sigmas: whether the model is a flow model, with the linear ``shift``.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        profile: dict[str, str] | None = None,
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        use_flow_sigmas: bool = False,
        shift: float = 1.0,
    ) -> None:
        self.profile = profile_from_metadata(profile or {}) or PCMProfile()
        if use_flow_sigmas:
            self.sigma_table = SigmaTable.shifted_flow(shift, num_train_timesteps)
            self._prediction: Prediction = "flow"
        else:
            model = DDIMScheduler(
                num_train_timesteps, beta_start, beta_end, cast(Any, beta_schedule), trained_betas,
                prediction_type=cast(Any, prediction_type), rescale_betas_zero_snr=rescale_betas_zero_snr,
            )  # fmt: skip
            self.sigma_table, self._prediction = read_scheduler(model)
        self.init_noise_sigma = 1.0
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._use(plan(self.profile, self.sigma_table))

    @classmethod
    def from_profile(cls, profile: PCMProfile, config: Any) -> PCMScheduler:
        """A scheduler for the LoRA of a profile on the model of a pipeline.

        Args:
            profile: the LoRA's profile; its shift replaces the model's.
            config: the config of the pipeline's own scheduler, or that scheduler.

        Raises:
            PCMError: if the config does not define the model's noise levels, or the method has no list of sigmas.
        """
        given = cast(Mapping[str, Any], getattr(config, "config", config))
        kind = "The scheduler" if given is config else type(config).__name__
        flow = bool(given.get("use_flow_sigmas")) or ("shift" in given and "beta_schedule" not in given)
        settings: dict[str, Any] = {"num_train_timesteps": int(given.get("num_train_timesteps", 1000))}
        if flow:
            settings |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            settings["shift"] = profile.shift or _fixed_shift(kind, given)
        elif "beta_schedule" in given and "snr_shift_scale" not in given:
            settings |= {name: given[name] for name in (*_BETAS, "prediction_type") if name in given}
        else:
            raise PCMError(
                f"{kind} has no betas and no flow shift that can be read.",
                "the scheduler of an eps, v, x0 or flow-matching model.",
                "Pass the config of DDIMScheduler or FlowMatchEulerDiscreteScheduler with the model's settings.",
            )
        return cls(profile=profile_to_metadata(profile) if profile.known else None, **settings)

    def _use(self, made: Plan, device: Any = None) -> None:
        self.plan = made
        self.num_inference_steps = made.steps
        self._levels = cast(list[float], made.sigmas.tolist())
        times = [made.table.model_timestep(sigma) for sigma in self._levels[:-1]]
        self.timesteps = torch.tensor(times, device=device)
        self.sigmas = made.sigmas
        self._step_index = self._begin_index = None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, *, mu: float | None = None
    ) -> None:
        """Plan a full denoise; image-to-image pipelines start at one of its later timesteps.

        Args:
            num_inference_steps: at most the number of phases of the LoRA; ``None`` for the LoRA's own number.
            mu: ignored; passed by pipelines of models with a dynamic shift.

        Raises:
            PCMError: if there are more steps than the LoRA has phases.
        """
        del mu
        made = plan(self.profile, self.sigma_table, steps=num_inference_steps or 0)
        if num_inference_steps is not None and made.steps != num_inference_steps:
            raise PCMError(
                f"num_inference_steps is {num_inference_steps} for a LoRA of {made.phases} phases.",
                f"{made.steps}.",
                f"Pass num_inference_steps={made.steps}.",
            )
        for note in made.notes:
            logging.getLogger(__name__).warning("PCMScheduler: %s", note)
        self._use(made, device)

    @property
    def step_index(self) -> int | None:
        """Index of the next step; ``None`` before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, if the pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later step, as image-to-image pipelines do."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Tensor | float) -> int:
        """Index of the step with the nearest timestep."""
        return int((self.timesteps - torch.as_tensor(timestep, device=self.timesteps.device)).abs().argmin())

    def scale_model_input(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        """The sample, unchanged."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> PCMSchedulerOutput | tuple[Tensor, Tensor]:
        """Jump to the next noise level.

        Args:
            model_output: the network's output after guidance, [B, ...].
            timestep: one of ``timesteps``.
            sample: the input latent of the network.
            generator: draws the fresh noise of steps with r below 1.
        """
        if self._step_index is None:
            started = self._begin_index is not None
            self._step_index = cast(int, self._begin_index) if started else self.index_for_timestep(timestep)
        i = self._step_index
        sigma, sigma_next, r = self._levels[i], self._levels[i + 1], self.plan.r[i]
        x = sample.float() * self._spread(sigma)
        x0 = predicted_x0(model_output.float(), x, torch.full((len(x),), sigma, device=x.device), self._prediction)
        if r == 1 or i + 2 == len(self._levels) or sigma_next == 0:
            x = jump(x, x0, sigma, sigma_next)
        else:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = stochastic_jump(x, x0, noise, sigma, sigma_next, r, flow=self.sigma_table.flow)
        self._step_index += 1
        after, x0 = (x / self._spread(sigma_next)).to(sample.dtype), x0.to(sample.dtype)
        return PCMSchedulerOutput(after, x0) if return_dict else (after, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean latents to the levels of ``timesteps`` [B], in the space of diffusers."""
        levels = [self._levels[self.index_for_timestep(t)] for t in timesteps.flatten()]
        sigma = torch.tensor(levels, device=noise.device).reshape(-1, *[1] * (noise.ndim - 1))
        if self.sigma_table.flow:
            return torch.lerp(original_samples.float(), noise.float(), sigma).to(noise.dtype)
        return ((original_samples + sigma * noise) * (1 + sigma**2).rsqrt()).to(noise.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that pipelines of flow models use."""
        return self.add_noise(sample, noise, timestep)

    def _spread(self, sigma: float) -> float:
        """Scale of sigma space relative to the space of diffusers."""
        return 1.0 if self.sigma_table.flow else math.sqrt(1 + sigma * sigma)

    def __len__(self) -> int:
        return self.sigma_table.train_steps


def _fixed_shift(kind: str, config: Mapping[str, Any]) -> float:
    """The linear shift of a flow-matching config.

    Raises:
        PCMError: if the shift depends on the image size, or the noise levels do not follow from it.
    """
    if odd := [key for key in ("use_dynamic_shifting", "invert_sigmas", "shift_terminal") if config.get(key)]:
        raise PCMError(
            f"{kind} has {odd[0]}, and the LoRA names no shift.",
            "noise levels that depend on the timestep alone.",
            "Pass a config with a fixed shift: FlowMatchEulerDiscreteScheduler(shift=...).config.",
        )
    return float(config.get("flow_shift", config.get("shift", 1.0)))
