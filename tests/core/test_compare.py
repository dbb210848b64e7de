"""Columns as people type them, and the figures against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from pcm_core.errors import PCMError
from pcm_core.metrics import cosine, psnr, ssim
from phased_consistency.nodes.sampling.columns import Column, parse_columns


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("1, 2,4 ,8", [Column(model="a", steps=n) for n in (1, 2, 4, 8)]),
        ("1\n2\uff0c3", [Column(model="a", steps=n) for n in (1, 2, 3)]),
        ("auto", [Column(model="a", steps=0)]),
        ("B: 4 cfg 3.5", [Column(model="b", steps=4, cfg=3.5)]),
        (
            "euler/simple@25 cfg 7",
            [Column(model="a", steps=25, cfg=7.0, sampler="euler", scheduler="simple")],
        ),
        (
            "c: dpmpp_2m_sde / karras @ 20 = DPM++ at 20",
            [Column(model="c", steps=20, sampler="dpmpp_2m_sde", scheduler="karras", label="DPM++ at 20")],
        ),
    ],
)
def test_columns(text, columns):
    assert list(parse_columns(text)) == columns


@pytest.mark.parametrize(
    "text", ["", " , ", "four", "4 5", "0", "euler/simple@auto", "euler@4", "1001", "4 cfg -1", "4 ="]
)
def test_unreadable_columns_are_refused(text):
    with pytest.raises(PCMError):
        parse_columns(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [("2 = " + "x" * 201, "The label"), (", ".join(["1"] * 65), "65 entries"), ("9" * 6000, "columns contains")],
)
def test_a_sheet_has_its_limits(text, words):
    with pytest.raises(PCMError, match=words) as error:
        parse_columns(text)
    assert len(str(error.value)) < 1500
    assert len(parse_columns(", ".join(["2 = " + "x" * 200] * 64))) == 64


def test_titles_say_what_runs():
    titles = [column.title for column in parse_columns("1, 4, b: auto, c: euler/simple@25 cfg 7, 4 = mine")]
    assert titles == ["1 step", "4 steps", "b: auto", "c: euler 25 steps", "mine"]


def pictures(seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(2, 16, 13, 3, generator=generator)
    return a, (a + noise * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def test_cosine_of_known_angles():
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.0])) == pytest.approx(-1)
    assert cosine(torch.zeros(2), torch.zeros(2)) == 1
    assert cosine(torch.zeros(2), torch.ones(2)) == 0


def test_psnr_of_a_known_error():
    assert psnr(torch.zeros(1, 4, 4, 3), torch.full((1, 4, 4, 3), 0.1)) == pytest.approx(20, abs=1e-5)
    assert psnr(torch.ones(1, 4, 4, 3), torch.ones(1, 4, 4, 3)) == math.inf


def ssim_by_the_book(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wang et al. 2004, eq. 13, one window at a time."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    w = torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum()
    values = []
    batch, height, width, channels = a.shape
    for n in range(batch):
        for c in range(channels):
            for i in range(height - 10):
                for j in range(width - 10):
                    x = a[n, i : i + 11, j : j + 11, c].double()
                    y = b[n, i : i + 11, j : j + 11, c].double()
                    mx, my = (w * x).sum(), (w * y).sum()
                    vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
                    vxy = (w * (x - mx) * (y - my)).sum()
                    top = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4)
                    values.append(float(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))))
    return sum(values) / len(values)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_ssim_is_that_of_the_paper(noise):
    a, b = pictures(3, noise)
    assert ssim(a, b) == pytest.approx(ssim_by_the_book(a, b), abs=1e-9)
    assert (ssim(a, b) == pytest.approx(1)) == (noise == 0)


def test_ssim_takes_pictures_smaller_than_its_window():
    a, b = pictures(4, 0.2)
    assert ssim(a[:, :5, :5], a[:, :5, :5]) == pytest.approx(1)
    assert ssim(a[:, :5, :5], b[:, :5, :5]) < 1


@pytest.mark.parametrize("measure", [cosine, psnr, ssim])
def test_shapes_must_agree(measure):
    with pytest.raises(PCMError, match="shapes"):
        measure(torch.zeros(1, 16, 16, 3), torch.zeros(1, 8, 8, 3))
