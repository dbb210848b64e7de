"""Measure a folder of pictures or clips, alone or against another.

    pcm metrics A B               likeness of items of one name: PSNR, SSIM
    pcm metrics A B --inception weights-inception-2015-12-05-6726825d.pth      and FID
    pcm metrics A B --clip clip-vit-large-patch14       and consistency and CLIP score
    pcm metrics A                 of clips: optical flow, change between frames

A is measured, B is the reference. Both are folders, or
``http://HOST:PORT/history/PROMPT_ID`` for what a running ComfyUI made; ``pcm generate`` makes a folder of any size.
Nothing is downloaded without ``--download``.
FID and optical flow need ``pip install ".[metrics]"``; CLIP needs transformers, which ComfyUI has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcm_core.metrics import cosine, mean, psnr, ssim

from .sources import Item, SourceError, read

EXTRA = 'pip install ".[metrics]"'
CLIP = "openai/clip-vit-large-patch14"
BATCH = 32
Figures = dict[str, float]


class MissingError(Exception):
    """A measure that cannot be taken, and what it lacks."""


# Likeness of pairs


def pairs(a: Sequence[Item], b: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Items of one name.

    Raises:
        MissingError: if none of A has a partner in B.
    """
    named = {item.name: item for item in b}
    found = [(item, named[item.name]) for item in a if item.name in named]
    if not found:
        raise MissingError("no name is in both A and B")
    return found


def likeness(both: Sequence[tuple[Item, Item]]) -> Figures:
    """Mean PSNR in dB and SSIM over pairs of one shape.

    Raises:
        MissingError: if a pair has two shapes.
    """
    for one, other in both:
        if one.frames.shape != other.frames.shape:
            raise MissingError(f'"{one.name}" is {_size(one)} in A and {_size(other)} in B')
    values = [(_unit(one), _unit(other)) for one, other in both]
    return {
        "PSNR dB": mean([psnr(one, other) for one, other in values]),
        "SSIM": mean([ssim(one, other) for one, other in values]),
    }


def _unit(item: Item) -> Tensor:
    """[T, H, W, 3] in 0..1."""
    return item.frames.movedim(1, -1) / 255


def _size(item: Item) -> str:
    frames, _, height, width = item.frames.shape
    return f"{frames} x {width} x {height}"


# Frechet distance


def frechet(a: Sequence[Item], b: Sequence[Item], features: torch.nn.Module | int, weights: Path | None) -> float:
    """Frechet distance between features of all frames of A and of B, by torchmetrics.

    Args:
        features: a module uint8 [B, 3, H, W] -> [B, F], or 2048 for the Inception network of FID.
        weights: of the Inception network; ``None`` lets torch-fidelity download them.

    Raises:
        MissingError: if torchmetrics or torch-fidelity is not installed, or there are too few pictures.
    """
    if min(sum(len(item.frames) for item in items) for items in (a, b)) < 2:
        raise MissingError("a covariance needs two pictures in A and in B, a meaningful one thousands")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        path = None if weights is None else str(weights)
        metric = FrechetInceptionDistance(features, feature_extractor_weights_path=path).eval()
    except ModuleNotFoundError as error:
        raise MissingError(f"it needs torchmetrics and torch-fidelity: {EXTRA}") from error
    with torch.inference_mode():
        for items, real in ((b, True), (a, False)):
            for batch in batches(items):
                metric.update(batch, real=real)
        return float(metric.compute())


class Features(torch.nn.Module):
    """A feature extractor of the user's own: a torch.export file, uint8 [B, 3, H, W] -> [B, F], B dynamic."""

    def __init__(self, path: Path, example: Tensor) -> None:
        super().__init__()
        try:
            self.extract = torch.export.load(path).module().__call__  # no submodule: it refuses .eval()
            self.num_features = int(self.extract(example).shape[-1])
        except Exception as error:  # whatever the file does
            raise SourceError(
                f"{path} does not work as a feature extractor ({error}). Write it with torch.export.save, for uint8 "
                "[B, 3, H, W] -> [B, F] with a dynamic B and the size of these pictures."
            ) from error

    def forward(self, pictures: Tensor) -> Tensor:
        return self.extract(pictures)


def batches(items: Sequence[Item]) -> Iterator[Tensor]:
    """All frames as uint8 [<= 32, 3, H, W], each batch of one size."""
    held: list[Tensor] = []
    for frame in (frame for item in items for frame in item.frames):
        if held and (len(held) == BATCH or held[0].shape != frame.shape):
            yield torch.stack(held)
            held = []
        held.append(frame)
    yield torch.stack(held)


# CLIP


class Clip:
    """A CLIP model in the folder layout of Hugging Face, and unit embeddings by it.

    Raises:
        MissingError: if transformers is not installed or the model is not there.
    """

    def __init__(self, name: str, download: bool) -> None:
        try:
            from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
        except ImportError as error:
            raise MissingError("it needs transformers: pip install transformers") from error
        options: Any = {"local_files_only": not download}
        try:
            self.model: Any = CLIPModel.from_pretrained(name, **options).eval()
            self.processor: Any = CLIPImageProcessor.from_pretrained(name, **options)
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(name, **options)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise MissingError(f"{name} does not load ({reason}); give --clip FOLDER, or --download") from error

    @torch.inference_mode()
    def pictures(self, frames: Tensor) -> Tensor:
        """Unit embeddings [N, D] of uint8 [N, 3, H, W]."""
        rows = [
            self.model.get_image_features(**self.processor(list(part), return_tensors="pt"))
            for part in frames.split(BATCH)
        ]
        return torch.cat([_unit_rows(row) for row in rows])

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, D]; a text longer than the model takes is cut off, as CLIP scores do."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )  # fmt: skip
        return _unit_rows(self.model.get_text_features(**tokens))


def _unit_rows(features: Any) -> Tensor:
    """transformers 5 wraps the projected features, earlier ones return them."""
    return torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)


def clip_score(clip: Clip, items: Sequence[Item], embedded: dict[str, Tensor]) -> float:
    """100 times the cosine of picture and prompt, at least 0, over all frames (Hessel et al. 2021, as torchmetrics).

    Raises:
        MissingError: if a prompt is not known.
    """
    bare = [item.name for item in items if item.prompt is None]
    if bare:
        raise MissingError(f'{len(bare)} items have no prompt, "{bare[0]}" first; put a .txt beside each')
    scores = [
        (embedded[item.name] @ clip.texts([item.prompt or ""])[0]).clamp(min=0).mean().item() * 100 for item in items
    ]
    return mean(scores)


def between_frames(embedded: Tensor) -> float:
    """Mean cosine of neighbouring frames."""
    return (embedded[1:] * embedded[:-1]).sum(-1).mean().item()


# Motion


def flow_magnitude(frames: Tensor) -> float:
    """Mean length in pixels of Farneback's optical flow between neighbouring frames of uint8 [T, 3, H, W].

    Raises:
        MissingError: if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingError(f"it needs OpenCV: {EXTRA}") from error
    grey = [cv2.cvtColor(np.ascontiguousarray(frame.movedim(0, -1).numpy()), cv2.COLOR_RGB2GRAY) for frame in frames]
    lengths: list[float] = []
    for one, other in itertools.pairwise(grey):
        start = np.zeros((*one.shape, 2), np.float32)
        flow = cv2.calcOpticalFlowFarneback(one, other, start, 0.5, 3, 15, 3, 5, 1.2, 0)
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
    return mean(lengths)


def frame_difference(frames: Tensor) -> float:
    """Mean absolute change of a pixel between neighbouring frames, in 0..1."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean().item() / 255


# All of them


class Report:
    """Figures by name, and for each that could not be taken why not."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.figures: Figures = {}
        self.absent: dict[str, str] = {}

    def take(self, name: str, measure: Callable[[], float | Figures]) -> None:
        """Add what ``measure`` returns, or its reason."""
        try:
            found = measure()
        except MissingError as missing:
            self.absent[name] = str(missing)
        else:
            self.figures |= found if isinstance(found, dict) else {name: found}

    def text(self) -> str:
        width = max(map(len, [*self.figures, *self.absent]))
        lines = [self.head, *(f"{name:<{width}}  {value:.4f}" for name, value in self.figures.items())]
        return "\n".join(lines + [f"{name:<{width}}  not measured: {why}" for name, why in self.absent.items()])


def measure(options: argparse.Namespace) -> Report:
    """Every measure that the sources and options allow."""
    a = read(options.a)
    b = read(options.b) if options.b else []
    shared = len({item.name for item in a} & {item.name for item in b})
    report = Report(f"A: {len(a)} items" + (f", B: {len(b)}, {shared} of one name" if b else ""))
    if b:
        report.take("PSNR, SSIM", lambda: likeness(pairs(a, b)))
        report.take("FID", lambda: _fid(a, b, options))
        if options.features:
            example = a[0].frames[:1]
            report.take("Frechet distance", lambda: frechet(a, b, Features(options.features, example), None))
    clips = [item for item in a if len(item.frames) > 1]
    if clips:
        report.take("frame difference", lambda: mean([frame_difference(item.frames) for item in clips]))
        report.take("flow, pixels", lambda: mean([flow_magnitude(item.frames) for item in clips]))
    measure_clip(report, a, b, options)
    return report


def _fid(a: Sequence[Item], b: Sequence[Item], options: argparse.Namespace) -> float:
    if options.inception is None and not options.download:
        raise MissingError("give its Inception weights with --inception FILE, or --download")
    return frechet(a, b, 2048, options.inception)


def measure_clip(report: Report, a: Sequence[Item], b: Sequence[Item], options: argparse.Namespace) -> None:
    """Consistency with B, likeness of neighbouring frames, and fit to the prompts."""
    wanted = ["CLIP score"] + (["consistency"] if b else [])
    wanted += ["consistency of frames"] if any(len(item.frames) > 1 for item in a) else []
    try:
        if options.clip is None and not options.download:
            raise MissingError("give a CLIP model with --clip FOLDER, or --download")
        clip = Clip(options.clip or CLIP, options.download)
    except MissingError as missing:
        report.absent |= dict.fromkeys(wanted, str(missing))
        return
    embedded = {item.name: clip.pictures(item.frames) for item in a}

    def consistency() -> float:
        rows = [(embedded[one.name], clip.pictures(other.frames)) for one, other in pairs(a, b)]
        if any(one.shape != other.shape for one, other in rows):
            raise MissingError("a clip has another length in A than in B")
        return mean([mean([cosine(x, y) for x, y in zip(one, other, strict=True)]) for one, other in rows])

    report.take("CLIP score", lambda: clip_score(clip, a, embedded))
    if b:
        report.take("consistency", consistency)
    frames = [rows for rows in embedded.values() if len(rows) > 1]
    if frames:
        report.take("consistency of frames", lambda: mean([between_frames(rows) for rows in frames]))


def parser() -> argparse.ArgumentParser:
    description = "Measure a folder of pictures or clips, alone or against another."
    parser = argparse.ArgumentParser(prog="pcm metrics", description=description)
    parser.add_argument("a", metavar="A", help="a folder, or http://HOST:PORT/history/PROMPT_ID")
    parser.add_argument("b", metavar="B", nargs="?", help="the reference, likewise")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="torch-fidelity's Inception weights, for FID")
    parser.add_argument("--features", type=Path, metavar="FILE", help="a torch.export feature extractor of your own")
    parser.add_argument("--clip", metavar="FOLDER", help="a CLIP model in the layout of Hugging Face")
    parser.add_argument("--download", action="store_true", help=f"fetch what is absent: Inception weights, {CLIP}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    for path in (options.inception, options.features, options.clip):
        if path is not None and not Path(path).exists():
            sys.exit(f"{path} is not there.")
    try:
        report = measure(options)
    except SourceError as error:
        sys.exit(str(error))
    print(report.text())
    if options.json:
        finite = {name: value if math.isfinite(value) else None for name, value in report.figures.items()}
        content = {"a": options.a, "b": options.b, "figures": finite, "not measured": report.absent}
        options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
