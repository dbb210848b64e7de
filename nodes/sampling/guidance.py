"""A guider whose cfg follows the phases."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...pcm_core.guidance import parse_guidance, phase_at
from ...pcm_core.profiles import PCMProfile
from .. import host
from .plan import AUTO, Plan


class PhaseGuider(host.CFGGuider):
    """The host's CFGGuider, whose cfg follows the phase of the sigma it is asked at.

    It only sets ``cfg`` before the host's own wrappers run, so CFGOverride, RescaleCFG, disable_cfg1_optimization and
    everything else that reads or replaces cfg works as it does on a stock guider.
    """

    def set_phases(self, values: Sequence[float], tops: Sequence[float]) -> None:
        """``values``: cfg per phase, noisiest first. ``tops``: highest sigma of each phase."""
        self.phase_cfg, self.phase_tops = tuple(values), tuple(tops)
        self.set_cfg(self.phase_cfg[0])

    def outer_predict_noise(self, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        self.set_cfg(self.phase_cfg[phase_at(float(timestep.flatten()[0]), self.phase_tops)])
        return super().outer_predict_noise(x, timestep, *args, **kwargs)


def phase_cfg(model: Any, cfg: str, phases: int) -> tuple[float, ...]:
    """CFG of each phase for ``cfg`` as typed: "auto", one number, or one per phase.

    Raises:
        PCMError: if ``cfg`` cannot be read, or has the wrong number of values.
    """
    if cfg.strip().lower() in (AUTO, ""):
        return parse_guidance((host.profile_of(model) or PCMProfile()).cfg, phases)
    return parse_guidance(cfg, phases)


def phase_guider(model: Any, positive: Any, negative: Any, cfg: str, plan: Plan) -> PhaseGuider:
    """A guider for ``cfg`` as typed, over the phases of the plan.

    Raises:
        PCMError: as ``phase_cfg``.
    """
    guider = PhaseGuider(model)
    guider.set_conds(positive, negative)
    guider.set_phases(phase_cfg(model, cfg, plan.phases), plan.phase_tops)
    return guider
