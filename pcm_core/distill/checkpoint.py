"""Convert checkpoints of earlier versions to today's names; all contain tensors, numbers and lists only."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_RENAMED = {"optimiser": "optimizer", "critic": "discriminator_optimizer", "heads": "discriminator"}
_RENAMED_SETTINGS = {"clip": "max_grad_norm"}
_HEAD = ("enter", "mix", "leave")


def migrate(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in today's format; one of 0.1.0 is converted, any other is returned as is.

    0.1.0 wrote ``optimiser``, ``critic`` and ``heads`` (a list of weights), ``adapters`` as a list per module (down, up
    and then their moving averages), and the setting ``clip``.
    """
    if "optimiser" not in state:
        return state
    new = {_RENAMED.get(name, name): value for name, value in state.items()}
    new["config"] = {_RENAMED_SETTINGS.get(name, name): value for name, value in state["config"].items()}
    new["adapters"] = _adapters(state["adapters"])
    heads: list[Tensor] = state.get("heads", [])
    new["discriminator"] = {f"{i // 3}.{_HEAD[i % 3]}": weight for i, weight in enumerate(heads)}
    return new


def _adapters(state: dict[str, list[Tensor]]) -> dict[str, dict[str, dict[str, Tensor]]]:
    sets = {"student": {name: {"down": w[0], "up": w[1]} for name, w in state.items()}}
    if any(len(weights) == 4 for weights in state.values()):
        sets["ema"] = {name: {"down": w[2], "up": w[3]} for name, w in state.items()}
    return sets
