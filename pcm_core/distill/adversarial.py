"""The adversarial consistency loss (paper section 3.3, Eq. 8 and 9): both predictions at a phase edge must look alike.

A discriminator, which is the frozen backbone's features and small trained heads, sees both predictions, renoised to the
same random level inside the phase. Unlike a GAN loss against data it vanishes at self-consistency (Theorem 5). In
healthy training its accuracy is near chance (a discriminator loss near 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import PCMError
from .objective import SolverGrid

Features = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
_GROUPS = 8


def renoise_std(sigma: Tensor, sigma_to: Tensor, *, flow: bool) -> Tensor:
    """Standard deviation of the independent noise that takes a latent from ``sigma`` to ``sigma_to >= sigma``.

    Variance exploding: ``sqrt(sigma_to^2 - sigma^2)``. Flow: the latent is first scaled by
    ``a = (1 - sigma_to) / (1 - sigma)``, so ``sqrt(sigma_to^2 - (a sigma)^2)``. The official flow code uses
    ``(sigma_to - sigma) / (1 - sigma)``, which is correct only for noise shared with the latent, and otherwise too
    small by a factor of up to ``1 / sqrt(2)``.
    """
    kept = sigma * _flow_scale(sigma, sigma_to) if flow else sigma
    return (sigma_to.square() - kept.square()).clamp(min=0).sqrt()


def renoise(x: Tensor, sigma: Tensor, sigma_to: Tensor, noise: Tensor, *, flow: bool) -> Tensor:
    """Forward diffusion of latents [B, ...] from level ``sigma`` [B] to ``sigma_to`` [B] with fresh unit noise."""
    shape = (-1, *[1] * (x.ndim - 1))
    std = renoise_std(sigma, sigma_to, flow=flow).reshape(shape)
    if flow:
        x = x * _flow_scale(sigma, sigma_to).reshape(shape)
    return x + std * noise


def _flow_scale(sigma: Tensor, sigma_to: Tensor) -> Tensor:
    return (1 - sigma_to) / (1 - sigma).clamp(min=torch.finfo(sigma.dtype).eps)


def hinge_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """``relu(1 - D(real)) + relu(1 + D(fake))``, the mean over heads; 2 is chance."""
    losses = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def hinge_generator(fake: Sequence[Tensor]) -> Tensor:
    """``relu(1 - D(fake))``, the mean over heads, as in the official code; 1 is chance."""
    return torch.stack([F.relu(1 - f).mean() for f in fake]).mean()


class DiscriminatorHead(nn.Module):
    """Project, normalize and activate, twice, then one score per token.

    Pointwise like the official SDXL and SD3 heads, so it works for any number of tokens and any latent rank.
    """

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) / math.sqrt(columns))

        self.enter, self.mix, self.leave = matrix(hidden, width), matrix(hidden, hidden), matrix(1, hidden)

    def forward(self, feature: Tensor, *, frozen: bool = False) -> Tensor:
        """Scores [B, T, 1] of features [B, T, C]; ``frozen``: no gradient for the weights."""
        enter, mix, leave = (w.detach() if frozen else w for w in (self.enter, self.mix, self.leave))
        x = _activate(F.linear(feature.to(enter.dtype), enter))
        x = x + _activate(F.linear(x, mix))
        return F.linear(x, leave)


class DiscriminatorHeads(nn.ModuleList):
    """One small residual head per feature map.

    Args:
        widths: channels of each feature map.
        hidden: channels inside the heads, a multiple of 8 and at least 16: with one channel per group, a single token
            would be normalized to zero.
        generator: draws the initial weights, on the CPU.

    Raises:
        PCMError: if ``hidden`` does not fit.
    """

    def __init__(self, widths: Sequence[int], hidden: int, generator: torch.Generator) -> None:
        if hidden < 2 * _GROUPS or hidden % _GROUPS:
            raise PCMError(f"The heads have {hidden} channels.", "a multiple of 8, at least 16.", "Use 64.")
        super().__init__(DiscriminatorHead(width, hidden, generator) for width in widths)

    def forward(self, features: Sequence[Tensor], *, frozen: bool = False) -> list[Tensor]:
        """Scores [B, T, 1] of features [B, T, C], one per map; ``frozen``: no gradient for the heads."""
        return [head(feature, frozen=frozen) for head, feature in zip(self, features, strict=True)]

    def differences(self, state: Mapping[str, Tensor]) -> list[str]:
        """The reasons why ``state`` cannot be loaded, in words; empty if it fits."""
        had, has = ({name: w.shape for name, w in weights.items()} for weights in (state, self.state_dict()))
        return [] if had == has else [f"{len(had)} weights of the discriminator -> {len(has)}, or other shapes"]


def _activate(x: Tensor) -> Tensor:
    normalised = F.group_norm(rearrange(x, "b t c -> b c t"), _GROUPS)
    return F.leaky_relu(rearrange(normalised, "b c t -> b t c"), 0.01)


class BlockFeatures:
    """The outputs of some blocks of a backbone as tokens [B, T, C], differentiable in x.

    Args:
        backbone: called as by the trainer, with the adapters off.
        blocks: modules inside it; if one has several outputs, the largest is used (image tokens, not text tokens).
    """

    def __init__(self, backbone: Callable[[Tensor, Tensor, Tensor], Tensor], blocks: Sequence[nn.Module]) -> None:
        self.backbone, self.blocks = backbone, list(blocks)

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor) -> list[Tensor]:
        # If the backbone cannot batch these captions, it runs once per row, and so does every block.
        found: list[list[Tensor]] = [[] for _ in self.blocks]

        def keeper(parts: list[Tensor]) -> Callable[[nn.Module, object, Tensor | Sequence[Tensor | None]], None]:
            return lambda module, arguments, output: parts.append(_tokens(output))

        with ExitStack() as stack:
            for block, parts in zip(self.blocks, found, strict=True):
                stack.callback(block.register_forward_hook(keeper(parts)).remove)
            self.backbone(x, sigma, captions)
        return [torch.cat(parts) for parts in found if parts]


def _tokens(output: Tensor | Sequence[Tensor | None]) -> Tensor:
    if not isinstance(output, Tensor):
        output = max((part for part in output if part is not None), key=Tensor.numel)
    return output if output.ndim == 3 else rearrange(output, "b c ... -> b (...) c")


class Discriminator:
    """A discriminator made of features and heads.

    Args:
        features: ``(x, sigma [B], captions [B]) -> [[B, T, C], ...]``, of the frozen backbone, differentiable in x.
        heads: heads for the widths of these features.
    """

    def __init__(self, features: Features, heads: DiscriminatorHeads) -> None:
        self.features, self.heads = features, heads

    def level(
        self, grid: SolverGrid, index: Tensor, generator: torch.Generator, span: tuple[float, float] = (0.0, 1.0)
    ) -> Tensor:
        """Draw a noise level inside the phase of each sample, [B] on the CPU: the sigma of a solver point of the phase.

        ``span`` is the range of the phase's points to draw from: (0, 1) is all of them, (0, 0.25) the lowest quarter.
        """
        low, high = span
        draw = low + (high - low) * torch.rand(len(index), generator=generator)
        same = grid.edge[index][:, None] == grid.edge[None, :]
        first, count = same.int().argmax(1), same.sum(1)
        return grid.sigma[first + (draw * count).long().clamp(max=count - 1)]
