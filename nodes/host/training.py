"""What training asks of ComfyUI: a loaded model to differentiate through, its texts, previews, and where LoRAs go."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ...pcm_core import distill
from ...pcm_core.errors import PCMError
from .backbone import Conditioning
from .model import is_flow
from .sampling import CFGGuider

# What a conditioning may say that holds for a whole picture at every noise level, and what training cannot honour.
_UNSUPPORTED = ("control", "hooks", "area", "mask", "gligen", "start_percent", "end_percent")
_WHOLE = (
    "all of the model there: gradients are wrong where the host streams weights layer by layer.",
    "Use a smaller or quantised model, or start ComfyUI without --novram.",
)
_ALL_MEMORY = 10**20  # bytes: everything else leaves the device


class _Body(comfy.samplers.Sampler):
    """Runs a function where the host runs a sampler: model loaded, patched and on its device."""

    def __init__(self, body: Callable[[Any, dict[str, Any]], None]) -> None:
        self.body = body

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]  # the host's base class only passes
        self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        check_loaded(guider.inner_model, guider.model_patcher.load_device)
        with distill.differentiable_weights(guider.inner_model):
            self.body(guider, extra_args)
        return torch.zeros_like(noise)


def with_model(
    model: Any, conditioning: Conditioning, shape: tuple[int, ...], body: Callable[[Any, dict[str, Any]], None],
    *, at_home: bool = False,
) -> None:  # fmt: skip
    """Call ``body(guider, extra_args)`` with the model loaded and frozen, outside inference mode, gradients on.

    Args:
        conditioning: one that fits the model; the host estimates memory with it.
        shape: of one batch of latents.
        body: ``guider(x, sigma, **extra_args)`` is the model; ``guider.inner_model`` the host's BaseModel.
        at_home: the weights stay on the CPU, whatever the model's device, for ``body`` to bring.

    Raises:
        PCMError: if not all of its weights can lie on the device.
    """
    whole = _for_training(model)
    if at_home:
        whole.load_device = whole.offload_device
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True  # the host's switch to layers that can be differentiated
    try:
        _run(whole, conditioning, shape, body)
    finally:
        comfy.model_management.in_training = before
        if whole.model is not model.model:  # read again for this run
            _forget(whole)
        del whole
        gc.collect()  # a session's parts refer to each other, to the optimizer and to the model


def _run(
    model: Any, conditioning: Conditioning, shape: tuple[int, ...], body: Callable[[Any, dict[str, Any]], None]
) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        guider = CFGGuider(model)
        guider.inner_set_conds({"positive": conditioning})
        guider.sample(torch.zeros(shape), torch.zeros(shape), _Body(body), torch.tensor([1.0, 0.0]), seed=0)


def _forget(model: Any) -> None:
    """Take a model off the host's list of what is loaded.

    The host drops an entry when its model has been collected, even while it walks the list, which it does not survive;
    and it hands the entry of a clone that is gone to the model that was cloned.
    """
    entries = comfy.model_management.current_loaded_models
    for entry in [entry for entry in entries if entry.model is model]:
        model.detach(unpatch_all=False)
        assert entry.model_finalizer is not None  # what is listed has been loaded
        entry.model_finalizer.detach()
        entries.remove(entry)


def _for_training(model: Any) -> Any:
    """A clone that the host loads whole, as its own trainer does.

    Weights that come to the device layer by layer share one buffer, and a gradient would find the next layer's in it.

    Raises:
        PCMError: if the host streams this model's weights and has no file to read it from once more.
    """
    try:
        # What the host streams is read again, as a model that it loads.
        clone = model.clone(disable_dynamic=True) if model.is_dynamic() else model.clone()
    except RuntimeError as error:
        raise PCMError(
            f"The model cannot be loaded whole ({error}).",
            "a model that a loader node read from a file.",
            "Load it with Load Checkpoint or Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram.",
        ) from error

    inference = torch.is_inference_mode_enabled()

    def prepare(executor: Any, patcher: Any, *args: Any, **options: Any) -> Any:
        try:
            with torch.inference_mode(inference):  # a weight moved outside of it is half an inference tensor for good
                comfy.model_management.load_models_gpu([patcher], memory_required=_ALL_MEMORY, force_full_load=True)
        except comfy.model_management.OOM_EXCEPTION as error:
            size = patcher.model_size() / 2**20
            raise PCMError(f"The {size:.0f} MB of the model do not fit on {patcher.load_device}.", *_WHOLE) from error
        return executor(patcher, *args, **(options | {"force_full_load": True}))

    clone.add_wrapper(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, prepare)
    return clone


def check_loaded(base: Any, device: torch.device) -> None:
    """Raise PCMError if weights of the network stayed elsewhere."""
    left = [weight for weight in base.diffusion_model.parameters() if weight.device.type != device.type]
    if left:
        size = sum(weight.numel() * weight.element_size() for weight in left) / 2**20
        raise PCMError(
            f"{size:.0f} MB of the model's weights are not on {device}.",
            *_WHOLE,
        )


def check_conditioning(conditioning: Conditioning, name: str) -> Conditioning:
    """The conditioning, if it is a plain text.

    Raises:
        PCMError: if it is empty, a combination, or carries what training cannot honour.
    """
    if len(conditioning) != 1:
        raise PCMError(
            f"{name} has {len(conditioning)} parts.", "one.", "Use a plain text encode, without Combine or Average."
        )
    if used := [key for key in _UNSUPPORTED if key in conditioning[0][1]]:
        raise PCMError(
            f"{name} carries {', '.join(used)}.", "a plain text.", "Remove control nets, masks, areas and time ranges."
        )
    return conditioning


def prediction_of(model: Any) -> str:
    """``eps``, ``v``, ``flow`` or the host's own name for the parametrisation in lower case."""
    if is_flow(model):
        return "flow"
    name: str = model.model.model_type.name
    return {"EPS": "eps", "V_PREDICTION": "v"}.get(name, name.lower())


def latent_channels(model: Any) -> int:
    return int(model.get_model_object("latent_format").latent_channels)


def latent_rank(model: Any) -> int:
    """Dimensions of a batch of the model's latents: 4 for pictures, 5 for clips."""
    return int(getattr(model.get_model_object("latent_format"), "latent_dimensions", 2)) + 2


def previewer(model: Any) -> Callable[[Tensor], Image.Image] | None:
    """``latent [1, ...] -> picture``: the user's preview method, else the rough colours of the latent format.

    On the CPU: from a GPU the host copies a preview without waiting for it, and here nothing else would.
    """
    latent_format = model.get_model_object("latent_format")
    chosen = latent_preview.get_previewer(torch.device("cpu"), latent_format)
    if chosen is None and latent_format.latent_rgb_factors is not None:
        chosen = latent_preview.Latent2RGBPreviewer(
            latent_format.latent_rgb_factors,
            latent_format.latent_rgb_factors_bias,
            latent_format.latent_rgb_factors_reshape,
        )
    return None if chosen is None else lambda latent: chosen.decode_latent_to_preview(latent.cpu())


class Progress:
    """The node's progress bar, with a picture where there is one."""

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def show(self, step: int, picture: Image.Image | None = None) -> None:
        self._bar.update_absolute(step, preview=None if picture is None else ("JPEG", picture, 1024))


def temporary_folder(name: str) -> Path:
    """A folder among what the host throws away when it starts; not made."""
    return Path(folder_paths.get_temp_directory()) / name


def new_lora_path(prefix: str) -> tuple[Path, str]:
    """A new file under output/loras, and its name in the host's list of LoRAs.

    The name is taken by an empty .part beside it, for another ComfyUI may be saving to the same folder.

    Raises:
        PCMError: if the prefix is empty, leaves that folder or is no name for a file, or it cannot be made.
    """
    base = Path(folder_paths.get_output_directory()) / "loras"
    parts = Path(prefix.replace("\\", "/")).parts
    leaves = ".." in parts or Path(prefix).is_absolute() or ":" in prefix
    if not prefix.strip() or leaves or not prefix.isprintable() or any(len(part.encode()) > 200 for part in parts):
        raise PCMError(f'The prefix is "{prefix}".', "a name inside output/loras.", "Use one such as pcm/my_lora.")
    try:
        base.mkdir(parents=True, exist_ok=True)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(base))
        path = _take(Path(folder), name, counter)
    except OSError as error:
        raise PCMError(f"{base} cannot be written ({error}).", "a writable folder.", "Check it, save again.") from error
    folder_paths.add_model_folder_path("loras", str(base))
    return path, str(Path(subfolder) / path.name)


def _take(folder: Path, name: str, first: int) -> Path:
    """The first number that is free, taken in one step: looking and then writing would let two find the same."""
    number = first
    while True:
        path = folder / f"{name}_{number:05}_.safetensors"
        part = path.with_suffix(".part")
        number += 1
        try:
            part.touch(exist_ok=False)
        except FileExistsError:
            continue
        if not path.exists():
            return path
        part.unlink(missing_ok=True)  # the other finished between our look and our touch
