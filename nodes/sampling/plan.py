"""What a node's widgets and the model's profile mean together: a plan of ``pcm_core``, in the words of the nodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.plan import AUTO as AUTO
from ...pcm_core.plan import Plan, check_r, plan
from ...pcm_core.profiles import PCMProfile
from ...pcm_core.profiles.advice import sampling_mistakes, schedule_mistakes
from ...pcm_core.sampling import check_sigmas
from .. import host
from ..host.lora import carries_twice
from ..host.status import show_bar, show_on_node

# What a number's widget says where the profile decides.
UNSET = -1.0
_TWICE = "The model carries the same LoRA twice. Remove one of its loaders."


@contextmanager
def advised(action: str) -> Iterator[None]:
    """Errors of ``pcm_core``, which knows no nodes, leave with a node's own advice."""
    try:
        yield
    except PCMError as error:
        raise PCMError(error.found, error.expected, action) from error


def make_plan(
    model: Any,
    latent: host.Latent | None = None,
    *,
    determinism: float = UNSET,
    gamma: float = UNSET,
    notes: tuple[str, ...] = (),
    **settings: Any,
) -> Plan:
    """``pcm_core.plan`` for the profile and the sigmas of a model; 0, -1 and "auto" ask the profile.

    ``latent``: what will be sampled, where that is known; a dynamic shift follows its size. ``notes``: what to report
    before the plan's own.

    Raises:
        PCMError: if a value is out of range, or PCM cannot serve the model.
    """
    profile = host.profile_of(model) or PCMProfile()
    pixels = host.pixels_of(model, latent) if latent is not None and profile.dynamic_shift else 0
    noise = noise_settings(determinism, gamma)
    made = plan(profile, host.sigma_table(model), pixels=pixels, **noise, **settings)
    twice = (_TWICE,) if carries_twice(model) else ()
    return replace(made, notes=(*notes, *twice, *made.notes))


def noise_settings(determinism: float, gamma: float) -> dict[str, float | None]:
    """The two widgets as ``pcm_core`` takes them.

    Raises:
        PCMError: for values outside 0..1 (-1 is unset), and for two answers to one question.
    """
    asked = {"determinism": determinism, "gamma": gamma}
    given = {name: None if value == UNSET else value for name, value in asked.items()}
    with advised("Use -1 for what the LoRA says."):
        check_r(**given)
    return given


def part_of(whole: Plan, start_step: int, end_step: int, *, leftover_noise: bool) -> Plan:
    """The steps that KSamplerAdvanced would take of a plan.

    Raises:
        PCMError: if the range is empty or negative.
    """
    try:
        return whole.part(start_step, end_step, leftover_noise=leftover_noise)
    except PCMError as error:
        raise PCMError(
            f"start_step is {start_step} and end_step is {end_step}.",
            "0 <= start_step < end_step.",
            "Use 0 and 10000 to take every step.",
        ) from error


def levels_of(sigmas: Tensor) -> list[float]:
    """SIGMAS as numbers.

    Raises:
        PCMError: if there is exactly one, or they do not descend to a value of at least zero.
    """
    single = "Raise steps, or move the split of SplitSigmas."
    edited = "Use the PCM Phase Scheduler, or check what edits the SIGMAS on the way."
    with advised(single if sigmas.numel() == 1 else edited):
        return check_sigmas(sigmas)


def mistakes(made: Plan, determinism: float = UNSET) -> tuple[str, ...]:
    """What people usually get wrong with this kind of LoRA, as far as the settings give it away."""
    if not made.profile.known:
        return ()
    asked = None if determinism == UNSET else determinism
    found = sampling_mistakes(made.profile, made.table, cfg=made.cfg[0], determinism=asked)
    if not made.notes:  # which say what differs from the method's own schedule
        whole = made.whole.tolist()
        found += schedule_mistakes(made.profile, whole, made.table, own=whole)
    return tuple(found)


def log(node: str, *notes: str) -> None:
    """Log notes under a node's name."""
    for note in notes:
        logging.warning("%s: %s", node, note)


def say(node: str, made: Plan, determinism: float = UNSET, **seen: Any) -> tuple[str, ...]:
    """Log what is unusual about a plan and show it on the node; where nothing is, how many steps run.

    Args:
        seen: what else the bar shows, see ``draw``.

    Returns:
        What was said.
    """
    notes = made.notes + mistakes(made, determinism)
    log(node, *notes)
    counts = f"{_count(made.steps, 'step')}, {_count(made.phases, 'phase')}"
    show_on_node("\n".join(notes) or counts)
    draw(made, **seen)
    return notes


def draw(made: Plan, *, whole: Plan | None = None, **seen: Any) -> None:
    """The steps of a plan in the bar of the running node.

    Args:
        whole: the plan that ``made`` is a part of.
        seen: ``ran``, ``second`` and ``windows`` of the bar.
    """
    from ...pcm_core.workflow_check.bars import plan_bar  # nothing the host waits for at its start

    show_bar(replace(plan_bar(whole or made), **seen).as_json())


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
