"""The sigma table against formulas, and tables that are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcm_core.errors import PCMError
from pcm_core.sigma_table import SigmaTable


def flow_table(shift: float, length: int = 1000) -> Tensor:
    u = torch.arange(1, length + 1, dtype=torch.float64) / length
    return (shift * u / (1 + (shift - 1) * u)).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timesteps_of_stable_diffusion(dtype: torch.dtype, sd_table: Tensor) -> None:
    table = SigmaTable.of(sd_table.clone().to(dtype).requires_grad_())
    assert not table.flow and table.shift is None and len(table) == 1000
    for t, sigma in ((0, 0.029167), (249, 0.693205), (499, 1.612886), (999, 14.614641)):
        assert table.sigma(t) == sd_table[t].item() == pytest.approx(sigma, abs=1e-6)
        assert table.timestep(table.sigma(t)) == table.model_timestep(table.sigma(t)) == t
    assert (table.bottom, table.top) == (sd_table[0].item(), sd_table[-1].item())
    assert SigmaTable.of(table) is table


@pytest.mark.parametrize("shift", [0.5, 1, 1.15, 3, 5, 17, 100])
@pytest.mark.parametrize("length", [1000, 10000])
def test_shift_is_read_from_the_table(shift: float, length: int) -> None:
    table = SigmaTable.of(flow_table(shift, length))
    assert table.flow and table.shift == pytest.approx(shift, rel=1e-4)
    assert SigmaTable.shifted_flow(shift).shift == shift


def test_exponential_shift_is_read_as_the_linear_one_it_is() -> None:
    """ModelSamplingFlux and RES4LYF's nodes store a logarithm or something else; the table tells the real shift."""
    u = torch.arange(1, 10001, dtype=torch.float64) / 10000
    assert SigmaTable.of(math.exp(3) / (math.exp(3) + 1 / u - 1)).shift == pytest.approx(math.exp(3), rel=1e-6)


@given(st.sampled_from([1000, 10000]), st.floats(1, 20), st.integers(0, 999))
def test_sigma_at_is_exact_on_the_table(length: int, shift: float, i: int) -> None:
    values = flow_table(shift, length)
    assert SigmaTable.of(values).sigma_at((i + 1) / length) == float(values[i])


@given(st.floats(1, 20), st.floats(0.01, 1))
def test_sigma_at_between_entries(shift: float, u: float) -> None:
    expected = shift * u / (1 + (shift - 1) * u)
    assert SigmaTable.of(flow_table(shift)).sigma_at(u) == pytest.approx(expected, abs=3e-5)


@given(sigma=st.floats(0.001, 20), kind=st.sampled_from(["sd", "flow", "fine"]))
def test_index_and_nearest_are_those_of_numpy(sigma: float, kind: str, sd_table: Tensor) -> None:
    values = {"sd": sd_table, "flow": flow_table(3), "fine": flow_table(1.15, 10000)}[kind].double()
    table = SigmaTable.of(values)
    assert table.nearest(sigma) == int((values - sigma).abs().argmin())
    whole = torch.searchsorted(values, sigma).clamp(1, len(values) - 1)
    part = (sigma - values[whole - 1]) / (values[whole] - values[whole - 1])
    assert table.index(sigma) == pytest.approx(float(whole - 1 + part.clamp(0, 1)), abs=1e-6)


@given(st.integers(0, 999), st.sampled_from([1000, 10000]))
def test_timestep_is_the_inverse_of_sigma(t: int, length: int) -> None:
    table = SigmaTable.of(flow_table(3, length))
    assert table.timestep(table.sigma(t)) == pytest.approx(t, abs=1e-9)
    assert table.model_timestep(table.sigma(t)) == 1000 * table.sigma(t)


def test_alphas_of_diffusers_are_the_hosts_sigmas(sd_table: Tensor) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    table = SigmaTable.from_alphas_cumprod(torch.cumprod(1 - betas, dim=0))
    assert not table.flow
    assert table.sigmas == pytest.approx(sd_table.tolist(), rel=2e-5)  # float32 products on their side


def test_pure_noise_has_the_variance_of_training(sd_table: Tensor) -> None:
    table, noise, clean = SigmaTable.of(sd_table), torch.randn(2, 3), torch.randn(2, 3)
    started = table.add_noise(torch.zeros(2, 3), noise, table.top)
    torch.testing.assert_close(started / (1 + table.top**2) ** 0.5, noise)
    torch.testing.assert_close(table.add_noise(clean, noise, 1.5), clean + 1.5 * noise)
    flow = SigmaTable.shifted_flow(3)
    torch.testing.assert_close(flow.add_noise(clean, noise, 1.0), noise)
    torch.testing.assert_close(flow.add_noise(clean, noise, 0.25), 0.75 * clean + 0.25 * noise)


def test_only_a_walk_to_timestep_0_is_scaled(sd_table: Tensor) -> None:
    table, x = SigmaTable.of(sd_table), torch.randn(2, 3)
    assert torch.equal(table.finished(x, 0.0), x) and torch.equal(table.finished(x, table.sigma(1)), x)
    torch.testing.assert_close(table.finished(x, table.bottom), x * 0.999574910)  # sqrt of alphas_cumprod[0]
    flow = SigmaTable.shifted_flow()
    assert torch.equal(flow.finished(x, flow.bottom), x)


@pytest.mark.parametrize(
    ("entries", "options", "found"),
    [
        ([1.0] * 50, {}, "50 entries"),
        ([*range(1, 1501)], {}, "1500 entries"),
        ([], {}, "0 entries"),
        ([*range(1000, 0, -1)], {}, "Entry 1 of the model's sigma table is 999 after 1000"),
        ([*range(1, 1000), math.nan], {}, "Entry 999 of the model's sigma table is nan"),
        ([*range(1, 1000), math.inf], {}, "is inf after 999"),
        ([-1.0, *range(999)], {}, "is 0 after -1"),
        ([*range(1, 1001)], {"flow": True}, "flow model ends at 1000"),
    ],
)
def test_what_is_no_table(entries: list[float], options: dict[str, Any], found: str) -> None:
    with pytest.raises(PCMError) as raised:
        SigmaTable.of(torch.tensor(entries, dtype=torch.float64), **options)
    assert found in raised.value.found
    assert all(part.endswith(".") for part in (raised.value.found, raised.value.expected, raised.value.action))


@pytest.mark.parametrize("shift", [0.0, -3.0, math.inf, math.nan])
def test_what_is_no_shift(shift: float) -> None:
    with pytest.raises(PCMError, match=r"The shift is .*Expected: a finite number above 0"):
        SigmaTable.shifted_flow(shift)
