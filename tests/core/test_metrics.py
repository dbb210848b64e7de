"""``pcm metrics`` on small real files: figures against definitions, and messages where something is missing."""

from __future__ import annotations

import itertools
import json
import math
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scripts.metrics import command as metrics
from scripts.metrics import likeness, motion
from scripts.metrics import sources as pictures
from scripts.metrics.report import MissingError

SIZE = 48


def texture(seed: int, size: int = SIZE) -> Tensor:
    """A smooth random image, uint8 [3, size, size]."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (fine[0] * 255).round().to(torch.uint8)


def save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.movedim(0, -1).numpy()).save(path)


@pytest.fixture
def folders(tmp_path):
    """Four images, and the same images with a known error of 10 levels."""
    for n in range(4):
        picture = texture(n).clamp(0, 245)
        save(picture, tmp_path / "b" / f"{n}.png")
        save(picture + 10, tmp_path / "a" / f"{n}.png")
    return tmp_path


def run(capsys, *arguments: object) -> str:
    metrics.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def figures(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines()[1:] if "not measured" not in line]
    return {line.rsplit(None, 1)[0].strip(): float(line.rsplit(None, 1)[1]) for line in lines}


def test_pairs_of_one_name(folders, capsys):
    save(texture(9), folders / "a" / "alone.png")
    found = run(capsys, folders / "a", folders / "b", "--json", folders / "out.json")
    assert found.splitlines()[0] == "A: 5 items, B: 4, 4 of one name"
    assert figures(found)["PSNR dB"] == pytest.approx(-20 * math.log10(10 / 255), abs=1e-4)
    assert 0.9 < figures(found)["SSIM"] < 1
    written = json.loads((folders / "out.json").read_text())
    assert written["figures"]["SSIM"] == pytest.approx(figures(found)["SSIM"], abs=1e-4)
    assert set(written["not measured"]) == {"FID", "FID-CLIP", "CLIP score", "consistency", "HPS v2", "HPS v2.1", "AES",
                                            "PickScore"}  # fmt: skip


@pytest.mark.long
def test_psnr_and_ssim_are_those_of_torchmetrics(folders):
    image = pytest.importorskip("torchmetrics.image")
    a, b = (pictures.read(str(folders / name)) for name in "ab")
    found = likeness.likeness(likeness.pairs(a, b))
    x, y = (torch.cat([item.frames for item in items]) / 255 for items in (a, b))
    assert found["PSNR dB"] == pytest.approx(image.PeakSignalNoiseRatio(data_range=1.0)(x, y).item(), rel=1e-5)
    theirs = image.StructuralSimilarityIndexMeasure(data_range=1.0)(
        x, y
    ).item()  # pads where ours leaves the border out
    assert found["SSIM"] == pytest.approx(theirs, abs=5e-3)


class Corners(torch.nn.Module):
    """Four pixels as features."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, ::47, ::47].flatten(1).float() / 255


def corners(folder: Path) -> Path:
    example, batch = (torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8),), torch.export.Dim("batch")
    program = torch.export.export(Corners(), example, dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, folder / "corners.pt2")
    return folder / "corners.pt2"


@pytest.mark.long
def test_frechet_distance_by_a_file_of_ones_own(folders, capsys):
    found = run(capsys, folders / "a", folders / "b", "--features", corners(folders))
    # The covariances are equal, so the distance is that of the means: four features, each 10 / 255 away.
    assert figures(found)["Frechet distance"] == pytest.approx(4 * (10 / 255) ** 2, abs=1e-4)
    (folders / "bad.pt2").write_bytes(b"no program")
    with pytest.raises(SystemExit, match=r"torch\.export\.save"):
        run(capsys, folders / "a", folders / "b", "--features", folders / "bad.pt2")


def test_motion_of_clips_in_every_form(tmp_path, capsys):
    """A texture that moves by 2 pixels per frame, as frames, animated WebP and mp4."""
    pytest.importorskip("cv2")
    av = pytest.importorskip("av")
    big = texture(5, 96)
    frames = [big[:, 10:58, 2 * n : 2 * n + 64] for n in range(4)]
    for n, frame in enumerate(frames):
        save(frame, tmp_path / "clips" / "frames" / f"{n}.png")
    images = [Image.fromarray(frame.movedim(0, -1).numpy()) for frame in frames]
    images[0].save(tmp_path / "clips" / "anim.webp", save_all=True, append_images=images[1:], lossless=True)
    with av.open(str(tmp_path / "clips" / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(stream.encode())
    items = pictures.read(str(tmp_path / "clips"))
    assert [(item.name, len(item.frames)) for item in items] == [("anim", 4), ("frames", 4), ("video", 4)]
    anim, folder, video = items
    assert torch.equal(anim.frames, folder.frames)
    for item in (folder, video):
        assert motion.farneback(item.frames) == pytest.approx(2, abs=0.3), item.name
    by_hand = mean_change(frames)
    assert motion.frame_difference(folder.frames) == pytest.approx(by_hand, abs=1e-6)
    text = run(capsys, tmp_path / "clips")
    assert figures(text)["flow, pixels"] == pytest.approx(2, abs=0.3)
    assert "CLIP consistency" in text


def mean_change(frames: list[Tensor]) -> float:
    changes = [(b.float() - a.float()).abs().mean().item() / 255 for a, b in itertools.pairwise(frames)]
    return sum(changes) / len(changes)


def test_what_is_absent_is_named(folders, capsys, monkeypatch):
    out = run(capsys, folders / "a", folders / "b")
    assert "FID" in out and "--inception FILE, or --download" in out and "--clip FOLDER, or --download" in out
    for module in ("torch_fidelity.feature_extractor_inceptionv3", "cv2", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    (folders / "weights.pth").touch()
    out = run(capsys, folders / "a", folders / "b", "--inception", folders / "weights.pth", "--clip", folders)
    assert 'it needs torch-fidelity: pip install ".[metrics]"' in out
    assert "pip install transformers" in out
    with pytest.raises(MissingError, match="OpenCV"):
        motion.farneback(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(SystemExit, match="does not exist"):
        run(capsys, folders / "a", "--clip", folders / "nowhere")


def test_sources_that_cannot_be_read(folders):
    with pytest.raises(pictures.SourceError, match="not a folder"):
        pictures.read(str(folders / "nowhere"))
    (folders / "empty").mkdir()
    with pytest.raises(pictures.SourceError, match="holds no images"):
        pictures.read(str(folders / "empty"))
    for name in "ab":
        (folders / name / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"broken\.png cannot be read as an image"):
        metrics.main([str(folders / "a"), str(folders / "b")])
    (folders / "a" / "broken.png").unlink()
    save(texture(1), folders / "a" / "1.bmp")
    with pytest.raises(pictures.SourceError, match='two items with the name "1"'):
        pictures.read(str(folders / "a"))


def test_pairs_of_two_shapes_are_not_compared(folders, capsys):
    save(texture(2, 32), folders / "a" / "2.png")
    assert '"2" is 1 x 32 x 32 in A and 1 x 48 x 48 in B' in run(capsys, folders / "a", folders / "b")


def test_no_answer_from_a_host():
    class Empty(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/history/abc"
        with pytest.raises(pictures.SourceError, match="no finished prompt abc"):
            pictures.read(address)
    with pytest.raises(pictures.SourceError, match="Is it running"):
        pictures.read(address)


def tiny_clip(folder: Path) -> None:
    """A real CLIP of random weights, with its tokenizer and processor, as save_pretrained lays them out."""
    transformers = pytest.importorskip("transformers")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**shared, **ends, "vocab_size": len(words), "max_position_embeddings": 24},
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    size = {"shortest_edge": 32}
    transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)


@pytest.mark.long
def test_a_real_clip_of_random_weights(folders, capsys):
    """Consistency and CLIP score against the parts of transformers' own model, one image at a time."""
    transformers = pytest.importorskip("transformers")
    tiny_clip(folders / "clip")
    assert "items have no prompt" in run(capsys, folders / "a", folders / "b", "--clip", folders / "clip")
    for n in range(4):
        (folders / "a" / f"{n}.txt").write_text("abc"[: n + 1] + " x" * 40)
    words = [str(folders / "a"), str(folders / "b"), "--clip", str(folders / "clip")]
    found = metrics.measure(metrics.parser().parse_args(words)).figures
    model = transformers.CLIPModel.from_pretrained(folders / "clip").eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folders / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folders / "clip")
    likeness, scores = [], []
    with torch.inference_mode():
        for n in range(4):
            a, b = (
                model.visual_projection(
                    model.vision_model(
                        **processor(Image.open(folders / name / f"{n}.png"), return_tensors="pt")
                    ).pooler_output
                )
                for name in "ab"
            )
            tokens = tokenizer(
                (folders / "a" / f"{n}.txt").read_text(), truncation=True, max_length=24, return_tensors="pt"
            )
            text = model.text_projection(model.text_model(**tokens).pooler_output)
            likeness.append(torch.cosine_similarity(a, b).item())
            scores.append(100 * max(0.0, torch.cosine_similarity(a, text).item()))
    assert found["consistency"] == pytest.approx(sum(likeness) / 4, abs=1e-4)
    assert found["CLIP score"] == pytest.approx(sum(scores) / 4, abs=1e-4)
    assert found["consistency"] < 0.99999 and max(scores) > 0, "a figure that says the same for everything is none"


def tiny_inception(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch-fidelity's own network and file format; random weights, since the real ones must be downloaded."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        made = network("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(folder / "inception.pth"))
    torch.manual_seed(0)
    for parameter in made.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)  # else the features of a random network vanish
    torch.save(made.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


@pytest.mark.long
def test_fid_with_inception_weights_from_a_file(folders, capsys, monkeypatch):
    weights = tiny_inception(folders, monkeypatch)
    same = run(capsys, folders / "b", folders / "b", "--inception", weights)
    other = run(capsys, folders / "a", folders / "b", "--inception", weights)
    assert abs(figures(same)["FID"]) < 1e-3 < figures(other)["FID"]
