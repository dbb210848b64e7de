"""A narrow autoencoder that ships as a full TAESD.

The host loads TAESD files of one size only: 64 channels everywhere, too slow to train on a CPU. We train the same graph
with fewer channels, more of them at lower resolution, and export it by zero padding. A padded channel is zero before
and after every ReLU, and an all-zero Block is the identity on non-negative input, so the exported file computes exactly
what was trained. ``narrow`` undoes the padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LATENT_CHANNELS = 16
FULL_WIDTH = 64

# (module index in the host's nn.Sequential, kind, channels in, channels out)
Layer = tuple[int, str, int, int]
ENCODER: tuple[Layer, ...] = (
    (0, "conv", 3, 8),
    (1, "block", 8, 8),
    (2, "down", 8, 16),
    (3, "block", 16, 16),
    (6, "down", 16, 32),
    (7, "block", 32, 32),
    (10, "down", 32, 64),
    (11, "block", 64, 64),
    (12, "block", 64, 64),
    (14, "conv", 64, LATENT_CHANNELS),
)
DECODER: tuple[Layer, ...] = (
    (1, "conv", LATENT_CHANNELS, 64),
    (3, "block", 64, 64),
    (4, "block", 64, 64),
    (5, "block", 64, 64),
    (7, "up", 64, 40),
    (8, "block", 40, 40),
    (9, "block", 40, 40),
    (12, "up", 40, 24),
    (13, "block", 24, 24),
    (17, "up", 24, 16),
    (18, "block", 16, 16),
    (19, "conv", 16, 3),
)


class Block(nn.Module):
    """TAESD's residual block. Its last convolution is zero-initialised, so that a deep stack trains from the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        nn.init.zeros_(convs[2].weight)
        nn.init.zeros_(convs[2].bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class _Half(nn.Module):
    """Encoder or decoder, built from its layer table. Submodules are named by the host's indices."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self.layers = layers
        for index, kind, inside, outside in layers:
            if kind == "block":
                module: nn.Module = Block(outside)
            else:
                stride, bias = (2 if kind == "down" else 1), kind == "conv"
                module = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=bias)
            self.add_module(str(index), module)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.weight.any():
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        for index, kind, *_ in self.layers:
            if kind == "up":
                x = nn.functional.interpolate(x, scale_factor=2.0)
            x = getattr(self, str(index))(x)
            if index == 1 and kind == "conv":  # the decoder's ReLU after its first convolution
                x = torch.relu(x)
        return x


class Autoencoder(nn.Module):
    """Images [B, 3, H, W] in 0..1 to latents [B, 16, H/8, W/8] of unit scale, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Half(ENCODER)
        self.decoder = _Half(DECODER)

    def encode(self, picture: Tensor) -> Tensor:
        return self.encoder(picture)

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(3 * torch.tanh(latent / 3))


def widen(half: _Half) -> dict[str, Tensor]:
    """The host's state dict of a trained half, zero-padded to 64 channels, with all-zero Blocks for missing ones."""
    trained = half.state_dict()
    return {key: _pad(trained.get(key), shape) for key, shape in _full_shapes(half.layers).items()}


def narrow(half: _Half, state_dict: dict[str, Tensor]) -> None:
    """Load a file made by ``widen`` back into a narrow half."""
    own = half.state_dict()
    half.load_state_dict({key: _crop(state_dict[key], value.shape).float() for key, value in own.items()})


def _pad(tensor: Tensor | None, shape: torch.Size) -> Tensor:
    out = torch.zeros(shape)
    if tensor is not None:
        out[tuple(slice(n) for n in tensor.shape)] = tensor
    return out


def _crop(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor[tuple(slice(n) for n in shape)]


def _full_shapes(layers: tuple[Layer, ...]) -> dict[str, torch.Size]:
    """Parameter names and shapes of the host's TAESD half."""
    first, last = layers[0], layers[-1]
    scaling = {index for index, kind, *_ in layers if kind in ("down", "up")}
    skipped = {2, 6, 11, 16} if first[0] == 1 else set()  # ReLU and Upsample have no parameters
    shapes: dict[str, torch.Size] = {}
    for index in range(first[0], last[0] + 1):
        if index in skipped:
            continue
        if index in (first[0], last[0]) or index in scaling:
            inside = first[2] if index == first[0] else FULL_WIDTH
            outside = last[3] if index == last[0] else FULL_WIDTH
            shapes[f"{index}.weight"] = torch.Size((outside, inside, 3, 3))
            if index not in scaling:
                shapes[f"{index}.bias"] = torch.Size((outside,))
        else:
            for conv in (0, 2, 4):
                shapes[f"{index}.conv.{conv}.weight"] = torch.Size((FULL_WIDTH, FULL_WIDTH, 3, 3))
                shapes[f"{index}.conv.{conv}.bias"] = torch.Size((FULL_WIDTH,))
    return shapes
