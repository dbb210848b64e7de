"""A small Wan 2.1 transformer in plain torch, with the parameter names and arithmetic of the host's WanModel.

Training it here needs no host; the host's UNETLoader reads the saved file as Wan 2.1 (a test compares the two). Two
sizes that the host cannot derive from the weights are in the file's metadata.
"""

from __future__ import annotations

import json

import torch
from einops import rearrange
from torch import Tensor, nn

from .mmdit import layer_norm, timestep_embedding
from .wan_vae import LATENT_CHANNELS
from .world import TOKEN_DIM

DEPTH = 4
HIDDEN = 128
HEADS = 4
FFN = 384
PATCH = 2
METADATA = {"config": json.dumps({"transformer": {"num_heads": HEADS, "text_dim": TOKEN_DIM}})}


def rotations(frames: int, height: int, width: int) -> Tensor:
    """Rotary angles [tokens, head_dim / 2], with the host's split of the head among time, height and width."""
    head = HIDDEN // HEADS
    sizes = (head - 4 * (head // 6), 2 * (head // 6), 2 * (head // 6))
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (frames, height, width)), indexing="ij")
    axes = [
        place.reshape(-1, 1) / 10000.0 ** (torch.arange(0, size, 2, dtype=torch.float64) / size).float()
        for place, size in zip(places, sizes, strict=True)
    ]
    return torch.cat(axes, dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate neighbouring pairs of [B, H, L, D] by the angles [L, D / 2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos * a - sin * b, sin * a + cos * b], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Self-attention with rotary embeddings, or cross-attention to the text without them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(HIDDEN, eps=1e-6), nn.RMSNorm(HIDDEN, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor, angles: Tensor | None = None) -> Tensor:
        q, k, v = (rearrange(y, "b l (h d) -> b h l d", h=HEADS)
                   for y in (self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)))  # fmt: skip
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.o(rearrange(nn.functional.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)"))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.norm3 = nn.LayerNorm(HIDDEN, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(HIDDEN, FFN), nn.GELU(approximate="tanh"), nn.Linear(FFN, HIDDEN))
        self.modulation = nn.Parameter(torch.zeros(1, 6, HIDDEN))

    def forward(self, x: Tensor, e: Tensor, context: Tensor, angles: Tensor) -> Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + e).chunk(6, dim=1)
        y = layer_norm(x) * (1 + scale) + shift
        x = x + gate * self.self_attn(y, y, angles)
        x = x + self.cross_attn(self.norm3(x), context)
        return x + ffn_gate * self.ffn(layer_norm(x) * (1 + ffn_scale) + ffn_shift)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(HIDDEN, PATCH * PATCH * LATENT_CHANNELS)
        self.modulation = nn.Parameter(torch.zeros(1, 2, HIDDEN))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation + e[:, None]).chunk(2, dim=1)
        return self.head(layer_norm(x) * (1 + scale) + shift)


class Wan(nn.Module):
    """Velocity ``noise - x0`` of latents [B, 16, T, H, W] at model time [B] (1000 sigma); text [B, 3, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(LATENT_CHANNELS, HIDDEN, (1, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(TOKEN_DIM, HIDDEN), nn.GELU(approximate="tanh"), nn.Linear(HIDDEN, HIDDEN)
        )
        self.time_embedding = nn.Sequential(nn.Linear(256, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 6 * HIDDEN))
        blocks = [Block() for _ in range(DEPTH)]
        self.blocks = nn.ModuleList(blocks)
        self.head = Head()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        silent = [self.head.head.weight, *(block.cross_attn.o.weight for block in blocks)]
        for weight in (*silent, self.time_projection[1].get_parameter("weight")):
            nn.init.zeros_(weight)
        for block in blocks:
            nn.init.constant_(block.modulation[:, 2::3], 0.1)  # the gates

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        frames, height, width = x.shape[2], x.shape[3] // PATCH, x.shape[4] // PATCH
        tokens = self.patch_embedding(x).flatten(2).transpose(1, 2)
        e = self.time_embedding(timestep_embedding(t))
        e6 = self.time_projection(e).unflatten(1, (6, HIDDEN))
        text, angles = self.text_embedding(context), rotations(frames, height, width)
        for block in self.blocks:
            tokens = block(tokens, e6, text, angles)
        patches = self.head(tokens, e)
        return rearrange(patches, "b (t h w) (p q c) -> b c t (h p) (w q)", t=frames, h=height, p=PATCH, q=PATCH)
