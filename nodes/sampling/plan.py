"""What a node's widgets and the model's profile mean together: the sigmas to walk and where each phase begins."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.phases import PhaseSchedule
from ...pcm_core.profiles import PCMProfile
from ...pcm_core.sigma_table import SigmaTable
from .. import host

# What a widget says where the profile decides: a choice, and a number that may be 0.
AUTO = "auto"
UNSET = -1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A schedule on one model's own sigmas.

    Attributes:
        sigmas: float32 [N + 1] on the CPU, strictly descending; empty where denoise is 0.
        phase_tops: highest sigma that counts as each phase, noisiest first.
        schedule: the timesteps behind it; ``None`` where the LoRA comes with its own list of sigmas.
        notes: what was snapped, overridden or assumed, one sentence each.
    """

    sigmas: Tensor
    phase_tops: tuple[float, ...]
    schedule: PhaseSchedule | None
    notes: tuple[str, ...] = ()

    @property
    def phases(self) -> int:
        return len(self.phase_tops)

    def report(self, node: str) -> Plan:
        """Log the notes under the node's name."""
        for note in self.notes:
            logging.warning("%s: %s", node, note)
        return self

    def shown(self, sigmas: Tensor) -> str:
        """The notes; where there are none, how many steps ``sigmas``, all of the plan's or a part, stand for."""
        steps, phases = max(len(sigmas) - 1, 0), self.phases
        counts = f"{steps} {'step' if steps == 1 else 'steps'}, {phases} {'phase' if phases == 1 else 'phases'}"
        return "\n".join(self.notes) or counts


def make_plan(
    model: Any,
    *,
    steps: int = 0,
    phases: int = 0,
    spacing: str = AUTO,
    terminal: str = AUTO,
    grid: int = 0,
    denoise: float = 1.0,
    spend_extra_steps: bool = False,
) -> Plan:
    """Resolve widgets, where 0 and "auto" ask the profile that came with the LoRA.

    Raises:
        PCMError: if a value is out of range, or PCM cannot serve the model.
    """
    table = host.sigma_table(model)
    profile = _profile(model).resolved(table, steps)
    if not 0 <= denoise <= 1:  # also refuses NaN, which the host lets through
        raise PCMError(f"denoise is {denoise}.", "a number from 0 to 1.", "Use 1 to start from pure noise.")
    if profile.sigmas and spacing == AUTO and not phases and not grid:
        plan = _from_list(profile, table, steps, terminal, denoise)
    else:
        if not grid and (phases or profile.phases or steps or profile.steps) > profile.grid:
            grid = 100  # the coarsest that holds up to 64 phases
        schedule = replace(profile, grid=grid or profile.grid).schedule(
            steps or phases or None,
            phases=phases or None,
            spacing=None if spacing == AUTO else spacing,  # type: ignore[arg-type]
            terminal=None if terminal == AUTO else terminal,  # type: ignore[arg-type]
            denoise=denoise or 1.0,
            spend_extra_steps=spend_extra_steps,
        )
        notes = _assumptions(profile, steps, phases, spacing, grid) + schedule.notes
        if profile.sigmas:
            notes += (
                f"The LoRA's own list of {len(profile.sigmas) - 1} steps is not used: phases, spacing or grid is set.",
            )
        plan = Plan(
            sigmas=schedule.sigmas(table), phase_tops=_phase_tops(schedule, table), schedule=schedule, notes=notes
        )
    return plan if denoise else replace(plan, sigmas=plan.sigmas[:0])


def window(sigmas: Tensor, start: int, end: int, *, leftover_noise: bool) -> Tensor:
    """The steps from ``start`` up to ``end``, as KSamplerAdvanced counts them; empty if none is left.

    Raises:
        PCMError: if the range is empty or negative.
    """
    if not 0 <= start < end:
        raise PCMError(
            f"start_step is {start} and end_step is {end}.",
            "0 <= start_step < end_step.",
            "Use 0 and 10000 to take every step.",
        )
    if start >= len(sigmas) - 1:
        return sigmas[:0]
    cut = sigmas[start : end + 1].clone()
    if end < len(sigmas) - 1 and not leftover_noise:
        cut[-1] = 0
    return cut


def _profile(model: Any) -> PCMProfile:
    profile = host.profile_of(model) or PCMProfile()
    if profile.sampling_class == "unsupported":
        raise PCMError(
            f"The LoRA on this model is for the method {profile.method}.",
            "one that is sampled along a list of sigmas.",
            profile.note or "Sample it with the nodes of its authors.",
        )
    return profile


def _assumptions(profile: PCMProfile, steps: int, phases: int, spacing: str, grid: int) -> tuple[str, ...]:
    if not profile.known:
        if steps or phases:
            return ()
        return (f"The model carries no PCM settings; assumed {profile.steps} steps. Use Load PCM LoRA, or set steps.",)
    asked = (("phases", phases, profile.phases), ("spacing", spacing, profile.spacing), ("grid", grid, profile.grid))
    return tuple(
        f"{name} is {value} where the LoRA says {own}."
        for name, value, own in asked
        if value and value != AUTO and own is not None and value != own
    )


def _phase_tops(schedule: PhaseSchedule, table: SigmaTable) -> tuple[float, ...]:
    """One timestep above each start: published schedules round the same point to either neighbour."""
    return (math.inf, *(table.sigma(start + 1) for start in schedule.starts[1:]))


def _from_list(profile: PCMProfile, table: SigmaTable, steps: int, terminal: str, denoise: float) -> Plan:
    """The profile's own sigmas: cut at the entry level, never spaced anew."""
    assert profile.sigmas is not None
    sigmas = torch.tensor(profile.sigmas, dtype=torch.float32)
    if math.isclose(sigmas[0], table.top, rel_tol=1e-3):
        sigmas[0] = table.top  # published lists are rounded; the host starts from pure noise at its own sigma_max
    tops = (math.inf, *(sigmas[1:-1] * (1 + 1e-4)).tolist())
    notes: list[str] = []
    if steps and steps != len(sigmas) - 1:
        notes.append(
            f"This LoRA has a fixed list of {len(sigmas) - 1} steps, not {steps}; choose a spacing to leave it."
        )
    if 0 < denoise < 1:
        entry = table.sigmas[max(round(denoise * len(table)), 1) - 1]
        kept = max(int((sigmas <= entry).sum()), 2)
        notes.append(f"Entered the LoRA's fixed list at sigma {sigmas[-kept]:.4g} for denoise {denoise:.2f}.")
        sigmas = sigmas[-kept:]
    if (terminal if terminal != AUTO else profile.terminal) == "alpha0":
        sigmas[-1] = table.bottom
    return Plan(sigmas=sigmas, phase_tops=tops, schedule=None, notes=tuple(notes))
