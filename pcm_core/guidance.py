"""CFG per phase: parse what the user typed, and find the phase of a sigma.

Guidance follows ComfyUI's convention: denoised = negative + cfg (positive - negative), so cfg 1 needs no evaluation of
the negative prompt. Phases gain differently from guidance: high noise decides the composition, low noise the details.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import PCMError

_MOST = 100  # the limit of the host's own nodes


def parse_guidance(guidance: str | float, phases: int) -> tuple[float, ...]:
    """One CFG value per phase, noisiest phase first.

    Args:
        guidance: a number for every phase, or text such as ``"1.5"`` or ``"3, 1, 1, 1"``.
        phases: number of phases of the model.

    Raises:
        PCMError: if an entry is not a number from 0 to 100, or there are neither one nor ``phases`` entries.
    """
    values = [_value(entry, phases) for entry in guidance_entries(guidance)]
    if len(values) == 1:
        return (values[0],) * phases
    if len(values) != phases:
        raise PCMError(
            f"cfg has {len(values)} values for a model of {phases} {'phase' if phases == 1 else 'phases'}.",
            f"one value, or one per phase ({phases}).",
            f'Write "{_example(phases)}", or set phases to {len(values)}.',
        )
    return tuple(values)


def guidance_entries(guidance: str | float) -> list[str | float]:
    """The values as typed; U+FF0C is the comma of Chinese and Japanese input methods."""
    return [*guidance.replace("\uff0c", ",").split(",")] if isinstance(guidance, str) else [guidance]


def phase_at(sigma: float, tops: Sequence[float]) -> int:
    """The phase of a noise level; 0 is the noisiest.

    Args:
        tops: the highest sigma of each phase, descending.
    """
    return max(sum(top >= sigma for top in tops) - 1, 0)


def _value(entry: str | float, phases: int) -> float:
    try:
        value = float(entry)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MOST:
        raise PCMError(
            f'cfg contains "{entry.strip() if isinstance(entry, str) else entry}".',
            "numbers from 0 to 100, separated by commas.",
            f'Write "1", or one per phase: "{_example(phases)}".',
        )
    return value


def _example(phases: int) -> str:
    return ", ".join(["5"] + ["1"] * (phases - 1))
