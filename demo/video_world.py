"""A procedural world of moving shapes: ``a {colour} {shape} moving {direction}`` is one of 90 prompts.

Position and size are random; the shape moves at a constant speed inside a grey border. Clips are rendered from the
signed distances of ``world``, so a seed gives a training set of any size without files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .world import COLOURS, TOKENS, pick, signed_distances

SIZE = 48
FRAMES = 13
SHAPES = ("circle", "square", "triangle")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
BACKGROUND = (0.95, 0.95, 0.96)
FRAME = (0.55, 0.55, 0.57)
FRAME_WIDTH = 2
RADIUS = (8.0, 11.0)
TRAVEL = (12.0, 18.0)  # pixels from the first frame to the last
MARGIN = FRAME_WIDTH + 1.0


@dataclass(frozen=True)
class VideoPrompt:
    """One prompt of the world, as indices into ``SHAPES``, ``COLOURS`` and ``MOTIONS``."""

    shape: int
    colour: int
    motion: int

    def __str__(self) -> str:
        motion = list(MOTIONS)[self.motion]
        what = "standing still" if motion == "still" else f"moving {motion}"
        return f"a {list(COLOURS)[self.colour]} {SHAPES[self.shape]} {what}"


def all_video_prompts() -> list[VideoPrompt]:
    """Every prompt of the world."""
    return [VideoPrompt(s, c, m) for s in range(len(SHAPES)) for c in range(len(COLOURS)) for m in range(len(MOTIONS))]


def parse_video_prompt(text: str) -> VideoPrompt | None:
    """Parse a typed prompt. An empty text is the null prompt (``None``).

    Raises:
        ValueError: if a word is missing or unknown; the message lists the known words.
    """
    if not text.strip():
        return None
    words = re.findall(r"[a-z]+", text.lower())
    return VideoPrompt(
        pick(words, SHAPES, "shape", text),
        pick(words, tuple(COLOURS), "colour", text),
        pick(words, tuple(MOTIONS), "motion", text),
    )


def embed_video(prompts: list[VideoPrompt | None]) -> Tensor:
    """Text encoder of the world: context [B, 3, 32] in float32; a word is a row of a fixed orthogonal matrix.

    The null prompt is all zeros, which is what the stock ConditioningZeroOut makes.
    """
    context = torch.zeros(len(prompts), 3, TOKENS.shape[1])
    for row, prompt in enumerate(prompts):
        if prompt is not None:
            shapes, colours = len(SHAPES), len(COLOURS)
            context[row] = TOKENS[[prompt.shape, shapes + prompt.colour, shapes + colours + prompt.motion]]
    return context


@dataclass(frozen=True)
class Clips:
    """A batch of clips: class indices [B], radius [B] in pixels, centres [B, frames, 2] = (x, y) in pixels."""

    shape: Tensor
    colour: Tensor
    motion: Tensor
    radius: Tensor
    centres: Tensor

    def __len__(self) -> int:
        return self.shape.shape[0]


def sample_clips(
    count: int, generator: torch.Generator, prompts: list[VideoPrompt] | None = None, frames: int = FRAMES
) -> Clips:
    """Sample ``count`` clips: the given prompts in order, or uniformly random ones."""
    if prompts is None:
        world = all_video_prompts()
        prompts = [world[i] for i in torch.randint(len(world), (count,), generator=generator).tolist()]
    labels = torch.tensor([(p.shape, p.colour, p.motion) for p in prompts])
    uniform = torch.rand(count, 4, generator=generator)
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * uniform[:, 0]
    room = SIZE - 2 * (radius + MARGIN)  # range of the centre on each axis
    speed = TRAVEL[0] + (TRAVEL[1] - TRAVEL[0]) * uniform[:, 1]
    travel = torch.tensor(list(MOTIONS.values()), dtype=torch.float32)[labels[:, 2]] * speed[:, None]
    middle = SIZE / 2 + (uniform[:, 2:] - 0.5) * (room[:, None] - travel.abs())  # of the path
    share = torch.linspace(-0.5, 0.5, FRAMES)[:frames]
    centres = middle[:, None] + share[None, :, None] * travel[:, None]
    return Clips(labels[:, 0], labels[:, 1], labels[:, 2], radius, centres)


def render_clips(clips: Clips) -> Tensor:
    """Render the clips: float32 [B, frames, 3, 48, 48] in 0..1."""
    cover = coverage(clips.shape, clips.radius, clips.centres)[:, :, None]
    front = torch.tensor(list(COLOURS.values()))[clips.colour][:, None, :, None, None]
    back = empty_picture()
    return back + cover * (front - back)


def coverage(shape: Tensor, radius: Tensor, centres: Tensor) -> Tensor:
    """Fraction of each pixel the shape covers: [B, frames, 48, 48] for labels [B], radii [B], centres [B, frames, 2].

    A radius may also be given per frame, [B, frames].
    """
    axis = torch.arange(SIZE) + 0.5
    x = axis[None, None, None, :] - centres[..., 0, None, None]
    y = axis[None, None, :, None] - centres[..., 1, None, None]
    radius = (radius if radius.ndim == 2 else radius[:, None])[..., None, None]
    drawn = [signed_distances[name](x, y, radius).expand(*x.shape[:2], SIZE, SIZE) for name in SHAPES]
    distance = torch.stack(drawn, dim=1)
    return (0.5 - distance[torch.arange(len(shape)), shape]).clamp(0, 1)


def empty_picture() -> Tensor:
    """The scene without a shape: [3, 48, 48], light with a grey border."""
    picture = torch.tensor(FRAME)[:, None, None].repeat(1, SIZE, SIZE)
    inner = slice(FRAME_WIDTH, SIZE - FRAME_WIDTH)
    picture[:, inner, inner] = torch.tensor(BACKGROUND)[:, None, None]
    return picture
