"""PCM Sampler, all in one, and SamplerPCM for SamplerCustomAdvanced. Both walk the host's own sampling path."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host, inputs
from .sampling.function import sample_phased, sample_planned
from .sampling.guidance import phase_guider
from .sampling.plan import make_plan, noise_settings, part_of, say
from .sampling.record import record
from .sampling.settings import AUTO, with_method, with_own_guidance
from .validation import checked


class SamplerPCM(io.ComfyNode):
    @classmethod
    @inputs.optional_after("")
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamplerPCM",
            display_name="SamplerPCM",
            category="PCM/sampling",
            description="The phase jump as a SAMPLER, for SamplerCustom and SamplerCustomAdvanced. Use it with the "
            "PCM Phase Scheduler. Deterministic unless the LoRA or a setting says otherwise.",
            search_aliases=["phased consistency", "pcm", "few step", "4 step", "lcm", "tcd", "fast sampler"],
            inputs=[inputs.determinism(), inputs.gamma()],
            outputs=[io.Sampler.Output(tooltip="The sampler. It reads the model and the sigmas when it runs.")],
        )

    @classmethod
    @checked
    def execute(cls, determinism: float, gamma: float) -> io.NodeOutput:
        noise_settings(determinism, gamma)  # refuses what the run would
        return io.NodeOutput(host.ksampler(sample_phased, determinism=determinism, gamma=gamma))


class PCMSampler(io.ComfyNode):
    @classmethod
    @inputs.optional_after("seed")
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMSampler",
            display_name="PCM Sampler",
            category="PCM/sampling",
            description="Samples in a few phase jumps. After Load PCM LoRA nothing needs to be set: steps, cfg, "
            "spacing and noise come with the LoRA.",
            search_aliases=[
                "phased consistency",
                "pcm",
                "ksampler",
                "few step",
                "4 step",
                "fast sampler",
                "lcm",
                "tcd",
            ],
            inputs=[
                inputs.model(),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. Not used in phases with cfg 1."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise, with its mask if it has one."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise. On one machine, the same seed and settings give the same bits.",
                ),
                inputs.steps(),
                inputs.cfg(),
                inputs.denoise(),
                inputs.phases(),
                inputs.spacing(),
                inputs.terminal(),
                inputs.grid(),
                inputs.spend_extra_steps(),
                inputs.determinism(),
                inputs.gamma(),
                io.Boolean.Input(
                    "add_noise",
                    default=True,
                    advanced=True,
                    tooltip="Off: the latent already has the noise of the first step.",
                ),
                io.Int.Input(
                    "start_step",
                    default=0,
                    min=0,
                    max=10000,
                    advanced=True,
                    tooltip="First step to run, counted from 0.",
                ),
                io.Int.Input(
                    "end_step", default=10000, min=0, max=10000, advanced=True, tooltip="Stop before this step."
                ),
                io.Boolean.Input(
                    "return_with_leftover_noise",
                    default=False,
                    advanced=True,
                    tooltip="On: stop at the noise level of end_step, so that another sampler can continue. Off: "
                    "denoise fully in the last step.",
                ),
                inputs.method(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The result."),
                io.Latent.Output(
                    display_name="denoised_output", tooltip="The model's last prediction of the clean latent."
                ),
                inputs.info(),
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: host.Latent,
        seed: int,
        add_noise: bool,
        start_step: int,
        end_step: int,
        return_with_leftover_noise: bool,
        method: str = AUTO,
        **settings: Any,
    ) -> io.NodeOutput:
        model, notes = with_method(model, method)
        positive, negative, more = with_own_guidance(model, positive, negative)
        whole = make_plan(model, latent_image, notes=(*notes, *more), **settings)
        plan = part_of(whole, start_step, end_step, leftover_noise=return_with_leftover_noise)
        ran = None if plan.steps == whole.steps else (min(start_step, whole.steps), min(end_step, whole.steps))
        say("PCM Sampler", plan, settings["determinism"], whole=whole, ran=ran)
        guider = phase_guider(model, positive, negative, plan)
        sampler = host.ksampler(sample_planned, r=plan.r)
        results = host.sample(guider, sampler, plan.sigmas, latent_image, seed=seed, add_noise=add_noise)
        info = record([model], results[0], plan, seed=seed, denoise=settings["denoise"], hidden=cls.hidden)
        return io.NodeOutput(*results, info)
