"""A procedural world of coloured shapes: every image has a prompt, and every prompt can be checked.

``a {colour} {shape} on {background}`` is one of 136 prompts; position and size are random. Images are rendered from
signed distances with one pixel of antialiasing, so a seed gives a training set of any size without files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.16, 0.66, 0.24),
    "blue": (0.16, 0.34, 0.90),
    "yellow": (0.98, 0.84, 0.16),
    "purple": (0.58, 0.20, 0.76),
    "orange": (0.98, 0.52, 0.10),
}
BACKGROUNDS = {
    "white": (0.96, 0.96, 0.96),
    "black": (0.07, 0.07, 0.09),
    "gray": (0.55, 0.55, 0.57),
    "blue": (0.62, 0.78, 0.96),
    "green": (0.70, 0.90, 0.68),
    "pink": (0.98, 0.76, 0.84),
}
RADIUS = (14.0, 21.0)
MARGIN = 2.0

TOKEN_DIM = 32
POOLED_DIM = 32
POOLED_GAIN = 1.7


@dataclass(frozen=True)
class Prompt:
    """One prompt of the world, as indices into ``SHAPES``, ``COLOURS`` and ``BACKGROUNDS``."""

    shape: int
    colour: int
    background: int

    def __str__(self) -> str:
        return f"a {list(COLOURS)[self.colour]} {SHAPES[self.shape]} on {list(BACKGROUNDS)[self.background]}"


def all_prompts() -> list[Prompt]:
    """Every prompt of the world. Shape and background never share a colour name ("green on green")."""
    return [
        Prompt(s, c, b)
        for s in range(len(SHAPES))
        for c, colour in enumerate(COLOURS)
        for b, background in enumerate(BACKGROUNDS)
        if colour != background
    ]


def parse_prompt(text: str) -> Prompt | None:
    """Parse a typed prompt. An empty text is the null prompt (``None``).

    Raises:
        ValueError: if a word is missing or unknown; the message lists the known words.
    """
    if not text.strip():
        return None
    words = re.findall(r"[a-z]+", text.lower())
    if "on" not in words:
        raise ValueError(f'The prompt "{text}" has no background. Write it as "a red circle on blue".')
    split = words.index("on")
    before, after = words[:split], words[split + 1 :]
    return Prompt(
        pick(before, SHAPES, "shape", text),
        pick(before, tuple(COLOURS), "colour", text),
        pick(after, tuple(BACKGROUNDS), "background", text),
    )


def pick(words: list[str], vocabulary: tuple[str, ...], what: str, text: str) -> int:
    """The index of the single word of a vocabulary that the text contains."""
    found = [vocabulary.index(word) for word in words if word in vocabulary]
    if len(found) != 1:
        raise ValueError(f'The prompt "{text}" must name exactly one {what} of: {", ".join(vocabulary)}.')
    return found[0]


def embed(prompts: list[Prompt | None]) -> tuple[Tensor, Tensor]:
    """Text encoder of the world: ``(context [B, 3, 32], pooled [B, 32])`` in float32.

    A word is a row of a fixed random orthogonal matrix. The null prompt is all zeros, which is what the stock
    ConditioningZeroOut makes, so every way of the host to make a negative works.
    """
    context = torch.zeros(len(prompts), 3, TOKEN_DIM)
    for row, prompt in enumerate(prompts):
        if prompt is not None:
            context[row] = TOKENS[_token_ids(prompt)]
    return context, POOLED_GAIN * context.mean(1)


def _token_ids(prompt: Prompt) -> list[int]:
    shapes, colours = len(SHAPES), len(COLOURS)
    return [prompt.shape, shapes + prompt.colour, shapes + colours + prompt.background]


def _orthogonal_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(2405)
    matrix = torch.randn(TOKEN_DIM, TOKEN_DIM, generator=generator, dtype=torch.float64)
    return (torch.linalg.qr(matrix)[0] * TOKEN_DIM**0.5).float()


TOKENS = _orthogonal_tokens()


@dataclass(frozen=True)
class Scene:
    """A batch of drawings: class indices [B] and geometry [B, 3] = (radius, centre x, centre y) in pixels."""

    shape: Tensor
    colour: Tensor
    background: Tensor
    geometry: Tensor

    def __len__(self) -> int:
        return self.shape.shape[0]


def sample_scene(count: int, generator: torch.Generator, prompts: list[Prompt] | None = None) -> Scene:
    """Sample ``count`` scenes: the given prompts in order, or uniformly random ones."""
    if prompts is None:
        world = all_prompts()
        prompts = [world[i] for i in torch.randint(len(world), (count,), generator=generator).tolist()]
    labels = torch.tensor([(p.shape, p.colour, p.background) for p in prompts])
    uniform = torch.rand(count, 3, generator=generator)
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * uniform[:, 0]
    low, high = radius + MARGIN, SIZE - radius - MARGIN
    centre = low[:, None] + (high - low)[:, None] * uniform[:, 1:]
    return Scene(labels[:, 0], labels[:, 1], labels[:, 2], torch.cat([radius[:, None], centre], dim=1))


def render(scene: Scene) -> Tensor:
    """Render the scenes: float32 [B, 3, 64, 64] in 0..1."""
    radius, cx, cy = (g[:, None, None] for g in scene.geometry.unbind(1))
    axis = torch.arange(SIZE) + 0.5
    x, y = axis[None, None, :] - cx, axis[None, :, None] - cy
    distance = torch.stack([draw(x, y, radius) for draw in signed_distances.values()], dim=1)
    distance = distance[torch.arange(len(scene)), scene.shape]
    cover = (0.5 - distance).clamp(0, 1)[:, None]
    front = torch.tensor(list(COLOURS.values()))[scene.colour][:, :, None, None]
    back = torch.tensor(list(BACKGROUNDS.values()))[scene.background][:, :, None, None]
    return back + cover * (front - back)


def _box(x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    dx, dy = x.abs() - half_width, y.abs() - half_height
    outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
    return outside + torch.maximum(dx, dy).clamp(max=0)


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _box(x, y, 0.86 * radius, 0.86 * radius)


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Upright equilateral triangle: the maximum of three half-plane distances; exact inside and near the edges."""
    half = 0.5 * radius * 1.1
    tilted = 0.75**0.5 * x.abs() - 0.5 * (y - 0.12 * radius)
    return torch.maximum(y - 0.12 * radius - half, tilted - half)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    arm = 0.34 * radius
    return torch.minimum(_box(x, y, radius, arm), _box(x, y, arm, radius))


signed_distances = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
