"""A model's noise levels by timestep: the one place that converts between timesteps, fractions and sigmas.

Diffusion models (eps, v, x0) have x = x0 + sigma eps, flow models x = (1 - sigma) x0 + sigma eps. Both have an
ascending list of sigmas: L entries for T = 1000 training timesteps, where L is T or a multiple of it (Flux: 10000).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from .errors import PCMError

TRAIN_STEPS = 1000
_FLOW_TOP = 1 + 1e-5  # a flow table ends at 1; the float32 arithmetic of a shift may round it up


@dataclass(frozen=True)
class SigmaTable:
    """The sigmas of one model, ascending; the last is pure noise.

    Attributes:
        sigmas: L noise levels as Python floats.
        flow: x = (1 - sigma) x0 + sigma eps; else x = x0 + sigma eps.
        train_steps: training timesteps T; L is a multiple of T.

    Raises:
        PCMError: if timesteps cannot index the sigmas, the sigmas do not ascend, or with ``flow`` they do not end at 1.
    """

    sigmas: tuple[float, ...]
    flow: bool
    train_steps: int = TRAIN_STEPS

    def __post_init__(self) -> None:
        length = len(self.sigmas)
        if length < self.train_steps or length % self.train_steps:
            raise PCMError(
                f"The model's sigma table has {length} entries.",
                f"{self.train_steps} entries, or a multiple of it.",
                "Use the model's full table, without a patch that shortens it (the 50-entry LCM table).",
            )
        for i, (low, high) in enumerate(itertools.pairwise(self.sigmas)):
            if not (0 <= low <= high < math.inf):  # also refuses NaN
                raise PCMError(
                    f"Entry {i + 1} of the model's sigma table is {high:.6g} after {low:.6g}.",
                    "finite sigmas that ascend from timestep 0 to pure noise.",
                    "Pass the sigmas of the model itself, the lowest first.",
                )
        if self.flow and self.top > _FLOW_TOP:
            raise PCMError(
                f"The sigma table of a flow model ends at {self.top:.6g}.", "1, pure noise.", "Say flow=False."
            )

    @classmethod
    def of(cls, sigmas: Tensor | SigmaTable, *, flow: bool | None = None, train_steps: int = TRAIN_STEPS) -> SigmaTable:
        """A table from the [L] ascending sigmas of a model, any device and dtype; a ``SigmaTable`` is returned as is.

        With ``flow=None`` a table that ends at 1 is that of a flow model.

        Raises:
            PCMError: see the class.
        """
        if isinstance(sigmas, SigmaTable):
            return sigmas
        values = cast(list[float], sigmas.detach().flatten().cpu().tolist())  # pyright: ignore[reportUnknownMemberType]
        flow = bool(values) and values[-1] <= _FLOW_TOP if flow is None else flow
        return cls(tuple(values), flow, train_steps)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> SigmaTable:
        """The table of a variance preserving model: ``sigma_t = sqrt((1 - a_t) / a_t)``, computed in float64.

        A zero terminal SNR (a = 0) is taken as 2^-24, sigma 4096, as diffusers' EulerDiscreteScheduler does.

        Args:
            alphas_cumprod: [T] products of ``1 - beta``, descending, as ``DDIMScheduler.alphas_cumprod``.
        """
        alphas = alphas_cumprod.detach().cpu().double().clamp(min=2**-24)
        return cls.of(((1 - alphas) / alphas).sqrt(), flow=False, train_steps=len(alphas))

    @classmethod
    def shifted_flow(cls, shift: float = 1.0, train_steps: int = TRAIN_STEPS) -> SigmaTable:
        """The table of a flow model with a linear shift s: ``sigma(u) = s u / (1 + (s - 1) u)``, u = (t + 1) / T.

        Raises:
            PCMError: if the shift is not a finite number above 0.
        """
        if not 0 < shift < math.inf:  # also refuses NaN
            raise PCMError(f"The shift is {shift}.", "a finite number above 0.", "Use the model's own, 1 for none.")
        fractions = ((t + 1) / train_steps for t in range(train_steps))
        return cls(tuple(shift * u / (1 + (shift - 1) * u) for u in fractions), True, train_steps)

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def scale(self) -> int:
        """Entries per training timestep."""
        return len(self.sigmas) // self.train_steps

    @property
    def top(self) -> float:
        """The sigma of pure noise."""
        return self.sigmas[-1]

    @property
    def bottom(self) -> float:
        """The sigma of timestep 0, where the terminal ``alpha0`` ends."""
        return self.sigma(0)

    @cached_property
    def shift(self) -> float | None:
        """The linear shift of a flow table, read at its middle as ``sigma / (1 - sigma)``; ``None`` for other models.

        Right for every table ``s u / (1 + (s - 1) u)``, to the seven digits that float32 holds.
        """
        middle = self.sigma_at(0.5)
        return float(f"{middle / (1 - middle):.7g}") if self.flow and middle < 1 else None

    def is_shifted(self, tolerance: float) -> bool:
        """Whether a flow table is that of its ``shift`` everywhere; ``tolerance``: relative, of the sigmas.

        Tables that other packs put into a model (beta, exponential) are not.
        """
        shift = self.shift
        return shift is not None and all(
            math.isclose(self.sigma_at(u), shift * u / (1 + (shift - 1) * u), rel_tol=tolerance)
            for u in (0.1, 0.25, 0.75, 0.9)
        )

    def sigma(self, timestep: int) -> float:
        """The sigma of a training timestep, 0 to T - 1."""
        return self.sigmas[(timestep + 1) * self.scale - 1]

    def sigma_at(self, fraction: float) -> float:
        """The sigma at a fraction of the way from the image (0) to pure noise (1), between entries of the table.

        Exact at every entry: ``sigma_at((i + 1) / L)`` is ``sigmas[i]``.
        """
        place = min(max(fraction, 0.0), 1.0) * len(self) - 1
        low = max(math.floor(place + 1e-6), 0)
        high = min(low + 1, len(self) - 1)
        weight = max(place - low, 0.0)
        return self.sigmas[low] if weight < 1e-6 else self.sigmas[low] + weight * (self.sigmas[high] - self.sigmas[low])

    def index(self, sigma: float) -> float:
        """The fractional index of a sigma in the table, 0 to L - 1."""
        high = bisect_left(self.sigmas, sigma)
        if high in (0, len(self)):
            return float(min(high, len(self) - 1))
        low_sigma, high_sigma = self.sigmas[high - 1], self.sigmas[high]
        return high - 1 + (sigma - low_sigma) / (high_sigma - low_sigma)

    def nearest(self, sigma: float) -> int:
        """The index of the entry with the nearest sigma; the lower of two at equal distance."""
        high = min(bisect_left(self.sigmas, sigma), len(self) - 1)
        low = max(high - 1, 0)
        return low if sigma - self.sigmas[low] <= self.sigmas[high] - sigma else high

    def timestep(self, sigma: float) -> float:
        """The fractional training timestep of a sigma, 0 to T - 1: the inverse of ``sigma``."""
        return max((self.index(sigma) + 1) * self.train_steps / len(self) - 1, 0.0)

    def model_timestep(self, sigma: float) -> float:
        """The network's timestep input at a sigma: ``T sigma`` for flow models, else the nearest training timestep."""
        if self.flow:
            return self.train_steps * sigma
        return self.nearest(sigma) // self.scale

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """A clean latent noised to ``sigma``, in the space of ``sample_pcm``. Both tensors have one shape and dtype.

        At the top of a diffusion model's table the noise alone has variance ``1 + sigma^2``, as if the unknown image
        had unit variance: in training the model's input was ``x / sqrt(1 + sigma^2)``.
        """
        if self.flow:
            return torch.lerp(clean, noise, sigma)
        start = math.isclose(sigma, self.top, rel_tol=1e-5)
        return clean + noise * (math.sqrt(1 + sigma * sigma) if start else sigma)

    def finished(self, x: Tensor, sigma: float) -> Tensor:
        """The final latent of a run. A run that stops at timestep 0 (``alpha0``) is rescaled to unit variance.

        That is ``x / sqrt(1 + sigma^2)``, like diffusers' DDIM with ``set_alpha_to_one=False``. Other ends and flow
        models do not change.
        """
        if self.flow or not math.isclose(sigma, self.bottom, rel_tol=1e-6):
            return x
        return x * (1 + self.bottom**2) ** -0.5
