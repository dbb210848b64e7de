"""PCM Guider: one CFG value per phase."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..pcm_core.guidance import guidance_entries, parse_guidance, phase_at
from ..pcm_core.profiles import PCMProfile
from . import host, widgets
from .checks import checked
from .plan import AUTO, Plan, make_plan


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


class PCMGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMGuider",
            display_name="PCM Guider",
            category="PCM/sampling",
            description="Guidance that follows the phases, for SamplerCustomAdvanced. High noise decides the "
            'composition, so "3, 1, 1, 1" keeps the negative prompt where it matters and costs 5 passes instead of 8.',
            search_aliases=[
                "phased consistency",
                "pcm",
                "cfg per phase",
                "cfg schedule",
                "negative prompt",
                "guidance",
            ],
            inputs=[
                widgets.model(),
                io.Conditioning.Input("positive", tooltip="What to make."),
                io.Conditioning.Input("negative", tooltip="What to avoid. Not used in phases whose cfg is 1."),
                widgets.cfg(),
                widgets.phases(),
                widgets.spacing(),
                widgets.grid(),
            ],
            outputs=[io.Guider.Output(tooltip="A guider whose cfg depends on the phase of the noise level.")],
        )

    @classmethod
    @checked
    def execute(
        cls, model: Any, positive: Any, negative: Any, cfg: str, phases: int, spacing: str, grid: int
    ) -> io.NodeOutput:
        profile = host.profile_of(model)
        if not phases and (profile is None or not (profile.phases or profile.sigmas or profile.timesteps)):
            phases = len(guidance_entries(cfg))  # nothing else says how many there are
        plan = make_plan(model, phases=phases, spacing=spacing, grid=grid)
        return io.NodeOutput(phase_guider(model, positive, negative, cfg, plan))
