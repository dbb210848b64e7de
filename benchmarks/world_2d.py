"""A two-dimensional world with an exact solution: nine Gaussians, their exact denoiser, and a small network to distil.

Run as a script it measures the exact teacher: how far DDIM with N steps is from the data and from the end of its own
probability flow.

    python -m benchmarks.world_2d
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.common import markdown
from pcm_core.distill import Denoiser, SolverGrid, as_denoiser, phased_loss
from pcm_core.phases import build_schedule
from pcm_core.sampling import sample_pcm


def sigma_table() -> Tensor:
    """Stable Diffusion's training sigmas, ascending, float32 [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas) / alphas).sqrt().float()


@dataclass(frozen=True)
class World:
    """Eight modes of unequal weight on a ring and one at the centre."""

    radius: float = 1.4
    std: float = 0.12

    @property
    def means(self) -> Tensor:
        angle = torch.arange(8) * (math.pi / 4)
        return torch.cat([self.radius * torch.stack([angle.cos(), angle.sin()], dim=1), torch.zeros(1, 2)])

    @property
    def weights(self) -> Tensor:
        weights = torch.cat([torch.linspace(0.5, 1.5, 8), torch.ones(1)])
        return weights / weights.sum()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Clean points [count, 2]."""
        mode = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.means[mode] + self.std * torch.randn(count, 2, generator=generator)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact expectation of x0 given ``x`` [B, 2] at ``sigma`` [B]."""
        variance = (self.std**2 + sigma.square())[:, None]
        distance = (x[:, None] - self.means.to(x)).square().sum(-1)
        mean = (self.weights.to(x).log() - distance / (2 * variance)).softmax(1) @ self.means.to(x)
        return mean + self.std**2 / variance * (x - mean)

    def off_mode(self, x: Tensor) -> float:
        """Fraction of points more than four standard deviations from every mode; 0.0003 for the data itself."""
        return (torch.cdist(x, self.means).min(1).values > 4 * self.std).float().mean().item()


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 256) -> float:
    """Sliced 2-Wasserstein distance of two point sets of equal size, over evenly spaced directions."""
    angle = torch.arange(directions) * (math.pi / directions)
    axes = torch.stack([angle.cos(), angle.sin()])
    return ((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean().sqrt().item()


def start_noise(count: int, seed: int, table: Tensor) -> Tensor:
    """Starting points [count, 2] at ``table[-1]``, scaled as in the host for a full denoise."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return noise * (1 + table[-1].square()).sqrt()


@torch.no_grad()
def exact_endpoint(model: Denoiser, x: Tensor, table: Tensor) -> Tensor:
    """The end of the probability flow: Heun's method over every entry of the table, then to sigma 0."""
    levels = table.flip(0).tolist()
    for sigma, below in pairwise(levels):
        ones = x.new_ones(len(x))
        slope = (x - model(x, sigma * ones)) / sigma
        guess = x + (below - sigma) * slope
        x = x + (below - sigma) * (slope + (guess - model(guess, below * ones)) / below) / 2
    return model(x, levels[-1] * x.new_ones(len(x)))


class Network(nn.Module):
    """Three residual blocks modulated by the noise level; predicts eps from the unit-variance x."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * 0.25)
        self.level = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.enter, self.leave = nn.Linear(2, width), nn.Linear(width, 2)
        self.film = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        phase = sigma.log()[:, None] * self.frequencies
        level = self.level(torch.cat([phase.sin(), phase.cos()], dim=1))
        h = self.enter(x)
        for film, inner, outer in zip(self.film, self.inner, self.outer, strict=True):
            scale, shift = film(level).chunk(2, dim=1)
            h = h + outer(nn.functional.silu(inner(h) * (1 + scale) + shift))
        return self.leave(h)

    @property
    def denoiser(self) -> Denoiser:
        return as_denoiser(self, "eps")


def imitate(world: World, table: Tensor, *, steps: int, batch: int = 384, seed: int = 0) -> Network:
    """A network trained to predict the exact eps: a teacher with the student's architecture."""
    torch.manual_seed(seed)
    network, generator = Network(), torch.Generator().manual_seed(seed)
    optimizer, rate = _adam(network, steps)
    for _ in range(steps):
        sigma = table[torch.randint(len(table), (batch,), generator=generator)]
        x = world.draw(batch, generator) + sigma[:, None] * torch.randn(batch, 2, generator=generator)
        eps = (x - world.denoise(x, sigma)) / sigma[:, None]
        loss = (network(x * (1 + sigma.square()).rsqrt()[:, None], sigma) - eps).square().mean()
        _update(optimizer, rate, loss)
    return network


def distil(network: Network, world: World, grid: SolverGrid, *, steps: int, batch: int = 384, seed: int = 0) -> Network:
    """Train a copy of ``network`` with the library's phased loss; returns its EMA (decay 0.999)."""
    student, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer, rate = _adam(student, steps)
    for step in range(steps):
        clean, noise = world.draw(batch, generator), torch.randn(batch, 2, generator=generator)
        index = torch.randint(len(grid), (batch,), generator=generator)
        model = student.denoiser
        _update(optimizer, rate, phased_loss(model, world.denoise, model, clean, noise, index, grid, flow=False))
        with torch.no_grad():
            decay = min(0.999, (step + 1) / (step + 10))
            for kept, new in zip(average.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
    return average


def _adam(network: Network, steps: int) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def _update(optimizer: torch.optim.Adam, rate: torch.optim.lr_scheduler.LRScheduler, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()


def main() -> None:
    world, table = World(), sigma_table()
    data = world.draw(8192, torch.Generator().manual_seed(1))
    again = world.draw(8192, torch.Generator().manual_seed(2))
    x = start_noise(8192, 0, table)
    exact = exact_endpoint(world.denoise, x, table)
    rows = [["data", f"{sliced_wasserstein(again, data):.3f}", "", f"{world.off_mode(again):.4f}"]]
    rows += [["exact flow", f"{sliced_wasserstein(exact, data):.3f}", "0", f"{world.off_mode(exact):.4f}"]]
    for steps in (1, 2, 4, 8, 16, 25, 50):
        end = sample_pcm(world.denoise, x, build_schedule(steps).sigmas(table))
        distance = (end - exact).norm(dim=1).mean().item()
        figures = (sliced_wasserstein(end, data), distance, world.off_mode(end))
        rows.append([f"DDIM, {steps}", *(f"{figure:.3f}" for figure in figures)])
    print(markdown(["teacher, steps", "SW to data", "distance to the exact end", "off mode"], rows))


if __name__ == "__main__":
    main()
