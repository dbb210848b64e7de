"""Plans from user settings and profiles, and a complete run of the library with a closed-form model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pcm_core as pcm
from pcm_core.errors import PCMError
from pcm_core.plan import Plan, plan, resolve_r, sample
from pcm_core.profiles import PCMProfile, method_choices, profile_from_name, profile_of_method
from pcm_core.sampling import sample_pcm, seeded_noise
from pcm_core.sigma_table import SigmaTable

FLOW = SigmaTable.shifted_flow(3)
LISTED = PCMProfile(method="klein", sampling_class="fixed", steps=4, sigmas=(1.0, 0.97, 0.92, 0.77, 0.0))


@pytest.fixture
def table(sd_table: Tensor) -> SigmaTable:
    return SigmaTable.of(sd_table)


def of(name: str) -> PCMProfile:
    profile = profile_from_name(name)
    assert profile is not None
    return profile


def test_a_profile_is_enough(table: SigmaTable) -> None:
    made = plan(of("pcm_sd15_smallcfg_4step_converted"), table)
    assert made.sigmas.tolist() == [table.sigma(t) for t in (999, 749, 499, 249)] + [0.0]
    assert (made.r, made.cfg, made.steps, made.phases, made.notes) == ((1.0,) * 4, (1.0,) * 4, 4, 4, ())
    assert torch.equal(made.whole, made.sigmas) and made.phase_tops[0] == math.inf
    assert [made.cfg_at(sigma) for sigma in made.sigmas.tolist()] == [1.0] * 5


def test_cfg_follows_the_phase(table: SigmaTable) -> None:
    made = plan(of("pcm_sd15_normalcfg_4step_converted"), table, cfg="5, 3, 2, 1")
    # The second phase of this grid starts at 749, one timestep lower belongs to it still.
    assert [made.cfg_at(table.sigma(t)) for t in (999, 751, 750, 749, 700, 499, 249, 0)] == [5, 5, 3, 3, 3, 2, 1, 1]


def test_what_is_planned_is_what_is_asked(table: SigmaTable) -> None:
    made = plan(PCMProfile(), table, phases=4, steps=2, spacing="aligned", grid=50, terminal="alpha0", cfg=2.5)
    assert made.sigmas.tolist() == [table.sigma(t) for t in (999, 499, 0)] and made.cfg == (2.5,) * 4
    (note,) = made.notes
    assert "4 phases" in note
    spent = plan(PCMProfile(), table, phases=2, steps=4, spend_extra_steps=True)
    assert spent.steps == 4 and spent.phases == 2 and spent.notes == ()


def test_denoise_enters_and_the_whole_stays_known(table: SigmaTable) -> None:
    made = plan(of("pcm_sd15_smallcfg_4step"), table, denoise=0.6)
    assert made.sigmas.tolist() == [table.sigma(t) for t in (600, 499, 249)] + [0.0] and len(made.whole) == 5
    none = plan(of("pcm_sd15_smallcfg_4step"), table, denoise=0)
    assert none.sigmas.numel() == none.steps == len(none.r) == 0 and none.phases == 4


@pytest.mark.parametrize(
    ("denoise", "later"),
    [(0.3, [0.0]), (0.6, [0.77, 0.0]), (0.9, [0.92, 0.77, 0.0]), (1.0, [0.97, 0.92, 0.77, 0.0])],
)
def test_a_listed_profile_enters_at_the_noise_that_was_asked(denoise: float, later: list[float]) -> None:
    """A low denoise must not start at a high sigma of a fixed list (klein, LTXV, FastWan)."""
    made = plan(LISTED, FLOW, denoise=denoise)
    assert made.sigmas.tolist() == pytest.approx([3 * denoise / (1 + 2 * denoise), *later], abs=1e-6)
    assert made.phases == 4 and bool(made.notes) == (denoise < 1)


def listed_profiles() -> list[PCMProfile]:
    """Every method of the table with a list of its own, on a flow model."""
    found = [profile_of_method(choice) for choice in method_choices()]
    return [profile for profile in found if profile.sigmas or profile.levels]


@pytest.mark.parametrize("profile", listed_profiles(), ids=lambda profile: profile.method)
def test_every_fixed_list_of_the_table_enters_at_the_level_asked(profile: PCMProfile) -> None:
    """The level itself, or the listed one below where no solver step lies between; then every later level."""
    table = SigmaTable.shifted_flow(profile.shift or 3.0)
    whole = plan(profile, table).sigmas.tolist()
    assert len(whole) >= 4
    for denoise in (0.05, 0.2, 0.35, 0.485, 0.6, 0.75, 0.9, 0.99):
        level = table.sigmas[round(denoise * 1000) - 1]
        found = plan(profile, table, denoise=denoise).sigmas.tolist()
        later = [sigma for sigma in whole if sigma < level]
        if level >= whole[0]:
            assert found == whole
        elif len(found) == len(later):
            assert found == later and table.timestep(level) - table.timestep(later[0]) < 1000 / profile.grid
        else:
            assert found == pytest.approx([level, *later], abs=1e-6)


def test_an_entry_just_above_a_listed_sigma_is_that_sigma() -> None:
    denoise = 0.77 / (3 - 2 * 0.77) + 0.01  # ten timesteps above .77, less than a solver step
    made = plan(LISTED, FLOW, denoise=round(denoise, 3))
    assert made.sigmas.tolist() == pytest.approx([0.77, 0.0])


def test_a_listed_profile_keeps_its_list(table: SigmaTable) -> None:
    made = plan(LISTED, FLOW, steps=6, terminal="alpha0")
    assert made.sigmas.tolist() == pytest.approx([1.0, 0.97, 0.92, 0.77, FLOW.bottom])
    assert made.schedule is None and "fixed list of 4 steps, not 6" in made.notes[0]
    left = plan(LISTED, FLOW, spacing="tcd", phases=2)
    assert left.steps == 2 and any("own list of 4 steps is not used" in note for note in left.notes)


@pytest.mark.parametrize(
    ("profile", "asked", "expected"),
    [
        (PCMProfile(), {}, (1.0,) * 4),
        (PCMProfile(determinism=0.0), {}, (0.0,) * 4),
        (PCMProfile(determinism=0.0), {"determinism": 0.5}, (0.5,) * 4),
        (PCMProfile(determinism=0.0), {"gamma": 0.0}, (1.0,) * 4),
        (PCMProfile(gamma=0.3), {}, (0.184694, 0.372067, 0.542920, 1.0)),
        (PCMProfile(ancestral=True), {}, (0.078002, 0.156140, 0.184719, 1.0)),
        (PCMProfile(ancestral=True), {"determinism": 1.0}, (1.0,) * 4),
    ],
)
def test_r_is_what_the_user_said_or_the_profile(
    profile: PCMProfile, asked: dict[str, float], expected: tuple[float, ...], table: SigmaTable
) -> None:
    made = plan(profile, table, steps=4, **asked)  # pyright: ignore[reportArgumentType]
    assert made.r == pytest.approx(expected, abs=2e-6)
    assert resolve_r(made.profile, made.sigmas, table, **asked) == made.r


def test_a_part_of_a_plan(table: SigmaTable) -> None:
    whole = plan(replace(of("pcm_sd15_smallcfg_4step"), gamma=0.3), table)
    first, rest = whole.part(0, 2, leftover_noise=True), whole.part(2, 10000, leftover_noise=True)
    assert torch.equal(torch.cat([first.sigmas, rest.sigmas[1:]]), whole.sigmas) and first.r + rest.r == whole.r
    assert whole.part(0, 2, leftover_noise=False).sigmas.tolist() == [*whole.sigmas[:2].tolist(), 0.0]
    beyond = whole.part(4, 5, leftover_noise=False)
    assert beyond.steps == 0 and beyond.r == ()
    assert first.whole is whole.whole and first.phase_tops == whole.phase_tops


def perfect(table: SigmaTable, edges: tuple[float, ...]) -> Any:
    """The x0 that lands on the next edge of the ODE of unit Gaussian data."""

    def std(sigma: float) -> float:
        return math.sqrt(((1 - sigma) ** 2 if table.flow else 1) + sigma**2)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        here = float(sigma[0])
        edge = max(e for e in edges if e < here)
        return x - here * (x - x * (std(edge) / std(here))) / (here - edge)

    return model


@pytest.mark.parametrize("flow", [False, True])
def test_the_library_samples_by_itself(flow: bool, table: SigmaTable) -> None:
    used = FLOW if flow else table
    made = plan(of("pcm_sd15_smallcfg_4step"), used, terminal="zero" if flow else "alpha0")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    result = sample(perfect(used, tuple(made.sigmas.tolist())), made, noise)
    # Unit noise becomes unit data, in variance preserving coordinates.
    torch.testing.assert_close(result, noise, rtol=2e-5, atol=2e-5)


def test_a_run_is_the_loop_with_the_right_start(table: SigmaTable) -> None:
    made = plan(PCMProfile(determinism=0.5), table, steps=4, denoise=0.5)
    noise, latent = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    x = latent + noise * made.sigmas[0]
    expected = sample_pcm(
        lambda x, sigma: x * 0.5, x, made.sigmas, determinism=0.5, noise_sampler=seeded_noise(x, 5)
    )  # fmt: skip
    got = sample(lambda x, sigma: x * 0.5, made, noise, latent=latent, seed=5)
    assert torch.equal(got, expected)
    empty = plan(PCMProfile(), table, denoise=0)
    assert sample(lambda x, sigma: x, empty, noise, latent=latent) is latent


def test_the_face_of_the_library() -> None:
    assert pcm.sample is sample and pcm.Plan is Plan
    assert torch.equal(pcm.plan(PCMProfile(), FLOW, steps=2).sigmas, plan(PCMProfile(), FLOW, steps=2).sigmas)
    assert pcm.distill.Trainer.__name__ == "Trainer" and callable(pcm.distill)
    assert callable(pcm.lora.read_lora)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pcm.nonsense  # pyright: ignore[reportAttributeAccessIssue]


# Bad input


@pytest.mark.parametrize(
    ("profile", "options", "found"),
    [
        (PCMProfile(), {"denoise": -0.1}, "denoise is -0.1"),
        (PCMProfile(), {"denoise": math.nan}, "denoise is nan"),
        (PCMProfile(), {"determinism": 1.5}, "determinism is 1.5"),
        (PCMProfile(), {"gamma": math.nan}, "gamma is nan"),
        (PCMProfile(), {"determinism": 0.5, "gamma": 0.5}, "determinism is 0.5 and gamma is 0.5"),
        (PCMProfile(), {"cfg": "3, 1", "steps": 4}, "cfg has 2 values"),
        (PCMProfile(), {"steps": 100}, "steps is 100"),
        (PCMProfile(method="PeRFlow", sampling_class="unsupported"), {}, "method PeRFlow"),
        (replace(LISTED, sigmas=(14.6, 1.0, 0.0)), {}, "from sigma 14.6, and the model's pure noise is at sigma 1"),
    ],
)
def test_bad_plans_are_refused(profile: PCMProfile, options: dict[str, Any], found: str) -> None:
    with pytest.raises(PCMError) as raised:
        plan(profile, FLOW, **options)
    assert found in raised.value.found
    assert all(part.endswith(".") for part in (raised.value.found, raised.value.expected, raised.value.action))


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 2)])
def test_a_part_without_steps_is_refused(start: int, end: int) -> None:
    with pytest.raises(PCMError, match=f"from {start} to {end}"):
        plan(PCMProfile(), FLOW).part(start, end, leftover_noise=False)


@pytest.mark.parametrize("denoise", [0.0, 0.5])
def test_a_run_from_below_pure_noise_needs_a_latent(denoise: float) -> None:
    with pytest.raises(PCMError, match="latent to start from"):
        sample(lambda x, sigma: x, plan(PCMProfile(), FLOW, denoise=denoise), torch.zeros(1, 4))
