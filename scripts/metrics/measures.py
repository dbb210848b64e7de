"""Every measure by name: its networks, and how it is computed for a folder, alone or against another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from pcm_core.metrics import mean

from .clip import Aesthetics, Clip, unit
from .distance import frechet
from .features import Features, read_ahead
from .likeness import likeness, pairs
from .motion import between_frames, farneback, frame_difference
from .networks import Flow, Inception, Network, OwnFeatures
from .report import Figures, MissingError
from .sources import Item

CLIP = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of the networks; ``None`` for those that were not given.

    Attributes:
        absent: files that were given and are not there, by the name of their network.
        option: the form of the user's option for a network, for messages about missing ones.
    """

    inception: Path | None = None
    clip: str | None = None
    hps: Path | None = None
    hps21: Path | None = None
    pick: Path | None = None
    aes: Path | None = None
    raft: Path | None = None
    features: Path | None = None
    absent: Mapping[str, str] = field(default_factory=dict[str, str])
    download: bool = False
    device: str = "cpu"
    option: str = "--{name} {kind}"

    @property
    def paths(self) -> list[Path]:
        given = (self.inception, self.hps, self.hps21, self.pick, self.aes, self.raft, self.features)
        return [path for path in (*given, Path(self.clip) if self.clip and not self.download else None) if path]


class Networks:
    """The networks, each loaded at its first use."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._loaded: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The network of that name.

        Raises:
            MissingError: if its file was not given or cannot be used; the same error each time.
        """
        if name not in self._loaded:
            try:
                self._loaded[name] = getattr(self, f"_{name}")()
            except MissingError as missing:
                self._loaded[name] = missing
        found = self._loaded[name]
        if isinstance(found, MissingError):
            raise MissingError(str(found))
        return found

    def _given(self, name: str, what: str) -> Any:
        if name in self.files.absent:
            raise MissingError(f"{self.files.absent[name]} does not exist")
        if (path := getattr(self.files, name)) is None:
            also = ", or --download" if name in ("inception", "clip") and self.files.option.startswith("--") else ""
            kind = "FOLDER" if name in ("clip", "pick") else "FILE"
            raise MissingError(f"give {what} with {self.files.option.format(name=name, kind=kind)}{also}")
        return path

    def _inception(self) -> Inception:
        files = self.files
        path = None if files.download and files.inception is None else self._given("inception", "its Inception weights")
        return Inception(path, files.device)

    def _clip(self) -> Clip:
        files = self.files
        source = CLIP if files.download and files.clip is None else self._given("clip", "a CLIP model")
        return Clip(str(source), files.device, download=files.download)

    def _hps(self) -> Clip:
        return self._preference("hps", "the weights of HPS v2")

    def _hps21(self) -> Clip:
        return self._preference("hps21", "the weights of HPS v2.1")

    def _pick(self) -> Clip:
        return self._preference("pick", "the folder of PickScore")

    def _preference(self, name: str, what: str) -> Clip:
        return Clip(str(self._given(name, what)), self.files.device, name=name, tokenizer=self.files.clip)

    def _aes(self) -> Aesthetics:
        return Aesthetics(self._given("aes", "LAION's aesthetic predictor"))

    def _raft(self) -> Flow:
        return Flow(self._given("raft", "RAFT-Large's weights"), self.files.device)


class Folder:
    """Items to measure, and their features from every network that was used.

    Args:
        place: the folder beside which features are cached; ``None`` for items from a server.
    """

    def __init__(self, items: Sequence[Item], place: Path | None, networks: Networks) -> None:
        self.items, self.place, self.networks = items, place, networks
        self._features: dict[str, Features] = {}
        self._likeness: dict[int, Figures] = {}

    def only(self, names: set[str]) -> Folder:
        """The items with these names, with the features that are known."""
        part = Folder([item for item in self.items if item.name in names], self.place, self.networks)
        part._features = self._features
        return part

    @cached_property
    def clips(self) -> list[Item]:
        """The items with more than one frame.

        Raises:
            MissingError: if there are none.
        """
        found = [item for item in self.items if item.moves]
        if not found:
            raise MissingError("there are no clips")
        return found

    def read_all(self) -> None:
        """Read every item and forget it.

        Raises:
            SourceError: at the first that cannot be read.
        """
        for _ in read_ahead(self.items):
            pass

    def features(self, name: str) -> Features:
        """The features from the network of that name."""
        return self.features_by(self.networks.get(name))

    def features_by(self, network: Network) -> Features:
        if network.name not in self._features:
            self._features[network.name] = Features(self.items, network, self.place)
        return self._features[network.name]

    def likeness(self, other: Folder) -> Figures:
        """PSNR and SSIM, computed in one pass."""
        if id(other) not in self._likeness:
            self._likeness[id(other)] = likeness(pairs(self.items, other.items))
        return self._likeness[id(other)]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompt of every item.

        Raises:
            MissingError: if a prompt is not known.
        """
        bare = [item.name for item in self.items if item.prompt is None]
        if bare:
            raise MissingError(f'{len(bare)} items have no prompt, "{bare[0]}" first; put a .txt beside each')
        return [item.prompt or "" for item in self.items]

    def fit(self, name: str) -> list[Tensor]:
        """Cosines [T] of every item's frames and its prompt, with the CLIP model of that name."""
        clip, prompts = self.networks.get(name), self.prompts
        rows = self.features(name).rows
        texts = unit(clip.texts(prompts))
        return [unit(rows[item.name]) @ text for item, text in zip(self.items, texts, strict=True)]


Taken = Callable[[Folder, Folder], float]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of a folder.

    Attributes:
        label: its printed name.
        take: computes it for A, against B if it has a ``reference``.
        paired: whether it compares items of one name.
        clips: whether it applies to clips only.
        needs: the names of the networks that it uses.
        better: ``lower``, ``higher`` or neither.
    """

    label: str
    take: Taken
    reference: bool = False
    paired: bool = False
    clips: bool = False
    needs: tuple[str, ...] = ()
    better: str = ""
    digits: int = 2


def _frechet(name: str) -> Taken:
    return lambda a, b: frechet(a.features(name).stacked(), b.features(name).stacked())


def _clip_score(a: Folder, _: Folder) -> float:
    """100 times the cosine of image and prompt, at least 0, over all frames (Hessel et al. 2021, like torchmetrics)."""
    return 100 * mean([float(cosines.clamp(min=0).mean()) for cosines in a.fit("clip")])


def _preference(name: str) -> Taken:
    """The score of HPS v2: the cosine of image and prompt (Wu et al. 2023, img_score.py)."""
    return lambda a, _: mean([float(cosines.mean()) for cosines in a.fit(name)])


def _pick(a: Folder, _: Folder) -> float:
    """PickScore (Kirstain et al. 2023) divided by 100, as in the paper: the cosine times the model's own scale."""
    scale = a.networks.get("pick").scale / 100
    return scale * mean([float(cosines.mean()) for cosines in a.fit("pick")])


def _aes(a: Folder, _: Folder) -> float:
    head, rows = a.networks.get("aes"), a.features("clip").rows
    return mean([float(head(rows[item.name]).mean()) for item in a.items])


def _consistency(a: Folder, b: Folder) -> float:
    """Mean cosine of the CLIP embeddings of items with the same name, frame by frame (PCM, section 4.3)."""
    names = {one.name for one, _ in pairs(a.items, b.items)}
    ours, theirs = a.features("clip").rows, b.only(names).features("clip").rows
    found: list[float] = []
    for name in sorted(names):
        if len(ours[name]) != len(theirs[name]):
            raise MissingError("a clip has another length in A than in B")
        found.append(float((unit(ours[name]) * unit(theirs[name])).sum(-1).mean()))
    return mean(found)


def _of_clips(measure: Callable[[Tensor], float]) -> Taken:
    def take(a: Folder, _: Folder) -> float:
        return mean([measure(frames) for _, frames in read_ahead(a.clips)])

    return take


def _flow(a: Folder, _: Folder) -> float:
    raft = a.networks.get("raft")
    return mean([raft(frames) for _, frames in read_ahead(a.clips)])


def _clip_consistency(a: Folder, _: Folder) -> float:
    names, rows = [item.name for item in a.clips], a.features("clip").rows
    return mean([between_frames(rows[name]) for name in names])


_INCEPTION, _CLIP = ("inception",), ("clip",)
MEASURES: dict[str, Measure] = {
    "psnr": Measure(
        label="PSNR dB", take=lambda a, b: a.likeness(b)["PSNR dB"], reference=True, paired=True, better="higher"
    ),
    "ssim": Measure(
        label="SSIM", take=lambda a, b: a.likeness(b)["SSIM"], reference=True, paired=True, better="higher", digits=3
    ),
    "fid": Measure(label="FID", take=_frechet("inception"), reference=True, needs=_INCEPTION, better="lower"),
    "fid_clip": Measure(label="FID-CLIP", take=_frechet("clip"), reference=True, needs=_CLIP, better="lower"),
    "frame_difference": Measure(label="frame difference", take=_of_clips(frame_difference), clips=True, digits=4),
    "farneback": Measure(label="flow, pixels", take=_of_clips(farneback), clips=True),
    "flow": Measure(label="flow magnitude", take=_flow, clips=True, needs=("raft",)),
    "clip_consistency": Measure(
        label="CLIP consistency", take=_clip_consistency, clips=True, needs=_CLIP, better="higher", digits=3
    ),
    "clip_score": Measure(label="CLIP score", take=_clip_score, needs=_CLIP, better="higher"),
    "consistency": Measure(
        label="consistency", take=_consistency, reference=True, paired=True, needs=_CLIP, better="higher", digits=3
    ),
    "hps": Measure(label="HPS v2", take=_preference("hps"), needs=("hps",), better="higher", digits=4),
    "hps21": Measure(label="HPS v2.1", take=_preference("hps21"), needs=("hps21",), better="higher", digits=4),
    "aes": Measure(label="AES", take=_aes, needs=("clip", "aes"), better="higher", digits=3),
    "pick": Measure(label="PickScore", take=_pick, needs=("pick",), better="higher", digits=4),
}


def own_features(a: Folder, b: Folder, path: Path) -> float:
    """Frechet distance with the user's own feature extractor."""
    example: Tensor = a.items[0].frames[:1]
    network = OwnFeatures(path, example)
    return frechet(a.features_by(network).stacked(), b.features_by(network).stacked())
