"""PCM Sampler, all in one, and SamplerPCM for SamplerCustomAdvanced. Both walk the host's own sampling path."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..pcm_core.errors import PCMError
from ..pcm_core.profiles import PCMProfile
from ..pcm_core.profiles.advice import sampling_mistakes
from ..pcm_core.sampling import ancestral_to_determinism, gamma_to_determinism, is_finite, sample_pcm
from ..pcm_core.sigma_table import SigmaTable
from . import host, widgets
from .checks import checked
from .guider import phase_guider
from .host_status import show_on_node
from .plan import make_plan, window

_UNSET = -1.0


def sample_phased(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    determinism: float = _UNSET,
    gamma: float = _UNSET,
    whole: Tensor | None = None,
    said: bool = False,
    **options: Any,
) -> Tensor:
    """``pcm_core.sampling.sample_pcm`` inside the host: everything it needs is read from the model at run time.

    ``whole`` is the schedule of which ``sigmas`` are a part; ``said``: the caller knows what is unusual about them;
    ``options`` go to ``sample_pcm`` as they are.

    A schedule that ends at timestep 0 (terminal alpha0) leaves a variance-exploding latent with the noise of that
    step; it is scaled to variance-preserving there, as diffusers' DDIM does with set_alpha_to_one=False.

    Raises:
        PCMError: if the schedule or the noise is refused, or a prediction holds NaN or infinity: a black picture would
            not say why.
    """
    patcher = host.patcher_of(model)
    table = host.sigma_table(patcher)
    whole = sigmas if whole is None else whole
    if whole[:1].equal(sigmas[:1]):
        asked = None if determinism == _UNSET else determinism
        _warn(patcher, whole[:0] if said else whole, table, getattr(model.inner_model, "cfg", None), asked)

    def watch(info: dict[str, Any]) -> None:
        if not is_finite(info["denoised"]):
            raise _broken(info, whole)
        if callback is not None:
            callback(info)

    samples = sample_pcm(
        model,
        x,
        sigmas,
        extra_args,
        watch,
        determinism=_rates(patcher, sigmas, table, determinism, gamma),
        flow=table.flow,
        noise_scale=host.noise_scale(patcher),
        progress=partial(host.steps, disable=disable),
        **options,
    )
    return table.finished(samples, float(sigmas[-1])) if len(sigmas) else samples


def _broken(info: dict[str, Any], whole: Tensor) -> PCMError:
    """What to say of NaN or infinity, and whether the model is to blame."""
    step = int((whole > info["sigma"]).sum()) + 1
    where = f"step {step} of {len(whole) - 1} (sigma {float(info['sigma']):.4g})"
    if not is_finite(info["x"]):
        return PCMError(
            f"The latent or its noise held NaN or infinity before {where}.",
            "finite values.",
            "Look at what made the latent: a VAE in fp16, or the sampler before this one.",
        )
    return PCMError(
        f"The model returned NaN or infinity at {where}.",
        "a finite prediction.",
        "Lower the LoRA strength or cfg, or run the model in a wider dtype (bf16 or fp32).",
    )


def _warn(model: Any, sigmas: Tensor, table: SigmaTable, cfg: float | None, determinism: float | None) -> None:
    """Say in the log what people usually get wrong with this kind of LoRA."""
    profile = host.profile_of(model)
    if profile is None or not profile.known:
        return
    shift = host.flow_shift(model)
    for mistake in sampling_mistakes(profile, sigmas.tolist(), table, cfg=cfg, shift=shift, determinism=determinism):
        logging.warning("PCM Sampler: %s", mistake)


def _rates(
    model: Any, sigmas: Tensor, table: SigmaTable, determinism: float, gamma: float
) -> float | tuple[float, ...]:
    """r of Eq. 44 from the widgets, else from the profile; at most one of the widgets is set."""
    check_noise(determinism, gamma)
    if determinism == _UNSET and gamma == _UNSET:
        profile = host.profile_of(model) or PCMProfile()
        if profile.ancestral:
            return ancestral_to_determinism(sigmas, flow=table.flow)
        determinism, gamma = profile.determinism, _UNSET if profile.gamma is None else profile.gamma
    return determinism if gamma == _UNSET else gamma_to_determinism(gamma, sigmas, table)


def check_noise(determinism: float, gamma: float) -> None:
    """Refuse values outside 0..1 (-1 is unset) and two answers to one question.

    Raises:
        PCMError: see above.
    """
    for name, value in (("determinism", determinism), ("gamma", gamma)):
        if value != _UNSET and not 0 <= value <= 1:  # also refuses NaN
            raise PCMError(f"{name} is {value}.", "0 to 1, or -1 for what the LoRA says.", "Use -1.")
    if _UNSET not in (determinism, gamma):
        raise PCMError(f"determinism is {determinism} and gamma is {gamma}.", "one of them.", "Set the other to -1.")


class SamplerPCM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamplerPCM",
            display_name="SamplerPCM",
            category="PCM/sampling",
            description="The phase jump as a SAMPLER, for SamplerCustom and SamplerCustomAdvanced. Use it with the "
            "PCM Phase Scheduler. Deterministic unless the LoRA or a setting says otherwise.",
            search_aliases=["phased consistency", "pcm", "few step", "4 step", "lcm", "tcd", "fast sampler"],
            inputs=[widgets.determinism(), widgets.gamma()],
            outputs=[io.Sampler.Output(tooltip="The sampler. It reads the model and the sigmas when it runs.")],
        )

    @classmethod
    @checked
    def execute(cls, determinism: float, gamma: float) -> io.NodeOutput:
        check_noise(determinism, gamma)
        return io.NodeOutput(host.ksampler(sample_phased, determinism=determinism, gamma=gamma))


class PCMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMSampler",
            display_name="PCM Sampler",
            category="PCM/sampling",
            description="Samples in a few phase jumps. After Load PCM LoRA nothing needs setting: steps, cfg, spacing "
            "and noise come with the LoRA.",
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
                widgets.model(),
                io.Conditioning.Input("positive", tooltip="What to make."),
                io.Conditioning.Input("negative", tooltip="What to avoid. Not used in phases whose cfg is 1."),
                io.Latent.Input("latent_image", tooltip="The latent to fill or change, with its mask if it has one."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise. On one machine, the same seed and settings give the same bits.",
                ),
                widgets.steps(),
                widgets.cfg(),
                widgets.denoise(),
                widgets.phases(),
                widgets.spacing(),
                widgets.terminal(),
                widgets.grid(),
                widgets.spend_extra_steps(),
                widgets.determinism(),
                widgets.gamma(),
                io.Boolean.Input(
                    "add_noise",
                    default=True,
                    advanced=True,
                    tooltip="Off: the latent already carries the noise of the first step.",
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
                    tooltip="On: stop at the noise level of end_step, for another sampler to go on. Off: finish there.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The result."),
                io.Latent.Output(display_name="denoised_output", tooltip="The last clean prediction of the model."),
            ],
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
        cfg: str,
        determinism: float,
        gamma: float,
        add_noise: bool,
        start_step: int,
        end_step: int,
        return_with_leftover_noise: bool,
        **schedule: Any,
    ) -> io.NodeOutput:
        check_noise(determinism, gamma)
        plan = make_plan(model, **schedule).report("PCM Sampler")
        sigmas = window(plan.sigmas, start_step, end_step, leftover_noise=return_with_leftover_noise)
        show_on_node(plan.shown(sigmas))
        guider = phase_guider(model, positive, negative, cfg, plan)
        said = bool(plan.notes) or len(sigmas) < len(plan.sigmas)
        sampler = host.ksampler(sample_phased, determinism=determinism, gamma=gamma, said=said)
        return io.NodeOutput(*host.sample(guider, sampler, sigmas, latent_image, seed=seed, add_noise=add_noise))
