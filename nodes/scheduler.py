"""PCM Phase Scheduler: the sigmas of the phase jumps, from the model's own table."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host, inputs
from .sampling.plan import draw, log, make_plan
from .sampling.scheduler_function import SchedulerFunction
from .sampling.settings import AUTO, with_method
from .validation import checked


class PCMPhaseScheduler(io.ComfyNode):
    @classmethod
    @inputs.optional_after("model")
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMPhaseScheduler",
            display_name="PCM Phase Scheduler",
            category="PCM/sampling",
            description="The sigmas of the phase jumps. The first is the model's own sigma_max; with everything on "
            "auto the LoRA decides the rest.",
            search_aliases=["phased consistency", "pcm", "few step", "4 step", "lcm", "tcd", "timesteps", "sigmas"],
            inputs=[
                inputs.model(),
                inputs.steps(),
                inputs.denoise(),
                inputs.phases(),
                inputs.spacing(),
                inputs.terminal(),
                inputs.grid(),
                inputs.spend_extra_steps(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="What will be sampled, for methods whose shift follows the size of the image.",
                ),
                inputs.method(),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="Noise levels, descending; empty if denoise is 0."),
                io.Custom("SCHEDULER_FUNC").Output(
                    display_name="scheduler_func",
                    tooltip="The phases for scheduler_func_opt of the Impact Pack, whose detailers and samplers bring "
                    "their own model, steps and denoise.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, model: Any, method: str = AUTO, latent: host.Latent | None = None, **settings: Any
    ) -> io.NodeOutput:
        schedule = {name: settings[name] for name in ("phases", "spacing", "terminal", "grid")}
        function = SchedulerFunction(method, **schedule)
        model, notes = with_method(model, method)
        plan = make_plan(model, latent, notes=notes, **settings)
        log("PCM Phase Scheduler", *plan.notes)
        draw(plan)
        return io.NodeOutput(plan.sigmas, function)
