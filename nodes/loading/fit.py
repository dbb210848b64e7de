"""One LoRA file read and matched with a model: the updates that this ComfyUI can compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...pcm_core import lora
from ...pcm_core.errors import PCMError
from ...pcm_core.lora import LoraReport, ModelWeights, Update
from ...pcm_core.profiles import PCMProfile, profile_for
from ..host import adapters as host_adapters
from ..host import lora as host_lora


@dataclass(frozen=True)
class LoraOnDisk:
    """A file as it was read: its tensors, the header's metadata, and its settings."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    profile: PCMProfile

    @classmethod
    def read(cls, path: Path) -> LoraOnDisk:
        """Read a file.

        Raises:
            PCMError: if it is not a sound safetensors file.
        """
        tensors, metadata = lora.read_lora(path)
        return cls(path, tensors, metadata, profile_for(path, metadata))

    def fit(self, model: Any, *, allow_partial: bool) -> tuple[list[Update], LoraReport]:
        """The updates for a model, and the report.

        Raises:
            PCMError: if the file or a part of it does not fit.
        """
        weights = host_lora.model_weights(model)
        updates, report = lora.fit(
            host_lora.host_names(self.tensors), weights, metadata=self.metadata, name=self.path.name,
            profile=self.profile, allow_partial=allow_partial,
        )  # fmt: skip
        return _only_what_works(updates, report, weights, allow_partial)


def _only_what_works(
    updates: list[Update], report: LoraReport, weights: ModelWeights, allow_partial: bool
) -> tuple[list[Update], LoraReport]:
    """Drop the updates that this host cannot compute; the report counts them as not applied.

    Raises:
        PCMError: if there are any and ``allow_partial`` is off, or no update is left.
    """
    failing = host_adapters.failing(updates, weights.shapes)
    if not failing:
        return updates, report
    keys = tuple(key for update in failing for key in update.keys)
    report = replace(report, matched=report.matched - len(keys), mismatched=(*report.mismatched, *keys))
    left = [update for update in updates if update not in failing]
    if not allow_partial or not left:
        raise PCMError(
            f"{report.name}: this ComfyUI cannot apply {len(keys)} of {report.offered} tensors, {keys[0][:80]} first.",
            "updates of a kind and shape that the host computes.",
            "Update ComfyUI, or use another LoRA" + ("; allow_partial applies the rest." if left else "."),
        )
    return left, report
