"""Phase edges, evaluation timesteps and sigmas: the start and end of each jump of a phased consistency model.

A PCM divides the trajectory from pure noise (timestep T - 1) to the image (timestep 0) into M phases and learns to jump
from any point of a phase to its lower edge (arXiv 2405.18407, section 3.1). There are three published schedules:

``trailing``
    The DDIM grid of the authors' model card: 999, 749, 499, 249 for four steps.
``aligned``
    The phase edges of the training on its solver grid: 999, 739, 499, 239 for four phases on 50 points.
``tcd``
    The grid of the authors' demo (TCDScheduler): 999, 759, 499, 259.

They agree for one, two and five steps. A schedule contains timesteps only; ``PhaseSchedule.sigmas`` looks up their
sigmas in the model's sigma table, so one schedule works for eps, v and flow models.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from .errors import PCMError
from .sigma_table import SigmaTable

Spacing = Literal["trailing", "aligned", "tcd"]
Terminal = Literal["zero", "alpha0"]
SPACINGS = cast(tuple[Spacing, ...], get_args(Spacing))
TERMINALS = cast(tuple[Terminal, ...], get_args(Terminal))
MAX_COUNT = 64


def phase_edges(phases: int, grid: int = 50, train_steps: int = 1000) -> tuple[int, ...]:
    """Lower edges of the phases, ascending: ``(0, 239, 499, 739)`` for 4 phases on the 50-point grid.

    The solver grid holds the timesteps ``r i - 1`` with ``r = train_steps / grid``; phase k starts at grid index
    ``floor(k grid / phases)`` and ends at the timestep below it (``DDIMSolver`` and ``ddim_style_multiphase_pred`` of
    the authors' ``train_pcm_lora_sd15.py``). The bottom edge is timestep 0, not -1.

    Raises:
        PCMError: if a count is out of range, the grid does not divide ``train_steps`` or has too few points.
    """
    stride = _grid_stride(grid, train_steps)
    _check_count("phases", phases, train_steps)
    if phases > grid:
        raise PCMError(
            f"{phases} phases do not fit on a solver grid of {grid} points.",
            "at least one grid point per phase.",
            f"Use a finer grid (for example {_finer_grid(phases, train_steps)}) or fewer phases.",
        )
    return tuple(max(stride * (phases_below * grid // phases) - 1, 0) for phases_below in range(phases))


def eval_timesteps(
    steps: int,
    *,
    phases: int | None = None,
    spacing: Spacing = "trailing",
    grid: int = 50,
    train_steps: int = 1000,
) -> tuple[int, ...]:
    """The timesteps at which the model is evaluated, descending from ``train_steps - 1``.

    Args:
        steps: number of evaluations, 1 to 64.
        phases: number of phases of the model, for ``aligned`` only; default ``steps``. With fewer steps only some of
            the edges are used; with more, the phases are subdivided on the solver grid.
        spacing: ``trailing``, ``aligned`` or ``tcd``.
        grid: number of points of the solver grid (``aligned`` and ``tcd``); must divide ``train_steps``.

    Raises:
        PCMError: if a value is out of range or unknown.
    """
    stride = _grid_stride(grid, train_steps)
    _check_count("steps", steps, train_steps)
    _check_choice("spacing", spacing, SPACINGS)
    if spacing == "trailing":
        # Half-to-even rounding, as numpy does in diffusers' DDIMScheduler.
        points = np.round(np.arange(train_steps, 0, -train_steps / steps))[:steps]
        return tuple(int(point) - 1 for point in points)
    if spacing == "tcd":
        if steps > grid:
            raise _too_many_steps(steps, grid, train_steps)
        return tuple((grid - i * grid // steps) * stride - 1 for i in range(steps))
    return _aligned_timesteps(steps, steps if phases is None else phases, grid, train_steps)


def _aligned_timesteps(steps: int, phases: int, grid: int, train_steps: int) -> tuple[int, ...]:
    starts = (train_steps - 1, *reversed(phase_edges(phases, grid, train_steps)[1:]))
    if steps <= phases:
        return tuple(starts[i * phases // steps] for i in range(steps))
    if steps > grid:
        raise _too_many_steps(steps, grid, train_steps)
    stride = train_steps // grid
    points: list[int] = []
    share = _split_evenly(steps, [_grid_points(a, b, stride) for a, b in zip(starts, (*starts[1:], -1), strict=True)])
    for top, low, count in zip(starts, (*starts[1:], -1), share, strict=True):
        length = _grid_points(top, low, stride)
        points += [top - stride * (i * length // count) for i in range(count)]
    return tuple(points)


def _grid_points(top: int, low: int, stride: int) -> int:
    """Number of solver grid points in the half-open interval (low, top]."""
    return round((top - low) / stride)


def _split_evenly(steps: int, capacity: list[int]) -> list[int]:
    """Distribute steps over the phases in turn, noisiest first, at most as many as a phase has grid points."""
    share = [1] * len(capacity)
    phase = 0
    while sum(share) < steps:
        if share[phase] < capacity[phase]:
            share[phase] += 1
        phase = (phase + 1) % len(capacity)
    return share


@dataclass(frozen=True, kw_only=True)
class PhaseSchedule:
    """Evaluation points and phase edges, in training timesteps from 0 to ``train_steps - 1``.

    Attributes:
        timesteps: evaluation points, strictly descending.
        starts: upper end of every phase, descending.
        terminal: ``zero`` ends at sigma 0, ``alpha0`` at the sigma of timestep 0 (diffusers' set_alpha_to_one=False).
        notes: what was snapped, dropped or assumed, one sentence each.
    """

    timesteps: tuple[int, ...]
    starts: tuple[int, ...]
    spacing: Spacing
    grid: int
    terminal: Terminal = "zero"
    train_steps: int = 1000
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def steps(self) -> int:
        """Model evaluations."""
        return len(self.timesteps)

    @property
    def phases(self) -> int:
        """Number of phases of the model."""
        return len(self.starts)

    @property
    def edges(self) -> tuple[int, ...]:
        """Lower edges of the phases on the solver grid, ascending: where training jumps to."""
        return phase_edges(self.phases, self.grid, self.train_steps)

    @property
    def start(self) -> int:
        """The timestep at which sampling enters; ``train_steps - 1`` for a full denoise."""
        return self.timesteps[0]

    def entered(self, denoise: float = 1.0, start: int | None = None) -> PhaseSchedule:
        """The same schedule started at a lower noise level, as by ``build_schedule``; every later point is kept.

        Raises:
            PCMError: if ``denoise`` or ``start`` is out of range.
        """
        entry = _entry_timestep(denoise, start, self.train_steps)
        return replace(self, timesteps=_enter(self.timesteps, entry, self.train_steps // self.grid))

    def sigmas(self, table: SigmaTable | Tensor) -> Tensor:
        """The sigmas of the schedule, from a model's sigma table.

        Args:
            table: of the model, or its [L] ascending sigmas; L is ``train_steps`` or a multiple of it.

        Returns:
            float32 [steps + 1] on the CPU, strictly descending, first entry bit-equal to a table entry.

        Raises:
            PCMError: if the table cannot be indexed by timestep (for example the 50-entry LCM table).
        """
        table = SigmaTable.of(table, train_steps=self.train_steps)
        end = table.bottom if self.terminal == "alpha0" else 0.0
        return torch.tensor([*map(table.sigma, self.timesteps), end], dtype=torch.float32)


def build_schedule(
    phases: int,
    steps: int | None = None,
    *,
    spacing: Spacing = "trailing",
    grid: int = 50,
    terminal: Terminal = "zero",
    denoise: float = 1.0,
    start: int | None = None,
    spend_extra_steps: bool = False,
    train_steps: int = 1000,
) -> PhaseSchedule:
    """Build a schedule from the user's settings.

    Args:
        phases: number of phases M of the model, 1 to 64.
        steps: evaluations N of a full denoise; default M. More than M is snapped to M, because extra deterministic
            evaluations inside a phase made results worse in every experiment; fewer runs, with a note.
        denoise: fraction of the schedule to run, 0 < denoise <= 1: starts at timestep ``denoise * train_steps``, keeps
            every later evaluation point and takes at least one step.
        start: the starting timestep, instead of ``denoise``.
        spend_extra_steps: take all N > M steps.

    Raises:
        PCMError: if a value is out of range or unknown.
    """
    _check_choice("spacing", spacing, SPACINGS)
    _check_choice("terminal", terminal, TERMINALS)
    count = phases if steps is None else steps
    _check_count("phases" if steps is None else "steps", count, train_steps)
    _check_count("phases", phases, train_steps)
    if spacing == "trailing" and phases > grid >= 1:
        grid = _finer_grid(phases, train_steps)  # trailing points need no grid: use any that can hold the edges
    phase_edges(phases, grid, train_steps)  # refuses a grid that cannot hold them
    notes: list[str] = []
    if count > phases and not spend_extra_steps:
        notes.append(f"{count} steps were asked of a {phases}-phase model; ran its {phases} phase jumps.")
        count = phases
    elif count < phases:
        notes.append(f"This model has {phases} phases; {count} steps skip trained edges. Use at least {phases}.")
    points = eval_timesteps(count, phases=phases, spacing=spacing, grid=grid, train_steps=train_steps)
    whole = PhaseSchedule(
        timesteps=points,
        starts=eval_timesteps(phases, spacing=spacing, grid=grid, train_steps=train_steps),
        spacing=spacing,
        grid=grid,
        terminal=terminal,
        train_steps=train_steps,
        notes=tuple(notes),
    )
    return whole.entered(denoise, start)


def _entry_timestep(denoise: float, start: int | None, train_steps: int) -> int:
    if not 0 < denoise <= 1:  # also refuses NaN
        raise PCMError(f"denoise is {denoise}.", "a number above 0 and up to 1.", "Use 1 to start from pure noise.")
    entry = round(denoise * train_steps) if start is None else start
    if not 0 <= entry <= train_steps:
        raise PCMError(f"The start timestep is {entry}.", f"0 to {train_steps - 1}.", "Correct the start.")
    # Timestep 0 is the lowest edge: starting there would leave nothing to do.
    return min(max(entry, 1), train_steps - 1)


def _enter(points: tuple[int, ...], entry: int, stride: int) -> tuple[int, ...]:
    """Start at ``entry`` and keep the later points; drop a first jump that is shorter than a solver step."""
    if entry >= points[0]:
        return points
    later = tuple(point for point in points if point < entry)
    if later and entry - later[0] < stride:
        return later
    return (entry, *later)


def _grid_stride(grid: int, train_steps: int) -> int:
    if grid < 1 or train_steps % grid:
        raise PCMError(
            f"The solver grid has {grid} points.",
            f"a divisor of {train_steps}; other grids never train the first timestep, {train_steps - 1}.",
            "Use 40, 50 or 100.",
        )
    return train_steps // grid


def _finer_grid(phases: int, train_steps: int) -> int:
    return next(n for n in range(phases, train_steps + 1) if train_steps % n == 0)


def _check_count(name: str, count: int, train_steps: int) -> None:
    most = min(MAX_COUNT, train_steps)
    if not 1 <= count <= most:
        raise PCMError(f"{name} is {count}.", f"1 to {most}.", f"Set {name} to the number in the LoRA's name.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PCMError(f'{name} is "{value}".', f"one of {', '.join(choices)}.", f"Correct {name}.")


def _too_many_steps(steps: int, grid: int, train_steps: int) -> PCMError:
    return PCMError(
        f"{steps} steps do not fit on a solver grid of {grid} points.",
        "at most one step per grid point.",
        f"Use spacing trailing, or a grid of {_finer_grid(steps, train_steps)}.",
    )
