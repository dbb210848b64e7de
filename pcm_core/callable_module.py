"""Modules that can be called: ``pcm_core.plan(...)`` beside ``pcm_core.plan.Plan``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Let a module be called as its function of the same name.

    Importing a submodule binds it on the package under its name, wherever and whenever that happens, so a function of
    that name could be there only until somebody imports the module again.
    """

    class CallableModule(ModuleType):
        __call__ = staticmethod(function)

    sys.modules[module].__class__ = CallableModule
