"""Every measure of the paper against an independent value: torch-fidelity, torchmetrics, transformers, formulas.

The networks are small, with random weights, in the same files and folders as the real ones.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_metrics import SIZE, figures, run, save, texture, tiny_clip
from torch import Tensor, nn

from scripts.metrics import command, features, networks
from scripts.metrics.clip import Clip
from scripts.metrics.distance import frechet
from scripts.metrics.sources import read

PROMPTS = ("a red fox", "two cats in a box", "the sea", "an old man and a dog")


@pytest.fixture
def world(tmp_path):
    """Images in A and B, clips in C, their prompts, and a CLIP; embeddings from the parts of transformers' model."""
    transformers = pytest.importorskip("transformers")
    for n, prompt in enumerate(PROMPTS):
        for name, seed in (("a", n), ("b", 50 + n)):
            save(texture(seed), tmp_path / name / f"{n}.png")
        (tmp_path / "a" / f"{n}.txt").write_text(prompt, "utf-8")
    for n in range(2):
        for frame in range(3):
            save(texture(7 * n + frame), tmp_path / "c" / str(n) / f"{frame}.png")
        (tmp_path / "c" / f"{n}.txt").write_text(PROMPTS[n], "utf-8")
    tiny_clip(tmp_path / "clip")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "clip").eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "clip")

    @torch.inference_mode()
    def image(path: Path) -> Tensor:
        pixels = processor(Image.open(path), return_tensors="pt")
        return model.visual_projection(model.vision_model(**pixels).pooler_output)[0]

    @torch.inference_mode()
    def text(prompt: str) -> Tensor:
        tokens = tokenizer(prompt, truncation=True, max_length=24, return_tensors="pt")
        return model.text_projection(model.text_model(**tokens).pooler_output)[0]

    return SimpleNamespace(folder=tmp_path, image=image, text=text, scale=float(model.logit_scale.detach().exp()))


def exact(*arguments: object) -> dict[str, float]:
    """The figures of ``pcm metrics`` before they are rounded for printing."""
    return command.measure(command.parser().parse_args([str(argument) for argument in arguments])).figures


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one, other, dim=0).item()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_measures_of_clip(world):
    """FID-CLIP against torch-fidelity on the same features; the others against their definitions."""
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    folder = world.folder
    torch.manual_seed(1)
    layers = [nn.Linear(8, 6), nn.Dropout(0.2), nn.Linear(6, 3), nn.Dropout(0.2), nn.Linear(3, 1)]
    predictor = nn.Module()
    predictor.layers = nn.Sequential(*layers)
    torch.save(predictor.state_dict(), folder / "aes.pth")
    words = ("--clip", folder / "clip", "--pick", folder / "clip", "--aes", folder / "aes.pth")
    found = exact(folder / "a", folder / "b", *words)
    a, b = ([world.image(folder / name / f"{n}.png") for n in range(4)] for name in "ab")
    assert found["consistency"] == pytest.approx(mean([cosine(x, y) for x, y in zip(a, b, strict=True)]), abs=1e-4)
    fits = [cosine(x, world.text(prompt)) for x, prompt in zip(a, PROMPTS, strict=True)]
    assert found["CLIP score"] == pytest.approx(100 * mean([max(fit, 0) for fit in fits]), abs=1e-4)
    assert found["PickScore"] == pytest.approx(world.scale * mean(fits) / 100, abs=1e-4)
    with torch.inference_mode():
        ratings = [predictor.eval().layers(x / x.norm()).item() for x in a]
    assert found["AES"] == pytest.approx(mean(ratings), abs=1e-4)
    statistics = [fidelity.fid_features_to_statistics(torch.stack(rows).double()) for rows in (a, b)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found["FID-CLIP"] == pytest.approx(theirs, rel=1e-4, abs=1e-4) and theirs > 0.01


def test_the_clip_score_is_that_of_torchmetrics(world):
    """Pair by pair: over many pairs torchmetrics clamps the mean at 0, while Hessel et al. and we clamp each pair."""
    clip_score = pytest.importorskip("torchmetrics.functional.multimodal").clip_score
    transformers, folder = pytest.importorskip("transformers"), world.folder

    class Unwrapped(transformers.CLIPModel):
        """transformers 5 returns an object where torchmetrics expects the features."""

        def get_image_features(self, pixels):
            return unwrapped(super().get_image_features(pixels))

        def get_text_features(self, tokens, mask):
            return unwrapped(super().get_text_features(tokens, mask))

    def unwrapped(found):
        return getattr(found, "pooler_output", found)

    processor = transformers.CLIPImageProcessor.from_pretrained(folder / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
    both = Unwrapped.from_pretrained(folder / "clip").eval(), transformers.CLIPProcessor(processor, tokenizer)
    scores = []
    for n, prompt in enumerate(PROMPTS):
        scores.append(max(clip_score(texture(n), prompt, lambda: both).item(), 0))
    assert exact(folder / "a", "--clip", folder / "clip")["CLIP score"] == pytest.approx(mean(scores), abs=1e-4)
    assert max(scores) > 1


def test_the_measures_of_clips(world):
    folder = world.folder
    found = exact(folder / "c", "--clip", folder / "clip")
    clips = [[world.image(folder / "c" / str(n) / f"{frame}.png") for frame in range(3)] for n in range(2)]
    between = [mean([cosine(x, y) for x, y in itertools.pairwise(clip)]) for clip in clips]
    assert found["CLIP consistency"] == pytest.approx(mean(between), abs=1e-4)
    fits = [mean([max(cosine(x, world.text(PROMPTS[n])), 0) for x in clip]) for n, clip in enumerate(clips)]
    assert found["CLIP score"] == pytest.approx(100 * mean(fits), abs=1e-4)


class OpenClip(nn.Module):
    """OpenCLIP's two towers in miniature, under its names and with its attention, written from its paper."""

    def __init__(self) -> None:
        super().__init__()

        class Block(nn.Module):
            def __init__(self, width: int, heads: int) -> None:
                super().__init__()
                self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
                self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
                self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 2 * width), "c_proj": nn.Linear(2 * width, width)})

            def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
                y = self.ln_1(x)
                x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
                return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))

        def tower(width: int, heads: int) -> nn.Module:
            return nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, heads) for _ in range(2))})

        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, 128, 8, 8, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(128))
        self.visual.positional_embedding = nn.Parameter(torch.randn(17, 128))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(128), nn.LayerNorm(128)
        self.visual.transformer = tower(128, 2)
        self.visual.proj = nn.Parameter(torch.randn(128, 8))
        self.token_embedding = nn.Embedding(54, 64)
        self.positional_embedding = nn.Parameter(torch.randn(24, 64))
        self.transformer = tower(64, 1)
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.randn(64, 8))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("attn_mask", torch.full((24, 24), -torch.inf).triu(1))

    def image(self, pixels: Tensor) -> Tensor:
        patches = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.visual.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        x = self.visual.ln_pre(x + self.visual.positional_embedding)
        for block in self.visual.transformer["resblocks"]:
            x = block(x, None)
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

    def text(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding
        for block in self.transformer["resblocks"]:
            x = block(x, self.attn_mask)
        end = (tokens == 1).int().argmax(-1)
        return (self.ln_final(x) @ self.text_projection)[torch.arange(len(x)), end]


def random_hps() -> OpenClip:
    torch.manual_seed(2)
    network = OpenClip().eval()
    with torch.no_grad():  # fresh weights leave every embedding alike
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


@pytest.mark.parametrize("kind", ["hps", "hps21"])
def test_hps_is_the_cosine_of_the_published_weights(world, capsys, kind):
    transformers, folder = pytest.importorskip("transformers"), world.folder
    network = random_hps()
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, folder / "HPS_v2.pt")
    assert "give --clip FOLDER too" in run(capsys, folder / "a", f"--{kind}", folder / "HPS_v2.pt")
    found = exact(folder / "a", f"--{kind}", folder / "HPS_v2.pt", "--clip", folder / "clip")
    processor = transformers.CLIPImageProcessor.from_pretrained(folder / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
    scores = []
    with torch.inference_mode():
        for n, prompt in enumerate(PROMPTS):
            pixels = processor(Image.open(folder / "a" / f"{n}.png"), return_tensors="pt")["pixel_values"]
            tokens = tokenizer(prompt, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
            scores.append(cosine(network.image(pixels)[0], network.text(tokens)[0]))
    assert found["HPS v2" if kind == "hps" else "HPS v2.1"] == pytest.approx(mean(scores), abs=1e-4)
    assert max(scores) - min(scores) > 1e-3, "a score that is the same for everything is none"


def test_hps_sees_the_whole_image():
    """HPS v2 pads an image that is not square to its longer side."""
    from scripts.metrics.clip import _square

    wide = torch.full((1, 3, 4, 8), 9, dtype=torch.uint8)
    assert _square(wide).shape == (1, 3, 8, 8) and _square(wide)[0, 0, :, 0].tolist() == [0, 0, 9, 9, 9, 9, 0, 0]


@pytest.mark.long
def test_the_flow_magnitude_is_that_of_raft_large(tmp_path, capsys):
    raft_large = pytest.importorskip("torchvision.models.optical_flow").raft_large
    torch.manual_seed(3)
    network = raft_large(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    frames = [texture(n, 136)[:, :130] for n in range(3)]
    for n, frame in enumerate(frames):
        save(frame, tmp_path / "clips" / "one" / f"{n}.png")
    found = exact(tmp_path / "clips", "--raft", tmp_path / "raft.pth")
    lengths = []
    with torch.inference_mode():
        for one, other in itertools.pairwise(frames):
            x, y = (
                nn.functional.pad(f[None].float() / 127.5 - 1, (0, 0, 0, 6), mode="replicate") for f in (one, other)
            )
            flow = network(x, y)[-1][0, :, :130]
            lengths.append(torch.hypot(*flow).mean().item())
    assert found["flow magnitude"] == pytest.approx(mean(lengths), rel=1e-4) and lengths[0] > 0.01
    for n in range(3):
        save(texture(n, 100), tmp_path / "small" / "one" / f"{n}.png")
    assert "RAFT needs frames of 128 pixels a side" in run(capsys, tmp_path / "small", "--raft", tmp_path / "raft.pth")


@pytest.mark.long
def test_fid_is_that_of_torch_fidelity_on_the_same_folders(tmp_path, capsys, monkeypatch):
    """FID, and with the teacher's images as B the paper's FID-SD, from the files to the figure, network included."""
    from test_metrics import tiny_inception

    fidelity = pytest.importorskip("torch_fidelity")
    for n in range(8):
        for name, seed in (("a", n), ("b", 50 + n)):
            save(texture(seed), tmp_path / name / f"{n}.png")
    weights = tiny_inception(tmp_path, monkeypatch)
    run(capsys, tmp_path / "a", tmp_path / "b", "--inception", weights, "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))["figures"]
    options = {"fid": True, "cuda": False, "cache": False, "verbose": False}
    theirs = fidelity.calculate_metrics(
        input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), feature_extractor_weights_path=str(weights), **options
    )
    assert found["FID"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_the_distance_of_gaussians_that_are_known():
    """Two points with two features each: means 0 and 3, variances 2 and 8, no covariance."""
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [1.0, 0.0]])
    assert frechet(a, b) == pytest.approx(9 + 2 + 8 - 2 * (2 * 8) ** 0.5)
    assert frechet(a[:, :1], b[:, :1]) == pytest.approx(9 + 2 + 8 - 8)


@pytest.mark.parametrize(("rows", "others"), [(5, 5), (11, 7), (2, 40), (12, 40), (40, 30)])
def test_the_distance_is_that_of_torch_fidelity_for_few_images_and_for_many(rows, others):
    """On both sides of 12 features, where another way of computing it begins; the matrix root by scipy."""
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(rows)
    a, b = (torch.randn(n, 12, generator=generator) @ torch.randn(12, 12, generator=generator) for n in (rows, others))
    covariances = [np.cov(values.double().numpy(), rowvar=False) for values in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    mean = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    expected = mean + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-5)
    statistics = pytest.importorskip("torch_fidelity.metric_fid")
    given = [statistics.fid_features_to_statistics(values.double()) for values in (a, b)]
    theirs = statistics.fid_statistics_to_metric(*given, verbose=False)["frechet_inception_distance"]
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-5)


class Counting:
    """The mean of every image; counts the images it saw."""

    name, fingerprint = "means", "0123456789abcdef"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.float().mean((1, 2, 3))[:, None]


def test_features_are_kept_beside_the_folder_and_used_again(tmp_path):
    folder, network = tmp_path / "a", Counting()
    for n in range(40):
        save(texture(n, 8), folder / f"{n:02}.png")
    for frame in range(3):
        save(texture(frame, 16), folder / "clip" / f"{frame}.png")
    first = features.Features(read(str(folder)), network, folder)
    assert network.seen == 43 and len(first.stacked()) == 43
    again = features.Features(read(str(folder)), network, folder)
    assert network.seen == 43 and torch.equal(again.stacked(), first.stacked())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.features"]
    save(texture(99, 8), folder / "07.png")
    save(texture(98, 8), folder / "99.png")
    (folder / "00.png").unlink()
    changed = features.Features(read(str(folder)), network, folder)
    assert network.seen == 45 and changed.rows.keys() ^ first.rows.keys() == {"00", "99"}
    assert changed.rows["07"].item() == pytest.approx(texture(99, 8).float().mean().item())
    assert changed.rows["08"].item() == pytest.approx(texture(8, 8).float().mean().item())


def test_features_of_another_network_are_refused(tmp_path, capsys):
    folder, network, other = tmp_path / "a", Counting(), Counting()
    save(texture(1, 8), folder / "1.png")
    features.Features(read(str(folder)), network, folder)
    other.fingerprint = "fedcba9876543210"
    kept = features.cache_file(folder, network.name, network.fingerprint)
    kept.rename(features.cache_file(folder, other.name, other.fingerprint))
    with pytest.raises(
        features.SourceError, match=r"holds features of another network \(0123456789abcdef\).*Delete it"
    ):
        features.Features(read(str(folder)), other, folder)
    features.cache_file(folder, other.name, other.fingerprint).write_bytes(b"half of")
    with pytest.raises(features.SourceError, match=r"is not a feature cache .*Delete it"):
        features.Features(read(str(folder)), other, folder)


def test_a_run_that_fails_keeps_what_it_has(tmp_path):
    folder, network = tmp_path / "a", Counting()
    for n in range(50):
        save(texture(n, 8), folder / f"{n:02}.png")
    (folder / "45.png").write_bytes(b"broken")
    with pytest.raises(features.SourceError, match=r"45\.png cannot be read"):
        features.Features(read(str(folder)), network, folder)
    save(texture(45, 8), folder / "45.png")
    features.Features(read(str(folder)), network, folder)
    assert network.seen == 50, "the 32 of the first batch are not seen twice"


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_weights_that_are_none(world, capsys):
    """Nothing is unpickled; a file that does not fit is named, and the other measures are still taken."""
    folder = world.folder
    torch.save(Code(), folder / "code.pt")
    torch.save({"weight": torch.ones(1, 5), "bias": torch.ones(1)}, folder / "narrow.pth")
    torch.save({"layers.0.weight": torch.ones(2, 5), "layers.0.bias": torch.ones(2)}, folder / "two.pth")
    words = ("--clip", folder / "clip")
    for option, file, said in (
        ("--hps", "code.pt", "cannot be read as weights without running code from it"),
        ("--hps", "two.pth", "the file holds no weights of an OpenCLIP ViT"),
        ("--aes", "code.pt", "cannot be read as weights without running code from it"),
        ("--aes", "two.pth", "two.pth is not an aesthetic predictor"),
        ("--aes", "narrow.pth", "the predictor reads 5 numbers an image, and this CLIP gives 8"),
        ("--inception", "two.pth", "two.pth is not torch-fidelity's Inception"),
    ):
        text = run(capsys, folder / "a", folder / "b", *words, option, folder / file)
        assert said in text and "CLIP score" in figures(text), text
    torch.save([1], folder / "list.pt")
    assert "list.pt holds no weights" in run(capsys, folder / "a", "--aes", folder / "list.pt", *words)
    (folder / "clip" / "model.safetensors").unlink()
    assert "clip does not load" in run(capsys, folder / "a", *words)


def test_a_network_is_known_by_its_contents(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3 << 20))
    assert networks.fingerprint(tmp_path / "x") == networks.fingerprint(tmp_path / "y")
    (tmp_path / "y" / "model.safetensors").write_bytes(bytes((3 << 20) - 1) + b"1")
    assert networks.fingerprint(tmp_path / "x") != networks.fingerprint(tmp_path / "y")


def test_raft_and_own_features_that_are_none(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(networks.MissingError, match=r"x\.pth is not torchvision's RAFT-Large"):
        networks.Flow(tmp_path / "x.pth", "cpu")
    with pytest.raises(networks.SourceError, match=r"Write it with torch\.export\.save"):
        networks.OwnFeatures(tmp_path / "x.pth", torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    with pytest.raises(networks.MissingError, match="brings no tokenizer"):
        Clip(str(tmp_path / "x.pth"), "cpu")
