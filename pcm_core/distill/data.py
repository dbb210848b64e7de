"""Latents for training: they stay on their device and are moved one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import PCMError


class Data(Protocol):
    """The interface of a data set. Rows and captions are indices; caption -1 is the null caption."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Row indices [count], int64 on the CPU, of latents that all have one shape."""
        ...

    def latents(self, rows: Tensor) -> Tensor:
        """Latents [len(rows), ...] in the model's scale, float32 on the training device."""
        ...

    def captions(self, rows: Tensor) -> Tensor:
        """Caption indices [len(rows)], int64 on the CPU."""
        ...


class LatentSet:
    """Latents of any rank and of several shapes, grouped so that every batch has one shape.

    Args:
        tensors: each [B, ...]; kept by reference, never copied or moved as a whole.
        captions: one caption index per tensor, or one per row.
        prepare: converts a stored batch for training: device, dtype and the model's own scaling.

    Raises:
        PCMError: if there are no rows, or captions and rows do not match.
    """

    def __init__(
        self, tensors: Sequence[Tensor], captions: Sequence[int], prepare: Callable[[Tensor], Tensor] = Tensor.float
    ) -> None:
        count = sum(len(tensor) for tensor in tensors)
        if count == 0:
            raise PCMError("There are no latents to train on.", "at least one.", "Connect encoded images or clips.")
        if len(captions) == count:
            numbers = list(captions)
        elif len(captions) == len(tensors):
            numbers = [caption for tensor, caption in zip(tensors, captions, strict=True) for _ in range(len(tensor))]
        else:
            raise PCMError(
                f"There are {len(captions)} captions for {len(tensors)} latents with {count} images or clips.",
                "one caption for each latent.",
                "Encode one caption per latent, or one for all.",
            )
        self.tensors, self.prepare = list(tensors), prepare
        self._captions = torch.tensor(numbers)
        self._places = [(i, j) for i, tensor in enumerate(self.tensors) for j in range(len(tensor))]
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, (i, _) in enumerate(self._places):
            groups.setdefault(tuple(self.tensors[i].shape[1:]), []).append(row)
        self._groups = [torch.tensor(members) for members in groups.values()]
        self._group_of = {row: group for rows, group in zip(groups.values(), self._groups, strict=True) for row in rows}

    def __len__(self) -> int:
        return len(self._places)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows of one shape, drawn in proportion to its number of rows; without repeats if there are enough rows."""
        first = int(torch.randint(len(self), (), generator=generator))
        group = self._group_of[first]
        if len(group) >= count:
            return group[torch.randperm(len(group), generator=generator)[:count]]
        return group[torch.randint(len(group), (count,), generator=generator)]

    def latents(self, rows: Tensor) -> Tensor:
        places = [self._places[int(row)] for row in rows]
        # torch.stack clones: otherwise tensors made in inference mode cannot enter autograd.
        return self.prepare(torch.stack([self.tensors[i][j] for i, j in places]))

    def captions(self, rows: Tensor) -> Tensor:
        return self._captions[rows]
