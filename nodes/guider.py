"""PCM Guider: one CFG value per phase."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pcm_core.guidance import guidance_entries
from . import host, inputs
from .sampling.guidance import phase_guider
from .sampling.plan import log, make_plan
from .sampling.settings import AUTO, with_method, with_own_guidance
from .validation import checked


class PCMGuider(io.ComfyNode):
    @classmethod
    @inputs.optional_after("negative")
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMGuider",
            display_name="PCM Guider",
            category="PCM/sampling",
            description="CFG guidance with one value per phase, for SamplerCustomAdvanced. High noise decides the "
            'composition, so "3, 1, 1, 1" uses the negative prompt where it matters and costs 5 evaluations, not 8.',
            search_aliases=[
                "phased consistency",
                "pcm",
                "cfg per phase",
                "cfg schedule",
                "negative prompt",
                "guidance",
            ],
            inputs=[
                inputs.model(),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. Not used in phases with cfg 1."),
                inputs.cfg(),
                inputs.phases(),
                inputs.spacing(),
                inputs.grid(),
                inputs.method(),
            ],
            outputs=[io.Guider.Output(tooltip="A guider whose cfg depends on the phase.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        cfg: str,
        phases: int,
        spacing: str,
        grid: int,
        method: str = AUTO,
    ) -> io.NodeOutput:
        model, notes = with_method(model, method)
        positive, negative, more = with_own_guidance(model, positive, negative)
        log("PCM Guider", *notes, *more)
        profile = host.profile_of(model)
        if not phases and (profile is None or not (profile.phases or profile.sigmas or profile.timesteps)):
            phases = len(guidance_entries(cfg))  # nothing else says how many there are
        plan = make_plan(model, phases=phases, spacing=spacing, grid=grid, cfg=cfg)
        return io.NodeOutput(phase_guider(model, positive, negative, plan))
