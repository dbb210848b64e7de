"""A small Wan 2.1 video autoencoder in plain torch, with the parameter names and arithmetic of the host's WanVAE.

The host reads the width from the file, so a narrow model loads like any other. Three things make it cheap to train on a
CPU; the saved file computes exactly what was trained:

- clips are processed whole, not in the host's cached chunks, which compute the same;
- convolutions away from the bottleneck see one frame: the two earlier temporal taps of their kernels stay zero;
- surplus residual blocks and the attention have zero output weights, so they are the identity, and are skipped.

Frames are folded into the batch: [B * T, C, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d, interpolate, normalize, pad, silu

LATENT_CHANNELS = 16
WIDTH = 8
MULTIPLES = (1, 2, 4, 4)
STRIDE = 4  # frames per latent frame after the first

# The host's latent format for Wan 2.1: its VAE files work on ``latent * STD + MEAN``.
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
       3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


class CausalConv(nn.Module):
    """A 3x3x3 convolution, causal in time; with ``still`` only its latest temporal tap is used."""

    def __init__(self, inside: int, outside: int, size: int = 3, *, still: bool = True) -> None:
        super().__init__()
        self.still = still or size == 1
        self.weight = nn.Parameter(torch.zeros(outside, inside, size, size, size))
        self.bias = nn.Parameter(torch.zeros(outside))
        used = self.weight.data[:, :, -1:] if self.still else self.weight.data
        used.normal_(0, (inside * used[0, 0].numel()) ** -0.5)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        space = self.weight.shape[-1] // 2
        if self.still:
            return conv2d(x, self.weight[:, :, -1], self.bias, padding=space)
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
        clip = conv3d(pad(clip, (0, 0, 0, 0, 2, 0)), self.weight, self.bias, padding=(0, space, space))
        return clip.transpose(1, 2).flatten(0, 1)


class Norm(nn.Module):
    """RMS norm over the channels; in the host the attention's has one dimension less."""

    def __init__(self, channels: int, dimensions: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dimensions))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=1) * (len(self.gamma) ** 0.5 * self.gamma.reshape(-1, 1, 1))


class Block(nn.Module):
    """The host's residual block, or the identity if not ``active``."""

    def __init__(self, inside: int, outside: int, *, active: bool = True, still: bool = True) -> None:
        super().__init__()
        self.active = active
        convs = CausalConv(inside, outside, still=still), CausalConv(outside, outside, still=still)
        empty = nn.Identity()  # keeps the host's numbering
        self.residual = nn.Sequential(Norm(inside), empty, convs[0], Norm(outside), empty, empty, convs[1])
        nn.init.zeros_(convs[1].weight)
        self.shortcut = CausalConv(inside, outside, 1) if inside != outside else None
        if not active:
            nn.init.zeros_(convs[0].weight)
            self.requires_grad_(False)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        if not self.active:
            return x
        norm1, _, conv1, norm2, _, _, conv2_ = self.residual
        y = conv2_(silu(norm2(conv1(silu(norm1(x)), frames))), frames)
        return y + (x if self.shortcut is None else self.shortcut(x, frames))


class Attention(nn.Module):
    """The bottleneck's attention, not used: its output weights are zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        for parameter in (*self.to_qkv.parameters(), *self.proj.parameters()):
            nn.init.zeros_(parameter)
        self.requires_grad_(False)


class Resample(nn.Module):
    """Halve or double the resolution, and with ``time`` the frame rate: 2T - 1 frames to T, or back."""

    def __init__(self, channels: int, *, up: bool, time: bool) -> None:
        super().__init__()
        self.up = up
        conv = nn.Conv2d(channels, channels // 2, 3, padding=1) if up else nn.Conv2d(channels, channels, 3, stride=2)
        self.resample = nn.Sequential(nn.Identity(), conv)
        self.time_conv: nn.Conv3d | None = None
        if time:
            self.time_conv = nn.Conv3d(channels, channels * (2 if up else 1), (3, 1, 1))

    def forward(self, x: Tensor, frames: int) -> tuple[Tensor, int]:
        if self.up:
            x, frames = self.slower(x, frames)
            return self.resample[1](interpolate(x, scale_factor=2.0, mode="nearest-exact")), frames
        return self.faster(self.resample[1](pad(x, (0, 1, 0, 1))), frames)

    def faster(self, x: Tensor, frames: int) -> tuple[Tensor, int]:
        """Halve the frame rate: keep the first frame, then one output for three neighbours at stride two."""
        if self.time_conv is None or frames == 1:
            return x, frames
        clip = x.unflatten(0, (-1, frames))
        three = torch.cat([clip[:, 0:-2:2], clip[:, 1:-1:2], clip[:, 2::2]], dim=2)
        clip = torch.cat([clip[:, :1], self.mix(three)], dim=1)
        return clip.flatten(0, 1), clip.shape[1]

    def slower(self, x: Tensor, frames: int) -> tuple[Tensor, int]:
        """Double the frame rate: keep the first frame, then two outputs from each frame and the two before it.

        The window never includes the first frame.
        """
        if self.time_conv is None or frames == 1:
            return x, frames
        clip = x.unflatten(0, (-1, frames))
        past = pad(clip[:, 1:], (0, 0, 0, 0, 0, 0, 2, 0))
        two = self.mix(torch.cat([past[:, :-2], past[:, 1:-1], past[:, 2:]], dim=2))
        two = two.unflatten(2, (2, -1)).flatten(1, 2)
        clip = torch.cat([clip[:, :1], two], dim=1)
        return clip.flatten(0, 1), clip.shape[1]

    def mix(self, three: Tensor) -> Tensor:
        """``time_conv`` on three frames stacked as channels: [B, T, 3 C, H, W] to [B, T, C', H, W]."""
        assert self.time_conv is not None
        kernel = self.time_conv.weight[..., 0, 0].transpose(1, 2).flatten(1)[..., None, None]
        return conv2d(three.flatten(0, 1), kernel, self.time_conv.bias).unflatten(0, three.shape[:2])


class Half(nn.Module):
    """Encoder or decoder: layers under the host's names, run in order."""

    def run(self, x: Tensor, frames: int, layers: nn.Module) -> tuple[Tensor, int]:
        for layer in layers.children():
            x = x.contiguous(memory_format=torch.channels_last)  # temporal convolutions lose it, which doubles the cost
            if isinstance(layer, Resample):
                x, frames = layer(x, frames)
            elif not isinstance(layer, Attention):
                x = layer(x, frames)
        return x, frames


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, channels, still=False), Attention(channels),
                         Block(channels, channels, still=False))  # fmt: skip


class Encoder(Half):
    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH * m for m in (1, *MULTIPLES)]
        self.conv1 = CausalConv(3, widths[0])
        layers: list[nn.Module] = []
        for level in range(4):
            inside, outside = widths[level : level + 2]
            layers += [Block(inside, outside), Block(outside, outside, active=level == 3)]
            if level < 3:
                layers.append(Resample(outside, up=False, time=level > 0))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(widths[-1])
        self.head = nn.Sequential(Norm(widths[-1]), nn.Identity(), CausalConv(widths[-1], 2 * LATENT_CHANNELS))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Frames [B * T, 3, H, W] in -1..1 to [B * T', 32, H/8, W/8]."""
        x, frames = self.run(self.conv1(x, frames), frames, self.downsamples)
        x, frames = self.run(x, frames, self.middle)
        return self.head[2](silu(self.head[0](x)), frames)


class Decoder(Half):
    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH * m for m in (MULTIPLES[-1], *reversed(MULTIPLES))]
        self.conv1 = CausalConv(LATENT_CHANNELS, widths[0], still=False)
        self.middle = middle(widths[0])
        layers: list[nn.Module] = []
        for level in range(4):
            inside, outside = widths[level : level + 2]
            inside //= 2 if level else 1
            layers += [Block(inside, outside), Block(outside, outside), Block(outside, outside, active=False)]
            if level < 3:
                layers.append(Resample(outside, up=True, time=level < 2))
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(Norm(widths[-1]), nn.Identity(), CausalConv(widths[-1], 3))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        x, frames = self.run(self.conv1(x, frames), frames, self.middle)
        x, frames = self.run(x, frames, self.upsamples)
        return self.head[2](silu(self.head[0](x)), frames)


class WanVAE(nn.Module):
    """Clips [B, T, 3, H, W] in 0..1 to latents [B, 16, 1 + (T - 1) / 4, H/8, W/8] of unit scale, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def encode(self, clip: Tensor) -> Tensor:
        """T must be 4n + 1."""
        frames = self.encoder(2 * clip.flatten(0, 1) - 1, clip.shape[1])[:, :LATENT_CHANNELS]
        return frames.unflatten(0, (len(clip), -1)).transpose(1, 2)

    def decode(self, latent: Tensor) -> Tensor:
        """Not clamped."""
        pictures = self.decoder(latent.transpose(1, 2).flatten(0, 1), latent.shape[2])
        return (pictures.unflatten(0, (len(latent), -1)) + 1) / 2


def to_host(model: WanVAE) -> dict[str, Tensor]:
    """The host's state dict; its two 1x1 convolutions hold the scale and mean of Wan's latent format."""
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    nothing = torch.zeros(LATENT_CHANNELS)
    state["conv1.weight"] = torch.diag(torch.cat([std, nothing]))[..., None, None, None]
    state["conv1.bias"] = torch.cat([mean, nothing])
    state["conv2.weight"] = torch.diag(1 / std)[..., None, None, None]
    state["conv2.bias"] = -mean / std
    return state


def from_host(state: dict[str, Tensor]) -> WanVAE:
    """The model of a file that ``to_host`` made."""
    model = WanVAE()
    model.load_state_dict({key: state[key].float() for key in model.state_dict()})
    return model.eval().requires_grad_(False)
