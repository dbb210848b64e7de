"""Ends that the demo world does not have: a CLIP that nobody may ask anything, and a mask of the middle."""

from __future__ import annotations

from typing import Any

import torch


class NoClip:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {}}

    def run(self) -> tuple[Any]:
        return (object(),)


class MiddleMask:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "run", ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"size": ("INT", {"default": 64})}}

    def run(self, size: int) -> tuple[Any]:
        mask = torch.zeros(1, size, size)
        mask[:, size // 4 : -size // 4, size // 4 : -size // 4] = 1
        return (mask,)


NODE_CLASS_MAPPINGS = {"TestNoClip": NoClip, "TestMiddleMask": MiddleMask}
