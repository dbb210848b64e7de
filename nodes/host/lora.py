"""ComfyUI for Load PCM LoRA: LoRA files, names of a model's weights, and patching."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path, PurePosixPath
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
import torch
from comfy.weight_adapter import BypassInjectionManager
from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.lora import ModelWeights, Update
from ...pcm_core.lora.keys import Target
from ...pcm_core.profiles.advice import ModelFacts, expert_of
from .adapters import patches_of, tensors_in
from .model import base_model_of, file_name, model_sampling
from .unmerged import sample_unmerged


def lora_names() -> list[str]:
    """Files in the loras folders that are safe to open."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith((".safetensors", ".sft"))]


def lora_path(name: str) -> Path:
    """The file behind a name of ``lora_names``.

    Raises:
        PCMError: if the name points outside the loras folders or there is no such file.
    """
    found = folder_paths.get_full_path("loras", name)
    inside = not Path(name).is_absolute() and ".." not in Path(name.replace("\\", "/")).parts
    if found is None or not inside:
        raise PCMError(f'There is no LoRA "{name}".', "a file in one of the loras folders.", "Pick it from the list.")
    return Path(found)


def listed(name: str) -> str:
    """The LoRA of ``lora_names`` that a name means, with its folder or without; empty if there is none, or several."""
    wanted = name.strip().replace("\\", "/").lower()
    if not wanted:
        return ""
    names = {known: known.replace("\\", "/").lower() for known in lora_names()}
    for short in (lambda text: text, lambda text: text.rpartition("/")[2], lambda text: PurePosixPath(text).stem):
        found = [known for known, text in names.items() if short(text) == wanted]
        if found:
            return found[0] if len(found) == 1 else ""
    return ""


def file_state(name: str) -> tuple[str, int, int]:
    """A value that changes when a file is replaced by another with the same name.

    Raises:
        PCMError: see ``lora_path``.
    """
    stat = lora_path(name).stat()
    return name, stat.st_mtime_ns, stat.st_size


def model_weights(model: Any) -> ModelWeights:
    """Every LoRA name that the host knows for this model with its weight, and the shape of every weight.

    Shapes are those of the parameters: a state dict may contain packed values (two fp4 numbers per byte, GGUF blocks).
    """
    tensors = (model.model.named_buffers(remove_duplicate=False), model.model.named_parameters(remove_duplicate=False))
    shapes = {key: tuple(value.shape) for key, value in chain(*tensors)}
    known = comfy.lora.model_lora_keys_unet(model.model, {}).items()
    names = {alias: Target(target) if isinstance(target, str) else _part(*target) for alias, target in known}
    expert = expert_of(file_name(model))
    return ModelWeights(names=names, shapes=shapes, base_model=base_model_of(model), expert=expert)


def _part(weight: str, rows: tuple[int, int, int] | None = None, function: Any = None) -> Target:
    """A part of a weight, as the host's key map has it."""
    return Target(weight, rows and rows[1:], swap=function is comfy.utils.swap_scale_shift)


def host_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names that the host's own loader gives Black Forest Labs' control LoRAs and XLabs' LoRAs."""
    return comfy.lora_convert.convert_lora(tensors)


def patch_lora(model: Any, updates: Sequence[Update], strength: float) -> Any:
    """A clone with the updates as patches of the host; quantised weights are not merged while sampling.

    Args:
        model: a ModelPatcher.
        updates: the updates from ``lora.fit``.
        strength: their strength.

    Raises:
        PCMError: if the host did not accept every patch.
    """
    patched = model.clone()
    # The host looks through all weights at each call: one for everything, and more only where a place has two patches.
    rounds: list[dict[Any, Any]] = []
    for place, patch in (item for update in updates for item in patches_of(update)):
        free = next((patches for patches in rounds if place not in patches), None)
        if free is None:
            rounds.append(free := {})
        free[place] = patch
    for patches in rounds:
        if missed := set(patches) - set(patched.add_patches(patches, strength)):
            raise PCMError(
                f"The host left {len(missed)} of {len(patches)} updates out, {min(map(str, missed))} first.",
                "every update applied.",
                "Please report this with the name of the LoRA and the model.",
            )
    sample_unmerged(patched)
    return patched


def carries(model: Any, updates: Sequence[Update]) -> bool:
    """Whether the model already has exactly these updates, from any loader that patches weights or their modules."""
    probes = updates[:: max(1, len(updates) // 3)]
    bypassed = _bypassed(model)
    return bool(probes) and all(
        any(_same(tensor, update.main) for tensor in _tensors_on(model, bypassed, update.target.weight))
        for update in probes
    )


def carries_twice(model: Any) -> bool:
    """Whether two loaders put the same LoRA on the model; weights merged from other models do not count."""
    bypassed = _bypassed(model)
    weights = list(model.patches)
    return bool(weights) and all(_repeats(model, bypassed, weight) for weight in weights[:: max(1, len(weights) // 3)])


def _repeats(model: Any, bypassed: Mapping[str, Any], weight: str) -> bool:
    """Whether two updates of a weight have the same values."""
    updates = [patch[1] for patch in model.patches[weight] if not isinstance(patch[1], list)]
    updates += [bypassed[weight]] if weight in bypassed else []
    firsts = [next(iter(tensors_in(update)), None) for update in updates]
    tensors = [tensor for tensor in firsts if tensor is not None]
    return any(_same(a, b) for a, b in combinations(tensors, 2))


def _tensors_on(model: Any, bypassed: Mapping[str, Any], weight: str) -> Iterator[Tensor]:
    """Every tensor that some loader put on a weight."""
    for patch in model.patches.get(weight, []):
        yield from tensors_in(patch[1])
    yield from tensors_in(bypassed.get(weight))


def _bypassed(model: Any) -> dict[str, Any]:
    """The adapters of the host's bypass loaders by weight: functions on the model keep them, and no list does."""
    functions = [injection.inject for injections in model.injections.values() for injection in injections]
    managers = [value for function in functions for value in inspect.getclosurevars(function).nonlocals.values()
                if isinstance(value, BypassInjectionManager)]  # fmt: skip
    return {f"{key}.weight": adapter for manager in managers for key, (adapter, _) in manager.adapters.items()}


def _same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, not all zero, after the host moved or narrowed one of them."""
    return tensor.shape == other.shape and torch.equal(tensor, other.to(tensor)) and bool(tensor.any())


def own_weights(model: Any) -> Iterator[tuple[str, Tensor, list[Any]]]:
    """Name, unpatched weight and the model's own patches, for every weight of the network in order of names.

    What is in memory may carry patches of this model or of a clone, whichever was sampled last.
    """
    prefix = "diffusion_model."
    for name, weight in sorted(model.model.diffusion_model.named_parameters(prefix.removesuffix("."))):
        before, hooked = model.backup.get(name), model.hook_backup.get(name)
        stored = hooked[0] if hooked is not None else weight.data if before is None else before.weight
        yield name.removeprefix(prefix), stored, model.patches.get(name, [])


def model_facts(model: Any) -> ModelFacts:
    """The facts about a model that show whether a LoRA is on the wrong one."""
    return ModelFacts(
        base_model=base_model_of(model),
        file=file_name(model),
        dtype=str(model.model.get_dtype()).removeprefix("torch."),
        image_input=_image_input(base_model_of(model), model.model.model_config.unet_config),
        sigma_max=float(model_sampling(model).sigma_max),
    )


def _image_input(base_model: str, unet: Mapping[str, Any]) -> bool | None:
    """Whether a model takes a start image in addition to its noise; ``None`` if optional or not known.

    The host calls Wan 2.2 image-to-video ``t2v``, so only the numbers of input and output channels show it.
    """
    if base_model not in ("wan", "hunyuan-video"):
        return None
    read, written = (unet.get(f"{side}_dim", unet.get(f"{side}_channels", 0)) for side in ("in", "out"))
    if read > written:
        return True
    return False if unet.get("model_type") == "t2v" and written == 16 else None


def states_folder() -> Path:
    """Where latents lie that a model has drawn for its own training."""
    return Path(folder_paths.get_output_directory()) / "pcm_states"
