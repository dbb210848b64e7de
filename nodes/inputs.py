"""Inputs and outputs that several nodes share, so that a name has the same meaning everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io

from ..pcm_core.phases import MAX_COUNT, SPACINGS, TERMINALS
from .sampling.plan import AUTO
from .sampling.settings import methods

Define = Callable[[Any], io.Schema]
NONE = "[none]"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def optional_after(last: str) -> Callable[[Define], Define]:
    """Decorate ``define_schema``, below ``@classmethod``: what comes after the input ``last`` is optional.

    An API prompt may leave it out; ``checked`` fills in the defaults. The frontend lists required inputs before
    optional ones and a workflow stores values by place, so no required input may follow. "" stands for all inputs.
    """

    def decorate(define: Define) -> Define:
        @functools.wraps(define)
        def defined(cls: Any) -> io.Schema:
            schema = define(cls)
            place = [entry.id for entry in schema.inputs].index(last) + 1 if last else 0
            for entry in schema.inputs[place:]:
                entry.optional = True
            return schema

        return defined

    return decorate


def model() -> io.Model.Input:
    return io.Model.Input("model", tooltip="The model, after Load PCM LoRA, which attaches its settings.")


def steps() -> io.Int.Input:
    return io.Int.Input(
        "steps", default=0, min=0, max=MAX_COUNT, tooltip="Model evaluations. 0: the LoRA's own number."
    )


def denoise() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Fraction of the schedule to run. Below 1 sampling starts inside a phase and keeps every later phase "
        "edge. 0 returns the latent unchanged.",
    )


def phases() -> io.Int.Input:
    return io.Int.Input(
        "phases",
        default=0,
        min=0,
        max=MAX_COUNT,
        advanced=True,
        tooltip="Number of phases of the model. 0: the LoRA's own, else one per step.",
    )


def spacing() -> io.Combo.Input:
    return io.Combo.Input(
        "spacing",
        options=[AUTO, *SPACINGS],
        default=AUTO,
        advanced=True,
        tooltip="Which timesteps are used. trailing: as in the authors' model card. aligned: the phase edges of the "
        "training. tcd: as in the authors' demo.",
    )


def terminal() -> io.Combo.Input:
    return io.Combo.Input(
        "terminal",
        options=[AUTO, *TERMINALS],
        default=AUTO,
        advanced=True,
        tooltip="Where the last jump ends. zero: the clean latent. alpha0: timestep 0, like diffusers with "
        "set_alpha_to_one=False.",
    )


def grid() -> io.Int.Input:
    return io.Int.Input(
        "grid",
        default=0,
        min=0,
        max=1000,
        advanced=True,
        tooltip="Number of points of the solver grid used in training; must divide 1000. 0: the LoRA's own, else 50. "
        "Used by aligned and tcd.",
    )


def spend_extra_steps() -> io.Boolean.Input:
    return io.Boolean.Input(
        "spend_extra_steps",
        default=False,
        advanced=True,
        tooltip="Run more steps than phases if asked for. Extra evaluations inside a phase made images worse in every "
        "test.",
    )


def cfg() -> io.MultiType.Input:
    return io.MultiType.Input(
        io.String.Input(
            "cfg",
            default=AUTO,
            tooltip='auto: the cfg that the LoRA was made for. One number, or one per phase: "3, 1, 1, 1". Phases at '
            "exactly 1 ignore the negative prompt and take half the time.",
        ),
        types=[io.Float, io.Int],
    )


def method() -> io.Combo.Input:
    return io.Combo.Input(
        "method",
        options=methods(),
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip="The few-step method. auto: what the LoRA says, else the name of the checkpoint. none: no settings of "
        "any. Or one of the table.",
    )


def determinism() -> io.Float.Input:
    return io.Float.Input(
        "determinism",
        default=-1.0,
        min=-1.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip="1: the deterministic PCM jump. 0: fresh noise at every step, like LCM. Between: a mix. "
        "-1: the LoRA's own.",
    )


def info() -> io.String.Output:
    return io.String.Output(
        display_name="info",
        tooltip="What ran, as A1111 writes it: steps, cfg, seed, sigmas, LoRAs with strength and hash. The same is put "
        "beside the workflow in what Save Image writes.",
    )


def gamma() -> io.Float.Input:
    return io.Float.Input(
        "gamma",
        default=-1.0,
        min=-1.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip="TCD's parameter for the same: 0 is deterministic, TCD recommends 0.3. -1: not used. "
        "Set either gamma or determinism.",
    )
