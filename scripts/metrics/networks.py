"""The networks of the measures, from local files: Inception, RAFT, and the user's own feature extractor.

A network is a callable on uint8 [B, 3, H, W] with ``name`` and ``fingerprint``; it returns float32 [B, F]. Nothing is
unpickled: ``.pt`` and ``.pth`` files are read by ``torch.load(weights_only=True)``, all others as safetensors.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from .report import EXTRA, MissingError
from .sources import SourceError

BATCH = 32
_PART = 1 << 20  # bytes from each end of a file that go into its fingerprint
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".pt2")


class Network(Protocol):
    """A network that computes features.

    Attributes:
        name: short name, used for the cache.
        fingerprint: 16 digits that identify its file.
    """

    name: str
    fingerprint: str

    def __call__(self, images: Tensor) -> Tensor: ...


def fingerprint(*paths: Path) -> str:
    """A digest of files, or of the weights and settings in folders.

    It covers the size and both ends of each file: hashing gigabytes would take longer than measuring a folder.
    """
    found = hashlib.sha256()
    for path in paths:
        inside = (
            sorted(file for file in path.iterdir() if file.suffix in (*WEIGHTS, ".json")) if path.is_dir() else [path]
        )
        for file in inside:
            size = file.stat().st_size
            with file.open("rb") as stream:
                found.update(f"{size} ".encode() + stream.read(_PART))
                stream.seek(max(size - _PART, 0))
                found.update(stream.read(_PART))
    return found.hexdigest()[:16]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name; those under ``state_dict`` if a checkpoint has more.

    Raises:
        MissingError: if it is not a weights file, or contains anything except tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # other files raise any of a dozen exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingError(f"{path} cannot be read as weights without running code from it ({reason})") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise MissingError(f"{path} holds no weights")
    return found


class Inception:
    """The Inception network of FID in torch-fidelity's port: 2048 pooled features.

    Raises:
        MissingError: if torch-fidelity is not installed, or the weights do not fit.
    """

    name = "inception"

    def __init__(self, path: Path | None, device: str) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise MissingError(f"it needs torch-fidelity: {EXTRA}") from error
        self.device = device
        with tempfile.TemporaryDirectory() as folder:
            given = None
            if path is not None:
                given = Path(folder) / "weights.pth"
                torch.save(read_weights(path), given)  # it unpickles its file; this one contains only tensors
            try:
                network = FeatureExtractorInceptionV3(
                    "inception-v3-compat",
                    ["2048"],
                    feature_extractor_weights_path=None if given is None else str(given),
                )
            except (RuntimeError, OSError) as error:
                raise MissingError(f"{path or 'the download'} is not torch-fidelity's Inception") from error
        self.network: Any = network.to(device)
        self.fingerprint = "downloaded000000" if path is None else fingerprint(path)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.device))[0].float().cpu()


class OwnFeatures:
    """The user's own feature extractor: a torch.export file, uint8 [B, 3, H, W] -> [B, F] with dynamic B."""

    name = "features"

    def __init__(self, path: Path, example: Tensor) -> None:
        try:
            self.extract = torch.export.load(path).module().__call__
            self.extract(example)
        except Exception as error:  # the file may raise anything
            raise SourceError(
                f"{path} does not work as a feature extractor ({error}). Write it with torch.export.save, for uint8 "
                "[B, 3, H, W] -> [B, F] with a dynamic B and the size of these images."
            ) from error
        self.fingerprint = fingerprint(path)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.extract(images).float()


class Flow:
    """torchvision's RAFT-Large (Teed and Deng 2020), which the paper uses for its flow magnitude.

    Raises:
        MissingError: if torchvision is not installed, or the weights do not fit.
    """

    def __init__(self, path: Path, device: str) -> None:
        try:
            from torchvision.models.optical_flow import raft_large
        except ImportError as error:
            raise MissingError("it needs torchvision, which ComfyUI has") from error
        self.device, self.network = device, raft_large(weights=None)
        try:
            self.network.load_state_dict(read_weights(path))
        except RuntimeError as error:
            raise MissingError(f"{path} is not torchvision's RAFT-Large") from error
        self.network.to(device).eval()

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> float:
        """Mean length of the flow in pixels between neighboring frames of uint8 [T, 3, H, W].

        Raises:
            MissingError: if a side is shorter than the 128 pixels that RAFT's pyramid of correlations needs.
        """
        height, width = frames.shape[-2:]
        if min(height, width) < 128:
            raise MissingError(f"RAFT needs frames of 128 pixels a side, and these are {width} x {height}")
        padding = (0, -width % 8, 0, -height % 8)
        padded = torch.nn.functional.pad(frames.float() / 127.5 - 1, padding, mode="replicate").to(self.device)
        flows = [self.network(one[None], other[None])[-1] for one, other in pairwise(padded)]
        lengths = torch.cat(flows).square().sum(1).sqrt()[..., :height, :width]
        return float(lengths.mean())


def in_batches(network: Network, frames: Tensor, batch: int = BATCH) -> Tensor:
    """Features [N, F] of uint8 [N, 3, H, W], in batches that fit a small GPU."""
    return torch.cat([network(part) for part in frames.split(batch)])


def check_files(paths: Sequence[Path | None]) -> None:
    """Refuse file and folder names that do not exist."""
    for path in paths:
        if path is not None and not path.exists():
            raise SourceError(f"{path} does not exist.")
