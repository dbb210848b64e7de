"""The judge of the demo world: a small CNN that predicts shape, colour, background and geometry from an image.

Its 48-d hidden layer is the feature space of the Frechet distance. It is trained on real drawings only, lightly
blurred and noised so that decoder blur does not change the predicted class.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .train_vae import WEIGHTS, run_steps
from .world import BACKGROUNDS, COLOURS, SHAPES, SIZE, Scene, render, sample_scene

FEATURES = 48
JUDGE_FILE = "judge.safetensors"


class Judge(nn.Module):
    """Pictures [B, 3, 64, 64] in 0..1 to features [B, 48]; ``heads`` reads the labels from the features."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 16, 32, 64, 64)
        self.convs = nn.ModuleList(
            nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
            for inside, outside in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for outside in channels[1:])
        self.hidden = nn.Linear(64 * 4 * 4, FEATURES)
        self.heads = nn.Linear(FEATURES, len(SHAPES) + len(COLOURS) + len(BACKGROUNDS) + 3)

    def forward(self, picture: Tensor) -> Tensor:
        x = picture - 0.5
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return torch.relu(self.hidden(x.flatten(1)))

    def read(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of shape, colour and background, and geometry [B, 3] in pixels."""
        parts = self.heads(features).split([len(SHAPES), len(COLOURS), len(BACKGROUNDS), 3], dim=1)
        return parts[0], parts[1], parts[2], parts[3] * SIZE


def blur_and_noise(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Mix in 0..100 % of a 3x3 blur and up to 3 % noise, per image."""
    amount = torch.rand(len(picture), 1, 1, 1, generator=generator)
    padded = nn.functional.pad(picture, (1, 1, 1, 1), mode="replicate")
    picture = torch.lerp(picture, nn.functional.avg_pool2d(padded, 3, stride=1), amount)
    strength = 0.03 * torch.rand(len(picture), 1, 1, 1, generator=generator)
    return picture + strength * torch.randn(picture.shape, generator=generator)


def train_judge(steps: int, seed: int = 0, batch: int = 64, folder: Path = WEIGHTS) -> Judge:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge()

    def loss(_: int) -> Tensor:
        scene = sample_scene(batch, generator)
        shape, colour, background, geometry = judge.read(judge(blur_and_noise(render(scene), generator)))
        cross_entropy = nn.functional.cross_entropy
        labels = cross_entropy(shape, scene.shape) + cross_entropy(colour, scene.colour)
        labels = labels + cross_entropy(background, scene.background)
        return labels + 20 * nn.functional.mse_loss(geometry / SIZE, scene.geometry / SIZE)

    run_steps("judge", steps, judge.parameters(), loss, lr=3e-3, weight_decay=1e-3)
    half = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    save_file({key: value.contiguous() for key, value in half.items()}, folder / JUDGE_FILE)
    return judge


def load_judge(folder: Path = WEIGHTS) -> Judge:
    judge = Judge()
    judge.load_state_dict(load_file(folder / JUDGE_FILE))
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def correct(judge: Judge, features: Tensor, scene: Scene) -> Tensor:
    """Bool [B, 3]: are shape, colour and background what the scene's prompt asked for?"""
    shape, colour, background, _ = judge.read(features)
    hits = [logits.argmax(1) == label for logits, label in
            ((shape, scene.shape), (colour, scene.colour), (background, scene.background))]  # fmt: skip
    return torch.stack(hits, dim=1)
