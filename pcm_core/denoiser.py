"""A network as the sampler and the trainer call it: ``(x, sigma) -> x0`` in sigma space, for every prediction type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .errors import PCMError
from .sigma_table import SigmaTable

Prediction = Literal["eps", "v", "x0", "flow"]
PREDICTIONS = cast(tuple[Prediction, ...], get_args(Prediction))
NULL_CAPTION = -1
_DIFFUSERS_PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow",
}  # fmt: skip


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, ...] with the rank of ``x``."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor, *, flow: bool) -> Tensor:
    """x at noise level ``sigma`` [B]: ``(1 - sigma) x0 + sigma eps`` for flow models, ``x0 + sigma eps`` otherwise."""
    level = per_sample(sigma, clean)
    return torch.lerp(clean, noise, level) if flow else clean + level * noise


def network_input(x: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The input of a network for x in sigma space at ``sigma`` [B]: ``x / sqrt(1 + sigma^2)``, which has unit variance;
    for a flow network x itself."""
    return x if prediction == "flow" else x * (1 + per_sample(sigma, x).square()).rsqrt()


def predicted_x0(output: Tensor, x: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """x0 from the output of a network for x in sigma space at ``sigma`` [B].

    A v network predicts ``alpha eps - sigma_vp x0``, so ``x0 = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) v``. A
    flow network predicts ``eps - x0``.
    """
    level = per_sample(sigma, x)
    if prediction in ("eps", "flow"):
        return x - level * output
    if prediction == "v":
        variance = 1 + level.square()
        return x / variance - level * variance.rsqrt() * output
    return output


def as_denoiser(
    network: Callable[[Tensor, Tensor], Tensor], prediction: Prediction
) -> Callable[[Tensor, Tensor], Tensor]:
    """``(x, sigma [B]) -> x0`` from a network ``(input, sigma [B])`` that predicts eps, v, x0 or a flow velocity.

    Raises:
        PCMError: if ``prediction`` is unknown.
    """
    if prediction not in PREDICTIONS:
        raise PCMError(
            f'The prediction type is "{prediction}".', "eps, v, x0 or flow.", "Name what the network returns."
        )

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return predicted_x0(network(network_input(x, sigma, prediction), sigma), x, sigma, prediction)

    return denoise


class Denoiser:
    """``model(x, sigma [B]) -> x0`` for one network, with prompts and guidance.

    Attributes:
        network: the module itself, for example to train adapters on it.
        sigmas: its sigma table.
        prediction: its prediction type: ``eps``, ``v``, ``x0`` or ``flow``.

    Args:
        call: ``call(input, timestep [B], prompt [B]) -> output``; ``input`` as ``network_input``, ``timestep`` as
            ``SigmaTable.model_timestep`` (whole numbers except for flow models), ``prompt`` the index of a prompt, or
            -1 for the negative prompt.
        prompts: number of prompts.
    """

    def __init__(
        self,
        network: nn.Module,
        sigmas: SigmaTable,
        prediction: Prediction,
        call: Callable[[Tensor, Tensor, Tensor], Tensor],
        prompts: int = 1,
    ) -> None:
        self.network, self.sigmas, self.prompts = network, sigmas, prompts
        self.prediction: Prediction = prediction
        self._call = call

    @property
    def flow(self) -> bool:
        """x = (1 - sigma) x0 + sigma eps; else x = x0 + sigma eps."""
        return self.sigmas.flow

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor | None = None, *, cfg: float = 1.0) -> Tensor:
        """The predicted x0 after guidance.

        Args:
            x: [B, ...] in sigma space, any float dtype.
            sigma: [B].
            captions: [B] prompt indices, -1 for the negative prompt; default: the prompts in turn.
            cfg: ``negative + cfg (positive - negative)``; exactly 1 does not evaluate the negative prompt.

        Raises:
            PCMError: if the batch is not a multiple of the prompts, or guidance lacks a negative prompt.
        """
        if captions is None:
            captions = self._in_turn(len(x))
        positive = self._x0(x, sigma, captions)
        if cfg == 1:
            return positive
        negative = self._x0(x, sigma, torch.full_like(captions, NULL_CAPTION))
        return negative + cfg * (positive - negative)

    def _in_turn(self, batch: int) -> Tensor:
        if batch % self.prompts:
            raise PCMError(
                f"A batch of {batch} latents has {self.prompts} prompts.", "a multiple of the prompts.", "Match them."
            )
        return torch.arange(batch) * self.prompts // batch

    def _x0(self, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        levels = cast(list[float], sigma.flatten().tolist())  # pyright: ignore[reportUnknownMemberType]
        timestep = torch.tensor([self.sigmas.model_timestep(level) for level in levels], device=x.device)
        weights = next(self.network.parameters(), x)
        output = self._call(network_input(x, sigma, self.prediction).to(weights.dtype), timestep, captions)
        return predicted_x0(output.to(x.dtype), x, sigma, self.prediction)

    @classmethod
    def from_diffusers(
        cls,
        network: nn.Module,
        scheduler: Any,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        **conditioning: Any,
    ) -> Denoiser:
        """A denoiser from the UNet or transformer of a diffusers pipeline.

        Args:
            network: called as ``network(input, timestep, encoder_hidden_states, **conditioning)``.
            scheduler: the scheduler of the pipeline, which defines the noise levels and the prediction type.
            prompt_embeds: [P, tokens, width], one per prompt; ``None`` for a network without prompts.
            negative_prompt_embeds: [1, tokens, width]; needed for guidance.
            conditioning: further inputs of the network: tensors with one row per prompt, dictionaries of such tensors,
                or values that are the same for all. ``negative_NAME`` replaces ``NAME`` for the negative prompt.

        Raises:
            PCMError: if the scheduler cannot be read.
        """
        positive = {k: v for k, v in conditioning.items() if not k.startswith("negative_")}
        negative = positive | {k.removeprefix("negative_"): v for k, v in conditioning.items() if k not in positive}
        if prompt_embeds is not None:
            positive["encoder_hidden_states"] = prompt_embeds
            negative["encoder_hidden_states"] = negative_prompt_embeds
        has_negative = prompt_embeds is None or negative_prompt_embeds is not None
        name = next(iter(inspect.signature(network.forward).parameters))

        def call(x: Tensor, timestep: Tensor, captions: Tensor) -> Tensor:
            if bool((captions < 0).any()) and not has_negative:
                raise PCMError(
                    "Guidance needs a negative prompt, and there is none.",
                    "negative_prompt_embeds, or cfg 1.",
                    "Pass the embeddings of an empty prompt to Denoiser.from_diffusers.",
                )
            values = {key: _rows(value, negative.get(key), captions) for key, value in positive.items()}
            return cast(Any, network)(**{name: x}, timestep=timestep, **values, return_dict=False)[0]

        table, prediction = read_scheduler(scheduler)
        return cls(network, table, prediction, call, 1 if prompt_embeds is None else len(prompt_embeds))


def _rows(positive: Any, negative: Any, captions: Tensor) -> Any:
    """The rows of a conditioning value for ``captions``; values that are not tensors are the same for all."""
    if isinstance(positive, Mapping):
        mapping, other = cast(Mapping[str, Any], positive), cast(Mapping[str, Any], negative or {})
        return {key: _rows(value, other.get(key), captions) for key, value in mapping.items()}
    if not isinstance(positive, Tensor):
        return positive
    rows = positive if negative is None else torch.cat([positive, cast(Tensor, negative)[:1].to(positive)])
    return rows[captions.to(rows.device)]  # -1 is the last row


def read_scheduler(scheduler: Any) -> tuple[SigmaTable, Prediction]:
    """The sigma table and the prediction type of a diffusers scheduler.

    Flow-matching schedulers are read from their shift, those with betas from ``alphas_cumprod``.

    Raises:
        PCMError: if it is neither, its noise levels depend on the image size, or its shift is not above 0.
    """
    config = cast(Mapping[str, Any], getattr(scheduler, "config", {}))
    kind, alphas = type(scheduler).__name__, getattr(scheduler, "alphas_cumprod", None)
    own = getattr(scheduler, "sigma_table", None)
    name = str(config.get("prediction_type", "flow_prediction" if alphas is None else "epsilon"))
    flow = bool(config.get("use_flow_sigmas")) or (alphas is None and "shift" in config)
    if name not in _DIFFUSERS_PREDICTIONS or not (flow or alphas is not None or own is not None):
        raise _unreadable(kind, f'prediction type "{name}"' if alphas is not None else "no betas and no flow shift")
    if isinstance(own, SigmaTable):
        return own, _DIFFUSERS_PREDICTIONS[name]
    if not flow:
        return SigmaTable.from_alphas_cumprod(cast(Tensor, alphas)), _DIFFUSERS_PREDICTIONS[name]
    if odd := [key for key in ("use_dynamic_shifting", "invert_sigmas", "shift_terminal") if config.get(key)]:
        raise _unreadable(kind, odd[0])
    shift = float(config.get("flow_shift", config.get("shift", 1.0)))
    return SigmaTable.shifted_flow(shift, int(config.get("num_train_timesteps", 1000))), "flow"


def _unreadable(kind: str, why: str) -> PCMError:
    return PCMError(
        f"{kind} has {why}.",
        "a scheduler with alphas_cumprod, or flow matching with a fixed shift.",
        "Build the one of your model with these settings and pass that: DDIMScheduler, or "
        "FlowMatchEulerDiscreteScheduler with shift=...",
    )
