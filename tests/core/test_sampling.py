"""The sampler against closed forms. Model outputs come from a known function; the sampler sees only x0."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_0_1_0 import sample_as_0_1_0
from torch import Tensor

from benchmarks.common import peak_bytes
from pcm_core.errors import PCMError
from pcm_core.phases import Spacing, build_schedule
from pcm_core.sampling import gamma_to_determinism, is_finite, jump, sample_pcm, seeded_noise, stochastic_jump

laws = settings(max_examples=300)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def alpha_of(sigma: float) -> float:
    """The factor between a variance exploding and a variance preserving latent."""
    return 1 / math.sqrt(1 + sigma**2)


def free_model(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
    """An x0 that depends on every input of a model, sample by sample."""
    level = sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x / (1 + level)) * 0.9 + 0.1 * torch.cos(3 * level)


class Recorder:
    """A model that records its inputs and outputs."""

    def __init__(self, model: Callable[..., Tensor] = free_model) -> None:
        self.model = model
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
        self.outputs: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        self.calls.append((x, sigma, extra_args))
        self.outputs.append(self.model(x, sigma, **extra_args))
        return self.outputs[-1]


@pytest.fixture
def sigmas(sd_table: Tensor) -> Tensor:
    return build_schedule(4, terminal="alpha0").sigmas(sd_table)


@pytest.fixture(scope="module")
def table64(sd_table: Tensor) -> Tensor:
    """The same table without rounding to float32."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas = torch.cumprod(1 - betas, dim=0)
    table = ((1 - alphas) / alphas).sqrt()
    assert torch.equal(table.float(), sd_table)
    return table


def start(sigma: Tensor, shape: tuple[int, ...] = (3, 4, 5, 6), seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * sigma


# The jump


def vp_jump(x: float, eps: float, sigma: float, sigma_next: float) -> tuple[float, float]:
    """A jump of an eps model in variance preserving coordinates: (x0, x_s), through ``jump``."""
    y = double(x / alpha_of(sigma))
    denoised = y - sigma * eps
    return denoised.item(), jump(y, denoised, sigma, sigma_next).item() * alpha_of(sigma_next)


@pytest.mark.parametrize(
    ("t", "t_next", "x0", "landing"),
    [
        (999, 739, 14.638561850, 3.334199817),
        (739, 499, 4.000652489, 1.853148518),
        (499, 239, 1.812281049, 1.340741565),
        (239, 0, 1.041895522, 1.032706194),
        (999, 0, 14.638561850, 14.623592711),  # one step
    ],
)
def test_eps_jumps_between_edges(t: int, t_next: int, x0: float, landing: float, table64: Tensor) -> None:
    got = vp_jump(0.7, -0.3, table64[t].item(), table64[t_next].item())
    assert got == pytest.approx((x0, landing), abs=2e-9)


def test_the_jump_is_a_lerp_in_sigma_space(table64: Tensor) -> None:
    sigma, sigma_next = table64[999].item(), table64[739].item()
    assert sigma_next / sigma == pytest.approx(0.267718732, abs=1e-9)
    landing = jump(double(0.7 / alpha_of(sigma)), double(14.638561850), sigma, sigma_next).item()
    assert landing == pytest.approx(13.464777886, abs=5e-9)
    assert landing * alpha_of(sigma_next) == pytest.approx(3.334199817, abs=2e-9)


def test_v_prediction_jump(table64: Tensor) -> None:
    sigma, sigma_next = table64[999].item(), table64[739].item()
    alpha = alpha_of(sigma)
    x0 = alpha * 0.7 - sigma * alpha * 0.4
    assert x0 == pytest.approx(-0.351281452, abs=1e-9)
    landing = jump(double(0.7 / alpha), double(x0), sigma, sigma_next).item() * alpha_of(sigma_next)
    assert landing == pytest.approx(0.616087193, abs=1e-9)


def test_flow_jump() -> None:
    x, v = double(0.7), double(0.4)
    denoised = x - 0.9 * v
    assert denoised.item() == pytest.approx(0.34)
    assert jump(x, denoised, 0.9, 0.75).item() == pytest.approx(0.64)
    noisy = stochastic_jump(x, denoised, double(0.5), 0.9, 0.75, 0.0, flow=True)
    assert noisy.item() == pytest.approx(0.25 * 0.34 + 0.75 * 0.5)


timesteps = st.integers(1, 999)
values = st.floats(-5, 5)


@laws
@given(t=timesteps, share=st.floats(0, 1), x=values, output=values, kind=st.sampled_from(["eps", "v", "x0"]))
def test_the_lerp_is_the_papers_jump(t: int, share: float, x: float, output: float, kind: str, table64: Tensor) -> None:
    sigma, sigma_next = table64[t].item(), table64[int(share * t)].item()
    alpha, alpha_next = alpha_of(sigma), alpha_of(sigma_next)
    std, std_next = sigma * alpha, sigma_next * alpha_next
    # Eq. 2 as the paper writes it, on x0 and eps of the variance preserving latent.
    if kind == "eps":
        x0, eps = (x - std * output) / alpha, output
    elif kind == "v":
        x0, eps = alpha * x - std * output, std * x + alpha * output
    else:
        x0, eps = output, (x - alpha * output) / std
    papers = alpha_next * x0 + std_next * eps
    ours = jump(double(x / alpha), double(x0), sigma, sigma_next).item() * alpha_next
    assert ours == pytest.approx(papers, rel=1e-12, abs=1e-12)


@laws
@given(sigma=st.floats(1e-3, 1), share=st.floats(0, 1), x=values, v=values)
def test_the_lerp_is_the_euler_step_of_a_flow_model(sigma: float, share: float, x: float, v: float) -> None:
    sigma_next = share * sigma
    ours = jump(double(x), double(x - sigma * v), sigma, sigma_next).item()
    assert ours == pytest.approx(x + (sigma_next - sigma) * v, rel=1e-12, abs=1e-12)


@laws
@given(sigma=st.floats(1e-3, 100), x=st.floats(-1e3, 1e3), denoised=st.floats(-1e3, 1e3))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_jump_of_no_length_changes_no_bit(sigma: float, x: float, denoised: float, dtype: torch.dtype) -> None:
    here = torch.tensor([x], dtype=dtype)
    assert torch.equal(jump(here, torch.tensor([denoised], dtype=dtype), sigma, sigma), here)


# Closed-form phased models


def perfect_model(edges: list[float], variance: float, flow: bool) -> Callable[..., Tensor]:
    """The x0 whose jump lands exactly on the probability flow ODE at the edge below, for Gaussian data.

    The ODE scales x by the standard deviation of the marginal, so the exact landing is known.
    """

    def std(sigma: float) -> float:
        return math.sqrt(((1 - sigma) ** 2 if flow else 1) * variance + sigma**2)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        here = sigma[0].item()
        edge = max((e for e in edges if e < here * (1 - 1e-9)), default=0.0)
        landing = x * (std(edge) / std(here))
        return x - here * (x - landing) / (here - edge)

    return model


def run_perfect(schedule_sigmas: Tensor, edges: list[float], variance: float = 1.0, flow: bool = False) -> float:
    top = schedule_sigmas[0].item()
    noise = math.sqrt(((1 - top) ** 2 if flow else 1) * variance + top**2)
    return sample_pcm(perfect_model(edges, variance, flow), double(noise), schedule_sigmas).item()


def test_the_perfect_phased_model_of_the_50_point_grid(table64: Tensor) -> None:
    edges = [table64[t].item() for t in (0, 239, 499, 739)]

    def endpoint(spacing: Spacing, last: float) -> float:
        points = build_schedule(4, spacing=spacing).timesteps
        return run_perfect(torch.stack([table64[t] for t in points] + [double(last)[0]]), edges)

    assert endpoint("aligned", edges[0]) == pytest.approx(1.0004252711, abs=1e-9)
    assert endpoint("aligned", edges[0]) * alpha_of(edges[0]) == pytest.approx(1, abs=1e-12)
    assert endpoint("trailing", edges[0]) == pytest.approx(0.8067544, abs=1e-6)
    assert endpoint("tcd", edges[0]) == pytest.approx(0.8043416, abs=1e-6)
    assert endpoint("aligned", 0.0) == pytest.approx(0.9912001, abs=1e-6)


@pytest.mark.parametrize("variance", [0.04, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("grid", [40, 50, 100])
@pytest.mark.parametrize("phases", [1, 2, 4, 8, 16])
def test_perfect_phased_models_are_exact_on_their_edges(
    phases: int, grid: int, variance: float, table64: Tensor
) -> None:
    points = build_schedule(phases, spacing="aligned", grid=grid).timesteps
    levels = [table64[t].item() for t in (*points, 0)]
    end = run_perfect(double(*levels), levels, variance)
    assert end == pytest.approx(math.sqrt(variance + levels[-1] ** 2), abs=1e-9)


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_perfect_phased_flow_models_are_exact_on_their_edges(phases: int, variance: float) -> None:
    levels = [i / phases for i in range(phases, -1, -1)]
    shifted = [3 * s / (1 + 2 * s) for s in levels]
    assert run_perfect(double(*shifted), shifted, variance, flow=True) == pytest.approx(math.sqrt(variance), abs=1e-9)


# The contract


def test_callback_gets_the_models_x0_before_each_update(sigmas: Tensor) -> None:
    model, seen = Recorder(), []
    x = start(sigmas[0])
    result = sample_pcm(model, x, sigmas, callback=seen.append)
    assert [entry["i"] for entry in seen] == [0, 1, 2, 3]
    for i, entry in enumerate(seen):
        assert set(entry) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert entry["denoised"] is model.outputs[i], f"step {i}"
        assert entry["x"] is model.calls[i][0], f"step {i}"
        assert entry["sigma"] == entry["sigma_hat"] == sigmas[i]
    assert seen[0]["x"] is x
    assert torch.equal(result, jump(seen[-1]["x"], seen[-1]["denoised"], *sigmas[-2:].tolist()))


@pytest.mark.parametrize("determinism", [1.0, 0.5, 0.0])
def test_what_the_caller_owns_is_not_written_to(determinism: float, sigmas: Tensor) -> None:
    seen: list[dict[str, Any]] = []
    x = start(sigmas[0])
    extra_args = {"seed": 3, "model_options": {}}
    owned = [x, sigmas]
    before = [(tensor.clone(), tensor._version) for tensor in owned]
    sample_pcm(
        Recorder(), x, sigmas, extra_args, lambda entry: seen.append(entry | {"copy": entry["denoised"].clone()}),
        determinism=determinism,
    )  # fmt: skip
    for tensor, (copy, version) in zip(owned, before, strict=True):
        assert torch.equal(tensor, copy) and tensor._version == version
    assert extra_args == {"seed": 3, "model_options": {}}
    assert all(torch.equal(entry["denoised"], entry["copy"]) for entry in seen)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("determinism", "scale"), [(1.0, 1.0), (0.5, 1.0), (0.0, 1.0), (0.5, 2.0), (0.0, 2.0)])
def test_memory_is_one_latent_beside_the_state(determinism: float, scale: float, flow: bool) -> None:
    """The next state and any fresh noise beside the current state; while the model runs, nothing."""
    x0, x = start(torch.ones(()), (1, 4, 64, 64), 1), start(torch.ones(()), (1, 4, 64, 64), 2)
    sigmas = torch.linspace(1, 0, 6)
    settings: dict[str, Any] = {"determinism": determinism, "flow": flow, "noise_scale": scale}

    def held(workspace: int) -> float:
        def model(*_: Any) -> Tensor:
            torch.zeros(workspace, *x.shape)
            return x0

        return peak_bytes(lambda: sample_pcm(model, x, sigmas, **settings)) / x.nbytes

    most = 2 if determinism == 1 else 3
    assert most <= held(0) < most + 0.01
    assert 1 + 9 <= held(9) < 1 + 9.01, "while the model runs only the state is held"


@pytest.mark.parametrize("determinism", [1.0, 0.5, 0.0])
def test_the_x0_before_has_gone_when_the_model_runs(determinism: float) -> None:
    seen: list[weakref.ref[Tensor]] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        assert not [one for one in seen if one() is not None]
        seen.append(weakref.ref(x0 := x * 0.5))
        return x0

    sample_pcm(model, start(torch.ones(())), torch.linspace(1, 0, 6), determinism=determinism)
    assert len(seen) == 5


def test_the_model_is_called_once_per_step_with_a_sigma_per_sample(sigmas: Tensor) -> None:
    model = Recorder()
    extra_args = {"seed": 1, "cond_scale": 2.0}
    sample_pcm(model, start(sigmas[0]), sigmas, extra_args)
    assert len(model.calls) == 4
    for i, (x, sigma, received) in enumerate(model.calls):
        assert x.shape == (3, 4, 5, 6) and received == extra_args
        assert sigma.tolist() == [sigmas[i].item()] * 3, f"step {i}"


def test_steps_are_lerps_towards_the_models_x0(sigmas: Tensor) -> None:
    model = Recorder()
    result = sample_pcm(model, start(sigmas[0]), sigmas)
    states = [x for x, _, _ in model.calls] + [result]
    for i, denoised in enumerate(model.outputs):
        expected = denoised + (states[i] - denoised) * (sigmas[i + 1] / sigmas[i])
        torch.testing.assert_close(states[i + 1], expected, rtol=1e-6, atol=1e-6, msg=lambda m, i=i: f"step {i}: {m}")


def test_terminal_zero_ends_at_the_models_x0(sd_table: Tensor) -> None:
    model = Recorder()
    result = sample_pcm(model, start(sd_table[-1]), build_schedule(4).sigmas(sd_table))
    assert torch.equal(result, model.outputs[-1])


def test_no_steps_return_the_latent() -> None:
    model, x = Recorder(), torch.ones(1, 4)
    for sigmas in (torch.empty(0), torch.empty(0, dtype=torch.float64)):
        assert torch.equal(sample_pcm(model, x, sigmas), x)
    assert not model.calls


def test_progress_wraps_the_steps(sigmas: Tensor) -> None:
    wrapped: list[range] = []

    def progress(count: int) -> range:
        wrapped.append(range(count))
        return wrapped[-1]

    sample_pcm(free_model, start(sigmas[0]), sigmas, progress=progress)
    assert wrapped == [range(4)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 4, 8), (2, 4, 3, 5), (1, 16, 3, 4, 5), (1, 1, 7)])
@pytest.mark.parametrize("determinism", [1.0, 0.5])
def test_every_rank_and_dtype(shape: tuple[int, ...], dtype: torch.dtype, determinism: float, sigmas: Tensor) -> None:
    x = start(sigmas[0], shape).to(dtype)
    result = sample_pcm(free_model, x, sigmas, {"seed": 0}, determinism=determinism)
    assert result.shape == shape and result.dtype == dtype and result.isfinite().all()


def test_no_gradient_is_kept(sigmas: Tensor) -> None:
    assert not sample_pcm(free_model, start(sigmas[0]).requires_grad_(), sigmas).requires_grad


# What 0.1.0 sampled


LEVELS = {False: [14.614641, 4.081729, 1.612886, 0.693205, 0.0291672], True: [1.0, 0.9, 0.75, 0.5, 0.0]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("determinism", [1.0, 0.7, 0.25, 0.0, (1.0, 0.5, 0.0, 0.3), (0.0, 1.0, 1.0, 0.0)])
@pytest.mark.parametrize("flow", [False, True])
def test_the_same_bits_as_0_1_0(flow: bool, determinism: Any, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"determinism": determinism, "flow": flow, "noise_scale": 2.0 if flow else 1.0}
    levels = torch.tensor(LEVELS[flow])
    for shape in ((2, 4, 8, 8), (1, 16, 3, 5, 7), (1, 16, 64, 66)):
        x = start(levels[0], shape).to(dtype)
        for part, final in ((levels, True), (levels[:3], False), (levels[1:], True)):
            r = determinism if isinstance(determinism, float) else determinism[: len(part) - 1]
            told: list[Tensor] = []
            arguments = ({"seed": 11}, lambda info, told=told: told.append(info["x"]))
            ours = sample_pcm(free_model, x, part, *arguments, **options | {"determinism": r, "final": final})
            seen, told[:] = [*told], []
            theirs = sample_as_0_1_0(free_model, x, part, *arguments, **options | {"determinism": r, "final": final})
            assert torch.equal(ours, theirs), (shape, final)
            assert all(map(torch.equal, seen, told))


# Determinism


def test_the_same_input_gives_the_same_bits_in_any_batch(sigmas: Tensor) -> None:
    x = start(sigmas[0], (4, 4, 8, 8))
    whole = sample_pcm(free_model, x, sigmas)
    assert torch.equal(sample_pcm(free_model, x, sigmas), whole)
    assert torch.equal(sample_pcm(free_model, x.flip(0), sigmas), whole.flip(0))
    for i in range(4):
        assert torch.equal(sample_pcm(free_model, x[i : i + 1], sigmas)[0], whole[i]), f"sample {i}"


def test_the_seed_changes_nothing_after_the_initial_noise(sigmas: Tensor) -> None:
    x = start(sigmas[0])
    state = torch.get_rng_state()
    first = sample_pcm(free_model, x, sigmas, {"seed": 1})
    assert torch.equal(sample_pcm(free_model, x, sigmas, {"seed": 2}), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_determinism_one_is_the_deterministic_path_to_the_bit(sigmas: Tensor) -> None:
    x = start(sigmas[0])
    plain = sample_pcm(free_model, x, sigmas)
    for determinism in (1, 1.0, [1.0] * 4, gamma_to_determinism(0, sigmas, torch.linspace(0.03, 14, 1000))):
        assert torch.equal(sample_pcm(free_model, x, sigmas, determinism=determinism), plain)


# Stochastic jumps


def test_gamma_is_eq_44(table64: Tensor) -> None:
    top, s, below = table64[999], table64[499], table64[349]
    (rate,) = gamma_to_determinism(0.3, torch.stack([top, s]), table64)
    assert rate == pytest.approx(0.372067, abs=1e-6)
    assert math.sqrt(s.item() ** 2 - below.item() ** 2) == pytest.approx(1.278087, abs=1e-6)
    # x0 = 1 and predicted noise d = .2 at the top, fresh noise -.5.
    y = double(1 + 0.2 * top.item())
    landing = stochastic_jump(y, double(1), double(-0.5), top.item(), s.item(), rate, flow=False).item()
    assert landing == pytest.approx(0.557720, abs=1e-6)
    # TCD's own words: deterministically to s', then forward to s.
    forward = 1 + 0.2 * below.item() - 0.5 * math.sqrt(s.item() ** 2 - below.item() ** 2)
    assert landing == pytest.approx(forward, abs=1e-12)


@pytest.mark.parametrize(
    ("gamma", "timestep", "rate"),
    [
        (0.3, 739, 0.191728),
        (0.3, 749, 0.184694),
        (0.3, 759, 0.177754),
        (0.3, 499, 0.372067),
        (0.3, 249, 0.542920),
        (0.3, 259, 0.536617),
        (0.3, 239, 0.549194),
        (0.5, 499, 0.184721),
        (0.5, 749, 0.068585),
        (1.0, 499, 0.000327),
    ],
)
def test_gamma_of_the_published_timesteps(gamma: float, timestep: int, rate: float, sd_table: Tensor) -> None:
    sigmas = sd_table[[999, timestep, 0]]
    first, last = gamma_to_determinism(gamma, sigmas, sd_table)
    assert first == pytest.approx(rate, abs=1e-6) and last == 1


@laws
@given(s=timesteps, gamma=st.floats(0, 1), x0=values, d=values, fresh=values)
def test_a_gamma_jump_goes_to_s_prime_and_forward(
    s: int, gamma: float, x0: float, d: float, fresh: float, table64: Tensor
) -> None:
    top, here, below = (table64[t].item() for t in (999, s, math.floor((1 - gamma) * s)))
    (rate,) = gamma_to_determinism(gamma, double(top, here), table64)
    landing = stochastic_jump(double(x0 + d * top), double(x0), double(fresh), top, here, rate, flow=False).item()
    forward = x0 + d * below + fresh * math.sqrt(here**2 - below**2)
    assert landing == pytest.approx(forward, rel=1e-7, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.3, 0.7])
def test_a_gamma_jump_of_a_flow_model_keeps_signal_and_noise_in_proportion(gamma: float) -> None:
    # Deterministically to s', then forward: scale the signal to 1 - s and add what is missing of the noise.
    table = torch.arange(1, 1001, dtype=torch.float64) / 1000
    s, below = table[499].item(), table[math.floor((1 - gamma) * 499)].item()
    (rate,) = gamma_to_determinism(gamma, double(0.9, s), table)
    scale = (1 - s) / (1 - below)
    forward = scale * ((1 - below) * 0.3 + below * 0.8) - 0.5 * math.sqrt(s**2 - (scale * below) ** 2)
    landing = stochastic_jump(double(0.1 * 0.3 + 0.9 * 0.8), double(0.3), double(-0.5), 0.9, s, rate, flow=True)
    assert landing.item() == pytest.approx(forward, abs=1e-12)


@laws
@given(sigma=st.floats(0.01, 1), share=st.floats(0, 1), x=values, denoised=values, flow=st.booleans())
def test_a_stochastic_jump_without_noise_is_the_jump(
    sigma: float, share: float, x: float, denoised: float, flow: bool
) -> None:
    arguments = double(x), double(denoised)
    stochastic = stochastic_jump(*arguments, double(9.0), sigma, share * sigma, 1.0, flow=flow)
    assert stochastic.item() == pytest.approx(jump(*arguments, sigma, share * sigma).item(), rel=1e-12, abs=1e-11)


@pytest.mark.parametrize("flow", [False, True])
def test_determinism_zero_renoises_the_x0(flow: bool, sd_table: Tensor) -> None:
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]) if flow else build_schedule(4).sigmas(sd_table)
    x, model, drawn = start(sigmas[0]), Recorder(), []

    def noise_sampler(sigma: float, sigma_next: float) -> Tensor:
        drawn.append((sigma, sigma_next, start(torch.ones(()), seed=len(drawn) + 10)))
        return drawn[-1][2]

    sample_pcm(
        model, x, sigmas, determinism=0, flow=flow, noise_scale=2.0 if flow else 1.0, noise_sampler=noise_sampler
    )
    assert [pair[:2] for pair in drawn] == list(zip(sigmas.tolist(), sigmas.tolist()[1:], strict=False))[:3]
    for i, (_, sigma_next, noise) in enumerate(drawn):
        x0 = model.outputs[i]
        renoised = (1 - sigma_next) * x0 + sigma_next * 2 * noise if flow else x0 + sigma_next * noise
        torch.testing.assert_close(model.calls[i + 1][0], renoised, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("terminal", ["zero", "alpha0"])
@pytest.mark.parametrize("determinism", [0.0, 0.3, [0.5, 0.0, 1.0, 0.0]])
def test_the_last_step_never_adds_noise(terminal: Any, determinism: Any, sd_table: Tensor) -> None:
    sigmas = build_schedule(4, terminal=terminal).sigmas(sd_table)
    model, calls = Recorder(), []

    def noise_sampler(sigma: float, sigma_next: float) -> Tensor:
        calls.append(sigma)
        return torch.ones(3, 4, 5, 6)

    result = sample_pcm(model, start(sigmas[0]), sigmas, determinism=determinism, noise_sampler=noise_sampler)
    assert len(calls) == (2 if isinstance(determinism, list) else 3)
    torch.testing.assert_close(result, jump(model.calls[-1][0], model.outputs[-1], *sigmas[-2:].tolist()))


def test_a_run_in_two_parts_is_the_whole_run(sigmas: Tensor) -> None:
    x, noise = start(sigmas[0]), seeded_noise(start(sigmas[0]), 3)
    whole = sample_pcm(free_model, x, sigmas, {"seed": 3}, determinism=0.5)
    middle = sample_pcm(free_model, x, sigmas[:3], determinism=0.5, noise_sampler=noise, final=False)
    assert torch.equal(sample_pcm(free_model, middle, sigmas[2:], determinism=0.5, noise_sampler=noise), whole)
    finished = sample_pcm(free_model, x, sigmas[:3], {"seed": 3}, determinism=0.5)
    assert not torch.equal(finished, middle)
    assert torch.equal(sample_pcm(free_model, x, sigmas[:3], {"seed": 3}, determinism=0.5, final=False), middle)


def test_noise_comes_from_the_seed(sigmas: Tensor) -> None:
    x = start(sigmas[0])

    def run(seed: int | None) -> Tensor:
        return sample_pcm(free_model, x, sigmas, {"seed": seed}, determinism=0.5)

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))
    assert not torch.equal(run(None), run(None))
    assert torch.equal(run(2**64 - 1), run(2**64 - 1))


def test_noise_of_a_seed_is_that_of_k_diffusion_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(8)
    sampler = seeded_noise(torch.empty(2, 3), 7)
    for _ in range(2):
        assert torch.equal(sampler(2.0, 1.0), torch.randn(2, 3, generator=generator))


def test_noise_for_another_device_is_the_same_draw_moved_there(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[Tensor] = []
    randn = torch.randn

    def watched(*args: Any, **options: Any) -> Tensor:
        draws.append(randn(*args, **options))
        return draws[-1]

    monkeypatch.setattr(torch, "randn", watched)
    here, there = seeded_noise(torch.empty(2, 3), 7), seeded_noise(torch.empty(2, 3, device="meta"), 7)
    for _ in range(2):
        assert there(2.0, 1.0).device.type == "meta"
        assert torch.equal(draws[-1], here(2.0, 1.0))


# Bad input


def assert_three_parts(error: PCMError, found: str) -> None:
    assert found in error.found
    for part in (error.found, error.expected, error.action):
        assert part.endswith(".") and part in str(error)


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ([1.0], "single sigma, 1"),
        ([1.0, 2.0], "2 after 1"),
        ([2.0, 1.0, 1.0, 0.0], "Sigma 2 of the schedule is 1 after 1"),
        ([2.0, 1.0, -0.5], "-0.5 after 1"),
        ([2.0, math.nan, 0.0], "nan after 2"),
        ([math.nan, 1.0], "1 after nan"),
        ([math.inf, 1.0], "1 after inf"),
        ([0.0, 0.0], "0 after 0"),
    ],
)
def test_bad_sigmas_are_refused(levels: list[float], found: str) -> None:
    model = Recorder()
    with pytest.raises(PCMError) as raised:
        sample_pcm(model, torch.zeros(1, 4), torch.tensor(levels))
    assert_three_parts(raised.value, found)
    assert not model.calls


@pytest.mark.parametrize(
    ("determinism", "found"),
    [(-0.1, "-0.1"), (1.1, "1.1"), (math.nan, "nan"), ([1.0, 1.0], "2 values"), ([1.0, 2.0, 1.0, 1.0], "2.0")],
)
def test_bad_determinism_is_refused(determinism: Any, found: str, sigmas: Tensor) -> None:
    with pytest.raises(PCMError) as raised:
        sample_pcm(free_model, start(sigmas[0]), sigmas, determinism=determinism)
    assert_three_parts(raised.value, found)


@pytest.mark.parametrize("gamma", [-0.01, 1.01, math.nan])
def test_bad_gamma_is_refused(gamma: float, sigmas: Tensor, sd_table: Tensor) -> None:
    with pytest.raises(PCMError) as raised:
        gamma_to_determinism(gamma, sigmas, sd_table)
    assert_three_parts(raised.value, f"gamma is {gamma}")


class TestIsFinite:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("values", [(), (math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf)], ids=str)
    def test_one_value_in_any_place_and_dtype(self, dtype: torch.dtype, values: tuple[float, ...]) -> None:
        x = torch.randn(2, 3, 5, 7).to(dtype)
        x.view(-1)[torch.arange(len(values)) * 31] = torch.tensor(values, dtype=dtype)
        assert is_finite(x) == (not values)

    def test_a_sum_that_overflows_is_looked_at_again(self) -> None:
        assert is_finite(torch.full((4,), 3e38)) and is_finite(torch.full((4,), 6e4, dtype=torch.float16))

    def test_no_temporary_of_the_size_of_the_latent(self) -> None:
        x = torch.randn(1, 16, 128, 128)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            assert is_finite(x)
        allocated = [event.self_cpu_memory_usage for event in profile.key_averages()]
        assert 0 < max(allocated) < 1000
