"""From a profile and a model's sigma table to all that a run needs (sigmas, r per step, cfg per phase), and the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from .callable_module import make_callable
from .denoiser import Denoiser
from .errors import PCMError
from .guidance import parse_guidance, phase_at
from .phases import PhaseSchedule, Spacing, Terminal
from .profiles import PCMProfile
from .profiles.shift_rules import size_notes
from .sampling import (
    Model,
    NoiseSampler,
    ancestral_to_determinism,
    gamma_to_determinism,
    sample_pcm,
    seeded_noise,
)
from .sigma_table import SigmaTable

AUTO = "auto"
_FINE_GRID = 100  # the coarsest solver grid that holds up to 64 phases


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one latent will be sampled.

    Attributes:
        sigmas: float32 [N + 1] on the CPU, strictly descending; empty where denoise is 0.
        r: determinism of each of the N steps (Eq. 44); 1 is the deterministic jump.
        cfg: guidance of each phase, noisiest first, in ComfyUI's convention.
        phase_tops: highest sigma that counts as each phase, descending.
        whole: the sigmas of the same plan from pure noise; ``sigmas`` itself where denoise is 1.
        schedule: the timesteps behind the sigmas; ``None`` where the profile has its own list of sigmas.
        table: of the model.
        profile: what was planned from, with its ``timesteps`` looked up.
        notes: what was snapped, overridden or assumed, one sentence each.
    """

    sigmas: Tensor
    r: tuple[float, ...]
    cfg: tuple[float, ...]
    phase_tops: tuple[float, ...]
    whole: Tensor
    schedule: PhaseSchedule | None
    table: SigmaTable
    profile: PCMProfile
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Model evaluations, not counting those of the negative prompt."""
        return max(len(self.sigmas) - 1, 0)

    @property
    def phases(self) -> int:
        """Phases of the model."""
        return len(self.phase_tops)

    def cfg_at(self, sigma: float) -> float:
        """Guidance at a noise level."""
        return self.cfg[phase_at(sigma, self.phase_tops)]

    def part(self, start: int, end: int, *, leftover_noise: bool) -> Plan:
        """The steps from ``start`` up to ``end``, counted from 0; none if ``start`` is beyond the last.

        ``leftover_noise=False`` ends a part that stops early at sigma 0.

        Raises:
            PCMError: if the range is empty or negative.
        """
        if not 0 <= start < end:
            raise PCMError(f"The steps run from {start} to {end}.", "0 <= start < end.", "Leave both for every step.")
        if start >= self.steps:
            return replace(self, sigmas=self.sigmas[:0], r=())
        sigmas = self.sigmas[start : end + 1].clone()
        if end < self.steps and not leftover_noise:
            sigmas[-1] = 0
        return replace(self, sigmas=sigmas, r=self.r[start:end])


def plan(
    profile: PCMProfile,
    table: SigmaTable | Tensor,
    *,
    steps: int = 0,
    cfg: str | float = AUTO,
    denoise: float = 1.0,
    determinism: float | None = None,
    gamma: float | None = None,
    phases: int = 0,
    spacing: Spacing | Literal["auto"] = AUTO,
    terminal: Terminal | Literal["auto"] = AUTO,
    grid: int = 0,
    spend_extra_steps: bool = False,
    pixels: int = 0,
) -> Plan:
    """Resolve what a user asks for; 0, ``"auto"`` and ``None`` ask the profile.

    Args:
        profile: how the few-step file wants to be sampled; ``PCMProfile()`` if nothing is known.
        table: of the model, after its shift.
        steps: model evaluations.
        cfg: one number, or one per phase as text, ``"3, 1, 1, 1"``.
        denoise: fraction of the path to run, 0 to 1; below 1 a given latent is noised to that level. 0 runs nothing.
        determinism: r of Eq. 44, or ``gamma``, TCD's way to say it. At most one of them.
        phases, spacing, grid: of the schedule (``build_schedule``); any of them sets a profile's own list aside.
        terminal: where the last jump lands, sigma 0 (``zero``) or timestep 0 (``alpha0``).
        spend_extra_steps: really take more steps than there are phases.
        pixels: of the image, width times height, for methods whose shift follows it; 0 if not known.

    Raises:
        PCMError: if a value is out of range, or no list of sigmas can serve the profile on this model.
    """
    table = SigmaTable.of(table)
    _check_serves(profile, table)
    if not 0 <= denoise <= 1:  # also refuses NaN
        raise PCMError(f"denoise is {denoise}.", "a number from 0 to 1.", "Use 1 to start from pure noise.")
    profile = profile.resolved(table, steps, pixels=pixels)
    given = spacing != AUTO or phases or grid
    if profile.sigmas and not given:
        sigmas, whole, tops, notes = _from_list(profile.sigmas, table, steps, denoise, profile.grid)
        if (terminal if terminal != AUTO else profile.terminal) == "alpha0":
            sigmas[-1] = whole[-1] = table.bottom
        notes = (*size_notes(profile.method, profile.dynamic_shift, pixels), *notes)
        schedule = None
    else:
        full = _schedule(profile, steps, phases, spacing, terminal, grid, spend_extra_steps=spend_extra_steps)
        schedule = full.entered(denoise or 1.0)
        sigmas, whole, tops = schedule.sigmas(table), full.sigmas(table), _phase_tops(full, table)
        notes = (*_assumptions(profile, steps, phases, spacing, grid), *full.notes)
    sigmas = sigmas if denoise else sigmas[:0]
    return Plan(
        sigmas=sigmas, r=resolve_r(profile, sigmas, table, determinism=determinism, gamma=gamma),
        cfg=phase_cfg(profile, cfg, len(tops)), phase_tops=tops, whole=whole, schedule=schedule, table=table,
        profile=profile, notes=notes,
    )  # fmt: skip


def sample(
    model: Model,
    plan: Plan,
    noise: Tensor,
    *,
    latent: Tensor | None = None,
    seed: int | None = None,
    noise_sampler: NoiseSampler | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[int], Iterable[int]] = range,
) -> Tensor:
    """Walk a plan from noise to a clean latent.

    Args:
        model: a ``Denoiser``, which gets the plan's cfg, or ``model(x, sigma [B]) -> x0`` that guides itself.
        noise: [B, ...] of unit variance, any float dtype.
        latent: like ``noise``, what to start from; needed where the plan enters below pure noise.
        seed: of fresh noise, where r is below 1 (drawn on the CPU); or ``noise_sampler``, and ``callback``,
            ``progress``: as in ``sample_pcm``.

    Returns:
        The latent, like ``noise``; a new tensor, but for an empty plan.

    Raises:
        PCMError: if there is no latent to start from.
    """
    sigmas = plan.sigmas
    if latent is None:
        if not len(sigmas) or sigmas[0] != plan.whole[0]:
            raise PCMError("The plan enters below pure noise.", "a latent to start from.", "Pass latent, or denoise=1.")
        latent = torch.zeros_like(noise)
    if not len(sigmas):
        return latent
    x = plan.table.add_noise(latent, noise, float(sigmas[0]))

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        return model(x, sigma, cfg=plan.cfg_at(float(sigma[0])))

    x = sample_pcm(
        guided if isinstance(model, Denoiser) else model, x, sigmas, None, callback, determinism=plan.r,
        flow=plan.table.flow, noise_sampler=noise_sampler or seeded_noise(x, seed), progress=progress,
    )  # fmt: skip
    return plan.table.finished(x, float(sigmas[-1]))


def resolve_r(
    profile: PCMProfile,
    sigmas: Tensor,
    table: SigmaTable,
    *,
    determinism: float | None = None,
    gamma: float | None = None,
) -> tuple[float, ...]:
    """r of Eq. 44 for each step of ``sigmas`` [N + 1]: what the user set, else what the profile says.

    Raises:
        PCMError: if a value is outside 0..1, or both are set.
    """
    check_r(determinism, gamma)
    if determinism is None and gamma is None:
        if profile.ancestral:
            return ancestral_to_determinism(sigmas, flow=table.flow)
        determinism, gamma = profile.determinism, profile.gamma
    if gamma is not None:
        return gamma_to_determinism(gamma, sigmas, table)
    return (cast(float, determinism),) * max(len(sigmas) - 1, 0)


def check_r(determinism: float | None, gamma: float | None) -> None:
    """Refuse values outside 0..1, and two answers to one question.

    Raises:
        PCMError: see above.
    """
    for name, value in (("determinism", determinism), ("gamma", gamma)):
        if value is not None and not 0 <= value <= 1:  # also refuses NaN
            raise PCMError(f"{name} is {value}.", "0 to 1.", f"Leave {name} unset for what the profile says.")
    if determinism is not None and gamma is not None:
        raise PCMError(f"determinism is {determinism} and gamma is {gamma}.", "one of them.", "Leave the other unset.")


def phase_cfg(profile: PCMProfile, cfg: str | float, phases: int) -> tuple[float, ...]:
    """CFG of each phase for ``cfg`` as typed: "auto", one number, or one per phase.

    Raises:
        PCMError: if ``cfg`` cannot be read, or has the wrong number of values.
    """
    auto = isinstance(cfg, str) and cfg.strip().lower() in (AUTO, "")
    return parse_guidance(profile.cfg if auto else cfg, phases)


def _check_serves(profile: PCMProfile, table: SigmaTable) -> None:
    if profile.sampling_class == "unsupported":
        raise PCMError(
            f"The LoRA on this model is of the method {profile.method}.",
            "one that is sampled along a list of sigmas.",
            profile.note or "Sample it with the code of its authors.",
        )
    if profile.sigmas is not None and profile.sigmas[0] > table.top * 1.01:
        raise PCMError(
            f"{profile.method} is sampled from sigma {profile.sigmas[0]:.4g}, and the model's pure noise is at sigma "
            f"{table.top:.4g}.",
            "the model it was made for.",
            "Load it on another model, or set a spacing to leave its list.",
        )


def _schedule(
    profile: PCMProfile, steps: int, phases: int, spacing: str, terminal: str, grid: int, *, spend_extra_steps: bool
) -> PhaseSchedule:
    """The schedule of a full denoise."""
    if not grid and (phases or profile.phases or steps or profile.steps) > profile.grid:
        grid = _FINE_GRID
    return replace(profile, grid=grid or profile.grid).schedule(
        steps or phases or None,
        phases=phases or None,
        spacing=None if spacing == AUTO else cast(Spacing, spacing),
        terminal=None if terminal == AUTO else cast(Terminal, terminal),
        spend_extra_steps=spend_extra_steps,
    )


def _assumptions(profile: PCMProfile, steps: int, phases: int, spacing: str, grid: int) -> tuple[str, ...]:
    notes: list[str] = []
    if not profile.known and not steps and not phases:
        notes.append(
            f"The model carries no PCM settings; assumed {profile.steps} steps. Load a PCM LoRA, choose a method, "
            "or set steps."
        )
    asked: tuple[tuple[str, Any, Any], ...] = (
        ("phases", phases, profile.phases),
        ("spacing", spacing, profile.spacing),
        ("grid", grid, profile.grid),
    )
    notes += [
        f"{name} is {value} where the LoRA says {own}."
        for name, value, own in asked
        if profile.known and value and value != AUTO and own is not None and value != own
    ]
    if profile.sigmas:
        count = len(profile.sigmas) - 1
        notes.append(f"The LoRA's own list of {count} steps is not used: phases, spacing or grid is set.")
    return tuple(notes)


def _phase_tops(schedule: PhaseSchedule, table: SigmaTable) -> tuple[float, ...]:
    """One timestep above each start: published schedules round the same point to either neighbour."""
    return (math.inf, *(table.sigma(start + 1) for start in schedule.starts[1:]))


def _from_list(
    listed: Sequence[float], table: SigmaTable, steps: int, denoise: float, grid: int
) -> tuple[Tensor, Tensor, tuple[float, ...], tuple[str, ...]]:
    """A profile's own sigmas: those that run, all of them, the phase tops and the notes."""
    whole = torch.tensor(listed, dtype=torch.float32)
    if math.isclose(whole[0], table.top, rel_tol=1e-3):
        whole[0] = table.top  # published lists are rounded; sampling starts at the model's own sigma of pure noise
    tops = (math.inf, *(float(sigma) for sigma in whole[1:-1] * (1 + 1e-4)))
    notes: list[str] = []
    if steps and steps != len(whole) - 1:
        notes.append(
            f"This LoRA has a fixed list of {len(whole) - 1} steps, not {steps}; choose a spacing to leave it."
        )
    if not 0 < denoise < 1:
        return whole.clone(), whole, tops, tuple(notes)
    sigmas = _enter_list(whole, table, denoise, table.train_steps // grid)
    notes.append(f"Entered the LoRA's fixed list at sigma {sigmas[0]:.4g} for denoise {denoise:.2f}.")
    return sigmas, whole, tops, tuple(notes)


def _enter_list(whole: Tensor, table: SigmaTable, denoise: float, stride: int) -> Tensor:
    """Start at the noise level of ``denoise`` and keep the later sigmas; drop a first jump below a solver step."""
    entry = table.sigmas[max(round(denoise * len(table)), 1) - 1]
    if entry >= whole[0]:
        return whole.clone()
    later = whole[whole < entry]
    if len(later) > 1 and table.timestep(entry) - table.timestep(float(later[0])) < stride:
        return later
    return torch.cat([torch.tensor([entry]), later])


make_callable(__name__, plan)
