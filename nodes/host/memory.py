"""How much memory a distillation on a loaded model needs, and how much there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor, nn

from ...pcm_core import distill
from ...pcm_core.distill import memory, streaming
from ...pcm_core.errors import PCMError
from .backbone import Conditioning, OutOfPlaceOps, can_checkpoint
from .model import sigma_table


def plan(model: Any, text: Conditioning, load: memory.Workload) -> memory.MemoryPlan:
    """What one update needs, traced through the model; where it cannot be traced an estimate that says why.

    Args:
        model: a ModelPatcher; nothing is loaded, and nothing of it changes.
        text: a conditioning that fits it.
    """
    if not can_checkpoint(model):
        return estimate(model, load, "its layers write over what their gradient needs")
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True  # the host's switch to layers that can be differentiated
    try:
        return memory.plan(model.model.diffusion_model, _forward(model, text, load.shape), load)
    except Exception as error:  # whatever the network raises on tensors without memory
        return estimate(model, load, (str(error).splitlines() or [type(error).__name__])[0])
    finally:
        comfy.model_management.in_training = before


def _forward(model: Any, text: Conditioning, shape: tuple[int, ...]) -> memory.Forward:
    """``(network, x) -> x0`` of the host's model with another network in it."""
    base = copy.copy(model.model)
    base._modules = dict(base._modules)
    with torch.inference_mode(False), torch.no_grad():
        conds = _encoded(base, text, shape)
    level = torch.tensor([sigma_table(model).top])
    options = dict(model.model_options.get("transformer_options", {}))

    def forward(network: nn.Module, x: Tensor) -> Tensor:
        base.diffusion_model = network
        sigma = level.to(x.dtype).expand(len(x))
        rows = {name: cond.process_cond(batch_size=len(x), device=x.device, area=None).cond
                for name, cond in conds.items()}  # fmt: skip
        with OutOfPlaceOps(), exact_layers(network):
            return base.apply_model(x, sigma, transformer_options={**options, "sigmas": sigma}, **rows)

    return forward


def _encoded(base: Any, text: Conditioning, shape: tuple[int, ...]) -> dict[str, Any]:
    ((embedding, values),) = text
    values = {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}
    own = [[embedding if embedding is None else embedding.clone(), values]]
    empty, cpu = torch.zeros(1, *shape), torch.device("cpu")
    conds = comfy.sampler_helpers.convert_cond(own)
    return comfy.samplers.process_conds(base, empty, {"positive": conds}, cpu, empty, None, 0)["positive"][0][
        "model_conds"
    ]


def estimate(model: Any, load: memory.Workload, why: str) -> memory.MemoryPlan:
    """Without tracing: weights and adapters are counted, activations guessed from what the host keeps for sampling."""
    network: Any = model.model.diffusion_model
    sampling = int(model.model.memory_required([2 * load.batch, *load.shape]))
    return memory.estimated(network, load, sampling, why)


def free_bytes(model: Any) -> int:
    """What a training on the model's device may use: what is free, and what the host's own models give back."""
    device = model.load_device
    free: Any = comfy.model_management.get_free_memory(device)
    entries = comfy.model_management.current_loaded_models
    loaded = sum(entry.model_loaded_memory() for entry in entries if entry.model is not None and entry.device == device)
    # On the CPU the weights lie there already, loaded or not.
    return int(free) + (int(model.model_size()) if device.type == "cpu" else int(loaded))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no room left."""
    if isinstance(error, comfy.model_management.OOM_EXCEPTION):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


@contextmanager
def models_unloaded_when_full() -> Iterator[None]:
    """Unload the host's models where a device's out-of-memory error ends in another error.

    The host does so when it sees its own error, and it sees only the last one.
    """
    try:
        yield
    except PCMError as error:
        cause = error.__cause__
        while isinstance(cause, PCMError):
            cause = cause.__cause__
        if _of_a_device(cause):
            comfy.model_management.unload_all_models()
        raise


def _of_a_device(error: BaseException | None) -> bool:
    """What the host calls out of memory; host 0.16 has no function for it."""
    # vars, not getattr: comfy-import-guard takes that for a name that the older host would need.
    is_oom: Callable[[Any], bool] | None = vars(comfy.model_management).get("is_oom")
    return is_oom(error) if is_oom else isinstance(error, comfy.model_management.OOM_EXCEPTION)


@contextmanager
def exact_layers(network: nn.Module) -> Iterator[None]:
    """Quantized layers multiply by what their weights mean, and round no activations; as before when this ends.

    Else gradients are those of a rounded network, and what comes before a rounding gets none that is right.
    """
    layers: list[Any] = [module for module in network.modules() if getattr(module, "layout_type", None) is not None]
    before = [layer.weight_function for layer in layers]
    try:
        for layer in layers:
            layer.weight_function = [*layer.weight_function, _as_it_is]
        yield
    finally:
        for layer, functions in zip(layers, before, strict=True):
            layer.weight_function = functions


def _as_it_is(weight: Tensor) -> Tensor:
    """What the host applies to a weight it hands out dequantized, as it does whenever there is something to apply."""
    return weight


@contextmanager
def streamed(
    base: Any, device: torch.device, adapters: distill.Adapters, around: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """The network's blocks come to the device while they are at work, everything else is there throughout.

    Args:
        base: the host's BaseModel, all of it on the CPU; as before when this ends.
    """
    network: nn.Module = base.diffusion_model
    with ExitStack() as stack:
        stack.enter_context(pinned(network, device))
        stack.enter_context(streaming.resident(base, device, streaming.streamed_tensors(network)))
        stack.enter_context(streaming.streamed(adapters, network, streaming.carrier_for(device), around))
        yield


@contextmanager
def pinned(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Lock the weights where they lie, so that copies to a GPU run beside its work; as many as the host allows."""
    locked: list[Tensor] = []
    if device.type == "cuda" and hasattr(comfy.model_management, "pin_memory"):
        tensors = (part for weight in network.parameters() for part in streaming.inner_tensors(weight))
        locked = [tensor for tensor in tensors if comfy.model_management.pin_memory(tensor)]
    try:
        yield
    finally:
        for tensor in locked:
            comfy.model_management.unpin_memory(tensor)
