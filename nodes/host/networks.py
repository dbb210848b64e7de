"""Sampling objects for networks that the host would call in the wrong way: InstaFlow and NitroFusion.

Each is a subclass of the host's own class, installed by the host's own mechanism (``add_object_patch``).
"""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
from torch import Tensor

# NitroFusion: the network gets this fraction of the timestep.
_TOLD = {"timestep_250": 0.25, "timestep_500": 0.5}


class RectifiedFlow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """InstaFlow and 2-rectified flow (Liu et al. 2023; InstaFlow, code/pipeline_rf.py).

    SD 1.5 with x = (1 - sigma) x0 + sigma noise and timestep input 1000 sigma. Its velocity points from noise to data,
    the host's from data to noise.
    """

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """x0 of the same shape as ``model_input``."""
        return super().calculate_denoised(sigma, -model_output, model_input)


class ToldTimestep:
    """NitroFusion (Chen et al. 2024): SDXL with another timestep input than that of its noise level.

    Its prediction belongs to the timestep input, so x0 is computed there, from the same variance-preserving latent
    (TimestepShiftLCMScheduler of its README: LCMScheduler.step uses alpha and sigma of the timestep it is given).
    """

    told = 1.0

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep input of the network, a whole number."""
        return (super().timestep(sigma) * self.told).floor()  # type: ignore[misc]

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """x0 of the same shape as ``model_input``."""
        own: Any = self
        there = own.sigma(self.timestep(sigma)).to(sigma)
        scale = ((there**2 + 1) / (sigma**2 + 1)) ** 0.5
        rows = scale.view(-1, *[1] * (model_input.ndim - 1)) if scale.numel() > 1 else scale.view(())
        return super().calculate_denoised(there, model_output, model_input * rows)  # type: ignore[misc]


def sampling_for(network: str, current: Any, config: Any) -> Any:
    """The sampling object of a profile's ``network``, for a model that has ``current``.

    Args:
        network: ``rectified_flow``, ``timestep_250`` or ``timestep_500``.
        current: the model's own sampling object; NitroFusion keeps its sigmas.
        config: the model's config.
    """
    if network == "rectified_flow":
        return RectifiedFlow(config)
    kind = type(current)
    if issubclass(kind, ToldTimestep):
        kind = kind.__mro__[2]
    made: Any = type("NitroFusion", (ToldTimestep, kind), {"told": _TOLD[network]})
    sampling = made(config)
    sampling.set_sigmas(current.sigmas)
    return sampling
