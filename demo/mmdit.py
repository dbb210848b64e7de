"""A two-block SD3 transformer in plain torch, with the parameter names and arithmetic of the host's MMDiT.

Training it here needs no host; the host's UNETLoader reads the saved file as SD3 (tests compare the two).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from .taesd import LATENT_CHANNELS
from .world import POOLED_DIM, TOKEN_DIM

DEPTH = 2
HIDDEN = 64 * DEPTH  # the host derives the width from the depth
PATCH = 2
GRID = 4  # 64 pixels / 8 / PATCH


def timestep_embedding(t: Tensor, dim: int = 256) -> Tensor:
    """Sinusoidal features [B, dim] of the model time t = 1000 sigma, cosines first."""
    frequencies = torch.exp(
        -math.log(10000) * torch.arange(dim // 2, dtype=torch.float32, device=t.device) / (dim // 2)
    )
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def layer_norm(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(HIDDEN, 4 * HIDDEN)
        self.fc2 = nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class Attention(nn.Module):
    def __init__(self, pre_only: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        if not pre_only:
            self.proj = nn.Linear(HIDDEN, HIDDEN)


class Stream(nn.Module):
    """One stream (context or image) of a joint block: adaLN, its part of the attention, MLP."""

    def __init__(self, pre_only: bool = False) -> None:
        super().__init__()
        self.pre_only = pre_only
        self.attn = Attention(pre_only)
        if not pre_only:
            self.mlp = Mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, (2 if pre_only else 6) * HIDDEN))

    def before(self, x: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shift, scale, *rest = self.adaLN_modulation(c).chunk(2 if self.pre_only else 6, dim=1)
        return self.attn.qkv(modulate(layer_norm(x), shift, scale)), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, gates: tuple[Tensor, ...]) -> Tensor:
        gate_attention, shift, scale, gate_mlp = gates
        x = x + gate_attention.unsqueeze(1) * self.attn.proj(attended)
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(layer_norm(x), shift, scale))


class JointBlock(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.context_block = Stream(pre_only=last)
        self.x_block = Stream()

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        context_qkv, context_gates = self.context_block.before(context, c)
        x_qkv, x_gates = self.x_block.before(x, c)
        q, k, v = rearrange(torch.cat([context_qkv, x_qkv], dim=1), "b l (n h d) -> n b h l d", n=3, h=DEPTH)
        attended = rearrange(nn.functional.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")
        tokens = context.shape[1]
        if not self.context_block.pre_only:
            context = self.context_block.after(context, attended[:, :tokens], context_gates)
        return context, self.x_block.after(x, attended[:, tokens:], x_gates)


class FinalLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, PATCH * PATCH * LATENT_CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 2 * HIDDEN))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(layer_norm(x), shift, scale))


class Embedder(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class PatchEmbedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(LATENT_CHANNELS, HIDDEN, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MMDiT(nn.Module):
    """Velocity ``noise - x0`` of latents [B, 16, 8, 8] at model time [B] (1000 sigma); text [B, 3, 32] and [B, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder = PatchEmbedder()
        self.t_embedder = Embedder(256)
        self.y_embedder = Embedder(POOLED_DIM)
        self.context_embedder = nn.Linear(TOKEN_DIM, HIDDEN)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, GRID * GRID, HIDDEN))
        self.joint_blocks = nn.ModuleList(JointBlock(last=i == DEPTH - 1) for i in range(DEPTH))
        self.final_layer = FinalLayer()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ("adaLN_modulation" in name or name == "final_layer.linear"):
                nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        tokens = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(timestep_embedding(t)) + self.y_embedder(pooled)
        text = self.context_embedder(context)
        for block in self.joint_blocks:
            text, tokens = block(text, tokens, c)
        patches = self.final_layer(tokens, c)
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=GRID, p=PATCH, q=PATCH)
