"""Nodes for the tests' server.

A hash of the weights that a model has in memory, once its LoRAs are taken off again; and a model that breaks.
"""

from __future__ import annotations

import hashlib
from typing import Any


class ModelWeights:
    CATEGORY = "tests"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("MODEL",), "after": ("LATENT",)}}

    def run(self, model: Any, after: Any) -> dict[str, Any]:
        """``after`` is what has to be sampled first."""
        import comfy.model_management
        import torch

        comfy.model_management.load_models_gpu([model])  # the host puts the model's own weights back for this
        found = hashlib.sha256()
        for name, value in sorted(model.model.state_dict().items()):
            found.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return {"ui": {"weights": [found.hexdigest()]}}


class BrokenModel:
    CATEGORY = "tests"
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("MODEL",), "below": ("FLOAT",)}}

    def run(self, model: Any, below: float) -> tuple[Any]:
        """A clone whose prediction is NaN below a noise level."""

        def call(apply: Any, options: dict[str, Any]) -> Any:
            output = apply(options["input"], options["timestep"], **options["c"])
            return output * float("nan") if float(options["timestep"].max()) < below else output

        model = model.clone()
        model.set_model_unet_function_wrapper(call)
        return (model,)


NODE_CLASS_MAPPINGS = {"TestModelWeights": ModelWeights, "TestBrokenModel": BrokenModel}
