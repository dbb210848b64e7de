"""Inputs that several nodes share, so that a name means the same everywhere."""

from __future__ import annotations

from comfy_api.latest import io

from ..pcm_core.phases import MAX_COUNT, SPACINGS, TERMINALS
from .sampling.plan import AUTO


def model() -> io.Model.Input:
    return io.Model.Input("model", tooltip="The model, after Load PCM LoRA. Its settings travel with it.")


def steps() -> io.Int.Input:
    return io.Int.Input(
        "steps", default=0, min=0, max=MAX_COUNT, tooltip="Model evaluations. 0: what the LoRA was trained for."
    )


def denoise() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Share of the path to run. Below 1 it enters inside a phase and keeps every later edge. "
        "0 returns the latent.",
    )


def phases() -> io.Int.Input:
    return io.Int.Input(
        "phases",
        default=0,
        min=0,
        max=MAX_COUNT,
        advanced=True,
        tooltip="Phases of the model. 0: what the LoRA says, else as many as steps.",
    )


def spacing() -> io.Combo.Input:
    return io.Combo.Input(
        "spacing",
        options=[AUTO, *SPACINGS],
        default=AUTO,
        advanced=True,
        tooltip="Where the steps lie. trailing: the authors' model card. aligned: the edges training defines. "
        "tcd: the authors' demo.",
    )


def terminal() -> io.Combo.Input:
    return io.Combo.Input(
        "terminal",
        options=[AUTO, *TERMINALS],
        default=AUTO,
        advanced=True,
        tooltip="Where the last jump lands. zero: the clean latent. alpha0: timestep 0, as diffusers with "
        "set_alpha_to_one=False.",
    )


def grid() -> io.Int.Input:
    return io.Int.Input(
        "grid",
        default=0,
        min=0,
        max=1000,
        advanced=True,
        tooltip="Points of the solver grid it was trained on; must divide 1000. 0: what the LoRA says, else 50. "
        "Matters for aligned and tcd.",
    )


def spend_extra_steps() -> io.Boolean.Input:
    return io.Boolean.Input(
        "spend_extra_steps",
        default=False,
        advanced=True,
        tooltip="Really run more steps than phases. Extra evaluations inside a phase made pictures worse in every "
        "test.",
    )


def cfg() -> io.String.Input:
    return io.String.Input(
        "cfg",
        default=AUTO,
        tooltip='auto: what the LoRA was made for. One number, or one per phase: "3, 1, 1, 1". Phases at exactly 1 '
        "ignore the negative prompt and take half the time.",
    )


def determinism() -> io.Float.Input:
    return io.Float.Input(
        "determinism",
        default=-1.0,
        min=-1.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip="1: the deterministic PCM jump. 0: fresh noise at every step, as LCM. Between: a mix. "
        "-1: what the LoRA says.",
    )


def gamma() -> io.Float.Input:
    return io.Float.Input(
        "gamma",
        default=-1.0,
        min=-1.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip="TCD's way to say it: 0 is deterministic, TCD recommends 0.3. -1: not used. "
        "Set either gamma or determinism.",
    )
