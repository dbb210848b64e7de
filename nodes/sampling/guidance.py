"""A guider with one cfg per phase."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from typing import Any

from ...pcm_core.plan import Plan
from .. import host


class PhaseGuider(host.CFGGuider):
    """The host's CFGGuider with a cfg that depends on the phase of the current sigma.

    It only sets ``cfg`` before the host's own wrappers run, so CFGOverride, RescaleCFG, disable_cfg1_optimization and
    everything else that reads or replaces cfg works as with a stock guider.
    """

    def set_plan(self, plan: Plan) -> None:
        """Use the cfg values of a plan."""
        self.plan = plan
        self.set_cfg(plan.cfg[0])

    def outer_predict_noise(self, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        self.set_cfg(self.plan.cfg_at(float(timestep.flatten()[0])))
        return super().outer_predict_noise(x, timestep, *args, **kwargs)


def phase_guider(model: Any, positive: Any, negative: Any, plan: Plan) -> PhaseGuider:
    """A guider for the phases of a plan."""
    guider = PhaseGuider(model)
    guider.set_conds(positive, negative)
    guider.set_plan(plan)
    return guider
