"""Training pictures as people see them: orientation, sixteen bits, transparency, frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def seen(host):
    return host.pack("nodes.host.pictures")


def halves(size=(8, 4)):
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, (255, 0, 0))
    picture.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_the_hosts(host, seen, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder = host.base / "input"
    folder.mkdir(parents=True, exist_ok=True)
    halves().save(folder / "turned.png", exif=exif)
    picture, _ = host.call("LoadImage", image="turned.png")
    got = torch.from_numpy(np.asarray(seen.as_seen(folder / "turned.png"), dtype=np.float32) / 255)
    assert torch.equal(got, picture[0])


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (32768, 128), (65535, 255), (256, 1)])
def test_sixteen_bits(seen, tmp_path, value, grey):
    Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / "a.png")
    assert seen.as_seen(tmp_path / "a.png").getpixel((0, 0)) == (grey,) * 3


@pytest.mark.parametrize(("alpha", "colour"), [(0, (255, 255, 255)), (255, (255, 0, 0)), (128, (255, 127, 127))])
def test_transparent_parts_lie_over_white(seen, tmp_path, alpha, colour):
    Image.new("RGBA", (4, 4), (255, 0, 0, alpha)).save(tmp_path / "a.png")
    assert seen.as_seen(tmp_path / "a.png").getpixel((0, 0)) == colour
    assert ["1 pictures have transparent parts, which are laid over white."] == seen.remarks([tmp_path / "a.png"])


def test_a_transparent_palette_colour(seen, tmp_path):
    palette = Image.new("RGB", (4, 4), (0, 255, 0)).convert("P")
    palette.save(tmp_path / "a.png", transparency=palette.getpixel((0, 0)))
    assert seen.as_seen(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_the_first_frame_of_what_moves(seen, tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    path = tmp_path / f"a.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {}))
    assert seen.as_seen(path).getpixel((0, 0)) == (250, 0, 0)
    assert any("first of each" in remark for remark in seen.remarks([path]))


def test_plain_pictures_are_as_they_are(seen, tmp_path):
    halves().save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(seen.as_seen(tmp_path / "a.png")), np.asarray(halves()))
    assert seen.remarks([tmp_path / "a.png"]) == []
