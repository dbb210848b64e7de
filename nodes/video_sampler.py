"""PCM Video Sampler: one node for every video model of the host, with one expert or two, whole clips or windows."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..pcm_core import video
from ..pcm_core.plan import Plan
from ..pcm_core.video.noise import WINDOW_NOISES, ClipNoise
from . import host, inputs
from .sampling.clip import Clip, condition, run, split_experts
from .sampling.plan import AUTO, UNSET, make_plan, noise_settings, say
from .sampling.record import record
from .sampling.video_setup import Setup, check_clip, second_expert, set_up, with_windows
from .validation import checked

_NODE = "PCM Video Sampler"
_FRAME_NOISES = ("independent", "mixed", "shared")


def _describe(setup: Setup, plan: Plan) -> str:
    """The settings in force, in one line."""
    shift = plan.table.shift
    values = [
        f"{setup.video_model.name}, {setup.profile.method if setup.profile.known else 'no preset'}",
        f"{plan.steps} steps",
        "sigmas " + " ".join(f"{sigma:.6g}" for sigma in plan.sigmas.tolist()),
        f"cfg {', '.join(f'{value:g}' for value in plan.cfg)}" if len(set(plan.cfg)) > 1 else f"cfg {plan.cfg[0]:g}",
    ]
    if shift is not None:
        values.append(f"shift {shift:g}")
    if setup.windows is not None:
        values.append(f"windows of {setup.windows.length} latent frames, {setup.windows.overlap} shared")
    return ", ".join(values) + "."


class PCMVideoSampler(io.ComfyNode):
    @classmethod
    @inputs.optional_after("seed")
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMVideoSampler",
            display_name="PCM Video Sampler",
            category="PCM/sampling",
            description="Samples video in a few steps: Wan, HunyuanVideo, Mochi, LTXV, LTX-2, AnimateDiff. Steps, "
            "shift, sigmas and guidance come with the LoRA or the preset. Takes a second expert (Wan 2.2) and context "
            "windows for long clips.",
            search_aliases=["phased consistency", "pcm", "video", "few step", "wan", "hunyuan", "mochi", "ltx",
                            "animatediff", "lightning", "fastvideo", "moe"],
            inputs=[
                inputs.model(),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. Not used in phases with cfg 1."),
                io.Latent.Input("latent_image", tooltip="The video latent to denoise, with its mask if it has one."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="Seed of the noise. On one machine, the same seed and settings give the same "
                             "bits."),
                io.Combo.Input("preset", options=[AUTO, *video.preset_names()], default=AUTO,
                               tooltip="auto: the LoRA's own settings, else the default preset of the video model. "
                               "Choose one for a checkpoint that has a few-step LoRA merged in."),
                inputs.steps(),
                inputs.cfg(),
                inputs.denoise(),
                io.Float.Input("shift", default=0.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Linear flow shift; converted for models that use its logarithm (LTX). 0: the "
                               "LoRA's or the preset's."),
                io.Int.Input("boundary", default=875, min=0, max=1000,
                             tooltip="Timestep at which second_model takes over, moved to the nearest phase edge."),
                io.Int.Input("window", default=0, min=0, max=16384,
                             tooltip="Frames in one context window, for clips longer than the model was trained for. "
                             "0: the whole clip at once."),
                io.Int.Input("overlap", default=16, min=0, max=16384,
                             tooltip="Frames that neighbouring windows share."),
                io.Combo.Input("window_noise", options=list(WINDOW_NOISES), default=WINDOW_NOISES[0], advanced=True,
                               tooltip="shuffled, tiled: every window starts from the same noise frames, so that they "
                               "look alike. independent: every window has its own noise."),
                io.Combo.Input("frame_noise", options=list(_FRAME_NOISES), default="independent", advanced=True,
                               tooltip="Noise of different frames: independent, partly the same, or the same. For "
                               "AnimateDiff-style models."),
                io.Float.Input("frame_correlation", default=0.5, min=0.0, max=1.0, step=0.05, advanced=True,
                               tooltip="Correlation of the noise of any two frames, for frame_noise mixed."),
                io.Float.Input("embedded_guidance", default=UNSET, min=UNSET, max=100.0, step=0.1, advanced=True,
                               tooltip="The embedded guidance of HunyuanVideo, which is not cfg. -1: that of the "
                               "conditioning, else the LoRA's or the preset's."),
                inputs.determinism(),
                io.Model.Input("second_model", optional=True,
                               tooltip="The low-noise expert of a pair (Wan 2.2), after its own Load PCM LoRA."),
                inputs.method(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clip."),
                io.String.Output(display_name="report", tooltip="The settings that were used, changed or assumed."),
                inputs.info(),
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, model: Any, positive: Any, negative: Any, latent_image: host.Latent, seed: int, preset: str, steps: int,
        cfg: str, denoise: float, shift: float, boundary: float, window: int, overlap: int, window_noise: Any,
        frame_noise: str, frame_correlation: float, embedded_guidance: float, determinism: float,
        second_model: Any = None, method: str = AUTO,
    ) -> io.NodeOutput:  # fmt: skip
        noise_settings(determinism, UNSET)  # refused before anything is done
        parts = host.parts(latent_image["samples"])
        setup = set_up(model, preset, steps, shift, method)
        check_clip(setup.video_model, parts[0].shape)
        setup = with_windows(setup, window, overlap, nested=len(parts) > 1, noise=window_noise)
        twin = None if second_model is None else second_expert(setup, second_model)
        if twin is not None:
            twin = with_windows(twin, window, overlap, nested=len(parts) > 1)
        latent = host.fix_latent(setup.model, latent_image)
        shape = host.parts(latent["samples"])[0].shape
        setup, positive, negative = condition(setup, positive, negative, shape, embedded_guidance)
        plan = make_plan(setup.model, latent, steps=steps, cfg=cfg, denoise=denoise, determinism=determinism)
        stages, moved = split_experts(setup, twin, plan, boundary)
        plan = replace(plan, notes=setup.notes + plan.notes + moved)
        second = next((first for expert, first, _ in stages if expert is twin), None)
        said = say(_NODE, plan, determinism, second=second, windows=(window, overlap) if window else None)
        correlation = {"independent": 0.0, "mixed": frame_correlation, "shared": 1.0}[frame_noise]
        noise = ClipNoise(
            axis=setup.video_model.frames_axis, seed=seed, correlation=correlation, windows=setup.windows,
            arrangement=window_noise,
        )  # fmt: skip
        result = run(Clip(noise, seed), latent, stages, positive, negative, plan)
        experts = [setup.model] if twin is None else [setup.model, twin.model]
        info = record(experts, result, plan, seed=seed, denoise=denoise, hidden=cls.hidden)
        return io.NodeOutput(result, "\n".join([_describe(setup, plan), *said]), info)
