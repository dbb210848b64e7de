"""A SCHEDULER_FUNC, the contract of the Impact Pack: its detailers and samplers ask for sigmas when they run.

They call ``function(model, sampler_name, steps)`` and expect ``steps + 1`` sigmas. For a denoise below 1 they ask for
``floor(steps / denoise)`` steps, keep the last ``steps + 1`` and may write into what they got.
"""

from __future__ import annotations

import numbers
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...pcm_core.errors import PCMError
from ...pcm_core.phases import MAX_COUNT
from ...pcm_core.plan import Plan
from ...pcm_core.sigma_table import TRAIN_STEPS
from .. import host
from .plan import log, make_plan
from .settings import with_method

_NODE = "PCM Phase Scheduler"


class SchedulerFunction:
    """The phases of a model for any number of steps, as far as the schedule can hold them.

    Every phase edge that fits is among the sigmas: as many steps as the model has phases are its own schedule, more
    steps lie between the edges.

    Args:
        method: as in ``with_method``.
        settings: phases, spacing, terminal and grid of ``make_plan``.
    """

    def __init__(self, method: str, **settings: Any) -> None:
        self.method, self.settings = method, settings
        self._said: set[str] = set()

    def __call__(self, model: Any, sampler_name: str, steps: int) -> Tensor:
        """The sigmas [steps + 1] from pure noise, float32 on the CPU; a new tensor each time.

        Raises:
            PCMError: if PCM cannot serve the model, or ``steps`` is no number of steps.
        """
        del sampler_name  # the sigmas are the model's own
        _check(model, steps)
        model, notes = with_method(model, self.method)
        if steps > MAX_COUNT:  # the end of a long list, for a low denoise
            return host.simple_sigmas(host.model_sampling(model), int(steps))
        made = self._plan(model, int(steps), notes)
        fresh = [note for note in made.notes if note not in self._said]
        self._said.update(fresh)  # a detailer asks once for every face
        log(_NODE, *fresh)
        return made.sigmas

    def _plan(self, model: Any, steps: int, notes: tuple[str, ...]) -> Plan:
        settings = {"steps": steps, "notes": notes, "spend_extra_steps": True, **self.settings}
        made = make_plan(model, **settings)
        if made.schedule is None:
            # A fixed list of another length is left.
            return made if made.steps == steps else make_plan(model, **settings | {"spacing": "trailing"})
        if steps > made.phases and made.schedule.spacing == "trailing":
            # Trailing points of more steps would pass the edges by; on the finest grid the edges are the same.
            finer = {"spacing": "aligned", "grid": TRAIN_STEPS, "phases": made.phases}
            return replace(make_plan(model, **settings | finer), notes=made.notes)
        return made


def _check(model: Any, steps: Any) -> None:
    if not hasattr(model, "get_model_object"):
        raise PCMError(
            f"scheduler_func was called with a {type(model).__name__}.",
            "a MODEL.",
            "Connect it to scheduler_func_opt of a detailer or a sampler.",
        )
    if not isinstance(steps, numbers.Integral) or isinstance(steps, bool) or steps < 1:
        raise PCMError(
            f"scheduler_func was called with {steps!s:.40} steps.", "a whole number above 0.", "Raise steps."
        )
