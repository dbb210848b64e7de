"""What Load PCM LoRA asks of ComfyUI: the files, what a model's weights are called, and the patching itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.lora.keys import Target
from ...pcm_core.profiles.advice import ModelFacts
from .model import family_of, model_sampling


def lora_names() -> list[str]:
    """Files in the loras folders that are safe to open."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith((".safetensors", ".sft"))]


def lora_path(name: str) -> Path:
    """The file behind a name of ``lora_names``.

    Raises:
        PCMError: if the name leaves the loras folders or there is no such file.
    """
    found = folder_paths.get_full_path("loras", name)
    inside = not Path(name).is_absolute() and ".." not in Path(name.replace("\\", "/")).parts
    if found is None or not inside:
        raise PCMError(f'There is no LoRA "{name}".', "a file in one of the loras folders.", "Pick it from the list.")
    return Path(found)


def file_state(name: str) -> tuple[str, int, int]:
    """What tells the host that a file was replaced under its name.

    Raises:
        PCMError: as ``lora_path``.
    """
    stat = lora_path(name).stat()
    return name, stat.st_mtime_ns, stat.st_size


def lora_targets(model: Any) -> tuple[dict[str, Target], dict[str, tuple[int, ...]]]:
    """Every LoRA name the host knows for this model with the weight it means, and the shape of every weight."""
    shapes = {key: tuple(value.shape) for key, value in model.model.state_dict().items()}
    if _quantised(model):  # the state dict holds packed numbers: two of fp4 in a byte
        shapes |= {key: tuple(value.shape) for key, value in model.model.named_parameters()}
    targets: dict[str, Target] = {}
    for alias, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        key, *rest = (target,) if isinstance(target, str) else target
        rows = rest[0][1:] if rest and rest[0] is not None else None
        targets[alias] = Target(key, rows, swap=len(rest) > 1 and rest[1] is comfy.utils.swap_scale_shift)
    return targets, shapes


def patch_lora(model: Any, tensors: dict[str, Tensor], weights: Iterable[str], strength: float) -> Any:
    """A clone with a normalised LoRA, by the host's own loader; quantised and offloaded models keep their weights.

    The loader is offered the weights that the LoRA updates and no others: it tries every kind of adapter on each.

    Args:
        model: a ModelPatcher.
        tensors: as ``lora.normalize`` returns them.
        weights: names of the model's weights.
        strength: of the update.

    Raises:
        PCMError: if the host did not take every update.
    """
    if _keeps_weights(model):
        return comfy.sd.load_bypass_lora_for_models(model, None, tensors, strength, 0.0)[0]
    stems = {key.removesuffix(".weight").rpartition(".")[0] for key in tensors}
    wanted = {stem: weight for weight in weights if (stem := weight.removesuffix(".weight")) in stems}
    patched = model.clone()
    taken = set(patched.add_patches(comfy.lora.load_lora(tensors, wanted), strength))
    if missed := sorted(stem for stem in stems if not {wanted.get(stem), f"{stem}.bias"} & taken):
        raise PCMError(
            f"The host left {len(missed)} of {len(stems)} updates out, {missed[0]} first.",
            "every update applied.",
            "Please report this with the name of the LoRA and the model.",
        )
    return patched


def _quantised(model: Any) -> bool:
    return getattr(model.model.model_config, "quant_config", None) is not None


def _keeps_weights(model: Any) -> bool:
    """Whether merging would requantise weights or copy offloaded ones. One LoRA only: the host's hooks do not stack."""
    if model.get_injections("bypass_lora"):
        return False
    device = model.load_device
    offloaded = device.type != "cpu" and model.model_size() > comfy.model_management.get_total_memory(device)
    return offloaded or _quantised(model)


def model_facts(model: Any) -> ModelFacts:
    """What gives away that a LoRA is on the wrong model."""
    loader = getattr(model, "cached_patcher_init", None)
    source = loader[1][0] if loader and loader[1] and isinstance(loader[1][0], str) else ""
    return ModelFacts(
        base_model=family_of(model),
        file=Path(source).name,
        dtype=str(model.model.get_dtype()).removeprefix("torch."),
        image_input=_image_input(family_of(model), model.model.model_config.unet_config),
        sigma_max=float(model_sampling(model).sigma_max),
    )


def _image_input(family: str, unet: Mapping[str, Any]) -> bool | None:
    """Whether a model reads a start image beside its noise; ``None`` where it may, or its channels do not tell.

    The host calls Wan 2.2 image-to-video ``t2v``, so only the channels that go in and come out say it.
    """
    if family not in ("wan", "hunyuan-video"):
        return None
    read, written = (unet.get(f"{side}_dim", unet.get(f"{side}_channels", 0)) for side in ("in", "out"))
    if read > written:
        return True
    return False if unet.get("model_type") == "t2v" and written == 16 else None
