"""The demo world's own measures, which see with the judge of ``demo.score``."""

from __future__ import annotations

import torch
from torch import Tensor

from demo.judge import JUDGE_FILE, correct, load_judge
from demo.score import crispness, labels_of
from demo.train_vae import WEIGHTS
from demo.world import parse_prompt

from ..metrics.distance import frechet
from ..metrics.features import read_ahead
from ..metrics.measures import Folder, Measure
from ..metrics.networks import fingerprint


class JudgeNetwork:
    """The judge's 48 features of uint8 [B, 3, 64, 64]."""

    name = "demo-judge"

    def __init__(self) -> None:
        self.judge, self.fingerprint = load_judge(), fingerprint(WEIGHTS / JUDGE_FILE)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.judge(images.float() / 255)


_NETWORK: list[JudgeNetwork] = []


def _judge() -> JudgeNetwork:
    if not _NETWORK:
        _NETWORK.append(JudgeNetwork())
    return _NETWORK[0]


def _distance(a: Folder, b: Folder) -> float:
    return frechet(a.features_by(_judge()).stacked(), b.features_by(_judge()).stacked())


def _accuracy(a: Folder, _: Folder) -> float:
    rows = a.features_by(_judge()).rows
    features = torch.cat([rows[item.name] for item in a.items])
    prompts = [prompt for text in a.prompts if (prompt := parse_prompt(text)) is not None]
    scene = labels_of(prompts)
    return correct(_judge().judge, features, scene).all(1).float().mean().item()


def _edges(a: Folder, _: Folder) -> float:
    return torch.cat([crispness(frames.float() / 255) for _, frames in read_ahead(a.items)]).mean().item()


MEASURES = {
    "demo_distance": Measure(label="FDt", take=_distance, reference=True, better="lower"),
    "demo_accuracy": Measure(label="accuracy", take=_accuracy, better="higher", digits=3),
    "demo_edges": Measure(label="edges", take=_edges, better="higher"),
}
