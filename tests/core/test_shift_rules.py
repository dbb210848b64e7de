"""Shifts that follow the size of the image, and grids of the host's own schedulers."""

from __future__ import annotations

import numpy as np
import pytest

from pcm_core.errors import PCMError
from pcm_core.plan import plan
from pcm_core.profiles import profile_from_name
from pcm_core.profiles.shift_rules import mu_of, sigmas_for_size
from pcm_core.sigma_table import SigmaTable

TABLE = SigmaTable.shifted_flow(3)
SIZES = [(512, 512), (1024, 1024), (1408, 1408), (1536, 640), (2048, 2048)]


def diffusers_sigmas(levels: list[float], mu: float) -> list[float]:
    """diffusers' own scheduler, configured as in its FLUX.2 pipelines."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    scheduler.set_timesteps(sigmas=levels, mu=mu)
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("steps", [4, 8])
def test_flux2_is_that_of_diffusers(size: tuple[int, int], steps: int):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    pixels = size[0] * size[1]
    mu = compute_empirical_mu(image_seq_len=pixels // 256, num_steps=steps)
    assert mu_of("flux2", pixels, steps) == pytest.approx(mu, abs=1e-9)
    levels = np.linspace(1.0, 1 / steps, steps).tolist()
    ours = sigmas_for_size("flux2", [*levels, 0.0], pixels)
    assert ours == pytest.approx(diffusers_sigmas(levels, mu), abs=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_flux1_is_that_of_diffusers(size: tuple[int, int]):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    assert mu_of("flux1", size[0] * size[1], 4) == pytest.approx(calculate_shift(size[0] * size[1] // 256), abs=1e-9)


def test_flux2_turbo_shifts_the_list_of_its_authors():
    """fal passes TURBO_SIGMAS to diffusers' Flux2Pipeline, which shifts them by the size of the image."""
    profile = profile_from_name("Flux_2-Turbo-LoRA_comfyui")
    assert profile is not None and profile.sigmas is None and profile.embedded_guidance == 2.5
    published = [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031]
    right = diffusers_sigmas(published, mu_of("flux2", 1024 * 1024, 8))
    assert right[:3] == pytest.approx((1, 0.94739, 0.88248), abs=1e-5)
    assert profile.resolved(TABLE).sigmas == pytest.approx(right, abs=1e-5)
    assert profile.resolved(TABLE, pixels=1024 * 1024).sigmas == pytest.approx(right, abs=1e-5)
    wide = profile.resolved(TABLE, pixels=512 * 512).sigmas
    assert wide is not None and wide[1] < 0.94


def test_klein_follows_size_and_steps():
    klein = profile_from_name("flux-2-klein-4b-fp8", "checkpoint")
    assert klein is not None
    # ComfyUI's Flux2Scheduler (fewstep.md 2)
    assert klein.resolved(TABLE).sigmas == pytest.approx((1, 0.96738, 0.90814, 0.7672, 0), abs=1e-5)
    six = klein.resolved(TABLE, 6, pixels=1024 * 1024)
    assert six.steps == 6 and six.sigmas is not None and len(six.sigmas) == 7


def test_a_size_below_one_token_is_refused():
    with pytest.raises(PCMError, match="has 64 pixels"):
        mu_of("flux2", 64, 4)


def test_normal_is_the_grid_of_hidream():
    """hi_diffusers/schedulers/flash_flow_match.py: even timesteps from sigma_max to sigma_min, shifted once more."""
    for name, shift, steps in (("hidream_i1_dev_fp8", 6.0, 28), ("hidream_i1_fast_fp8", 3.0, 16)):
        table = SigmaTable.shifted_flow(shift)
        even = np.linspace(table.top, table.sigmas[0], steps)
        right = [*(shift * even / (1 + (shift - 1) * even)).tolist(), 0.0]
        profile = profile_from_name(name, "checkpoint")
        assert profile is not None and profile.steps == steps
        assert profile.resolved(table).sigmas == pytest.approx(right, abs=1e-5)


def test_a_plan_takes_the_size_or_says_what_it_assumed():
    klein = profile_from_name("flux-2-klein-9b-fp8", "checkpoint")
    assert klein is not None
    assumed, wide = plan(klein, TABLE), plan(klein, TABLE, pixels=1536 * 640)
    assert "1024 x 1024 is assumed" in assumed.notes[0] and wide.notes == ()
    assert wide.sigmas.tolist() == pytest.approx(klein.resolved(TABLE, pixels=1536 * 640).sigmas, abs=1e-6)
    assert wide.sigmas[1] < assumed.sigmas[1]
