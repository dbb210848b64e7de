"""Networks made of blocks, and a simulated device that tracks which weights are on it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pcm_core import distill
from pcm_core.distill import streaming

FLOW_TABLE = torch.arange(1, 1001) / 1000


class Attending(nn.Module):
    """A pre-norm transformer block on tokens [B, T, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Tokens(nn.Module):
    """A flow transformer on latents [B, 4, H, W]; every pixel is a token."""

    def __init__(self, width: int = 64, depth: int = 6, filled: bool = True) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Attending(width) for _ in range(depth))
        if filled:
            fill(self)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        tokens = self.enter(torch.cat([x, level], 1).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens)
        return self.leave(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class Residual(nn.Module):
    def __init__(self, wide: int, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(wide, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(wide, width, 1)
        self.norm = nn.GroupNorm(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv2(F.silu(self.norm(self.conv1(x))))


class Levels(nn.Module):
    """A U-Net: skip connections use a block's output far from the block."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(5, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.down = nn.ModuleList(Residual(width, width) for _ in range(depth))
        self.up = nn.ModuleList(Residual(2 * width, width) for _ in range(depth))
        fill(self)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = self.enter(torch.cat([x, sigma.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1))
        kept: list[Tensor] = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), kept.pop()], 1))
        return self.leave(x)


def fill(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            size = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(size))
    network.requires_grad_(False)


def trainer(
    network: nn.Module,
    config: distill.DistillConfig,
    rank: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> tuple[distill.Adapters, distill.Trainer]:
    """Adapters with nonzero weights (at zero half of all gradients vanish), and a trainer on 16 latents."""
    generator = torch.Generator().manual_seed(1)
    adapters = distill.Adapters(distill.adaptable(network), rank, generator=generator, dtype=dtype)
    with torch.no_grad():
        for pair in adapters.pairs.values():
            pair.up.copy_(0.05 * torch.randn(pair.up.shape, generator=generator))
    data = distill.LatentSet([torch.randn(16, *shape, generator=generator)], [0])

    def backbone(x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return x - sigma.reshape(-1, 1, 1, 1) * network(x, sigma)

    return adapters, distill.Trainer(backbone, adapters, data, FLOW_TABLE, config, flow=True)


class CountedDevice(TorchDispatchMode):
    """A device that tracks which weights are on it: the carrier of ``streamed``, and a watcher of every operation.

    ``resident`` counts the bytes of loaded weights whose memory is still alive, whatever the streaming believes;
    ``most`` is their peak. An operation on a weight that was released, or on one that was never brought, fails.
    """

    def __init__(self, home: list[Tensor]) -> None:
        super().__init__()
        self.resident = self.most = self.brought = 0
        self._home = {tensor.untyped_storage()._cdata for tensor in home}
        self._released: set[int] = set()
        self._bringing = False

    def begin(self, tensors: list[Tensor]) -> list[Tensor]:
        self._bringing = True
        copies = [tensor.clone() for tensor in tensors]
        self._bringing = False
        for copy in copies:
            storage = copy.untyped_storage()
            self._released.discard(storage._cdata)
            self.resident += storage.nbytes()
            self.brought += storage.nbytes()
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.resident)
        return copies

    def finish(self, tensors: list[Tensor]) -> None:
        pass

    def release(self, tensors: list[Tensor]) -> None:
        self._released |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _freed(self, key: int, size: int) -> None:
        self.resident -= size
        self._released.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and func is not torch.ops.aten.detach.default:
                key = leaf.untyped_storage()._cdata
                assert key not in self._released, f"{func} on a weight that was released"
                assert self._bringing or key not in self._home, f"{func} on a weight that is not on the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(adapters: distill.Adapters, network: nn.Module, around: Callable[[], Any]) -> Iterator[CountedDevice]:
    """The network streamed through a counted device."""
    home = [tensor for block in distill.blocks(network) for tensor in (*block.parameters(), *block.buffers())]
    device = CountedDevice(home)
    with device, streaming.streamed(adapters, network, device, around):
        yield device
