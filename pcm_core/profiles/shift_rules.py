"""Timestep shifts that depend on the image size: the more tokens, the more of the schedule is spent at high noise.

A rule is an entry of ``shift_rules`` in ``methods.json``: the authors' constants for mu, the logarithm of the shift.
All of them shift the noise level u to e^mu / (e^mu + 1 / u - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import PCMError
from .table import table

# Assumed if the image size is not known.
USUAL_PIXELS = 1024 * 1024


def mu_of(rule: str, pixels: int, steps: int) -> float:
    """Logarithm of the shift of a rule.

    Args:
        rule: ``flux1`` (linear in the tokens) or ``flux2`` (the empirical mu of FLUX.2).
        pixels: width times height of the image.
        steps: number of evaluations, used by the rule of FLUX.2.

    Raises:
        PCMError: if the image is smaller than one token.
    """
    values: dict[str, Any] = table()["shift_rules"][rule]
    tokens = round(pixels / values["pixels_per_token"])
    if tokens < 1:
        raise PCMError(
            f"The image has {pixels} pixels, and the shift of this model follows its size.",
            f"at least {values['pixels_per_token']} pixels.",
            "Use a larger latent.",
        )
    return _linear(values, tokens) if "mu" in values else _empirical(values, tokens, steps)


def _linear(values: dict[str, Any], tokens: int) -> float:
    """Black Forest Labs' FLUX.1, also ComfyUI's ModelSamplingFlux: a line through two sizes."""
    (low, high), (few, many) = values["mu"], values["tokens"]
    return low + (high - low) * (tokens - few) / (many - few)


def _empirical(values: dict[str, Any], tokens: int, steps: int) -> float:
    """Black Forest Labs' ``compute_empirical_mu`` of FLUX.2: linear in the tokens, and dependent on the steps."""
    many = values["two_hundred_steps"][0] * tokens + values["two_hundred_steps"][1]
    if tokens > values["large"]:
        return many
    few = values["ten_steps"][0] * tokens + values["ten_steps"][1]
    return many + (many - few) / 190 * (steps - 200)


def shifted(levels: Sequence[float], mu: float) -> tuple[float, ...]:
    """Noise levels, 0 to 1, after a shift of e^mu; 0 and 1 do not move."""
    return tuple(math.exp(mu) / (math.exp(mu) + 1 / level - 1) if level > 0 else 0.0 for level in levels)


def sigmas_for_size(rule: str, levels: Sequence[float], pixels: int) -> tuple[float, ...]:
    """Sigmas of a schedule whose shift depends on the image size.

    Args:
        rule: as in ``mu_of``.
        levels: noise levels before the shift, descending, with the final 0.
        pixels: width times height of the image; 0 for ``USUAL_PIXELS``.

    Raises:
        PCMError: see ``mu_of``.
    """
    return shifted(levels, mu_of(rule, pixels or USUAL_PIXELS, len(levels) - 1))


def size_notes(method: str, rule: str, pixels: int) -> tuple[str, ...]:
    """What to say of a size that nobody gave to a method whose shift follows it."""
    if not rule or pixels:
        return ()
    return (f"{method} shifts with the size of the image, which is not known here: 1024 x 1024 is assumed.",)
