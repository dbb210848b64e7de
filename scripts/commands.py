"""The command ``pcm``: a table of commands, each a module with ``main(arguments)``, imported when it is asked for.

A new command is one more row of ``COMMANDS``. Its ``main`` takes the arguments after its name, prints to stdout, and
returns an exit code, or ``None`` for 0. It refuses with one sentence, by ``sys.exit``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """A row of ``pcm --help``.

    Attributes:
        module: absolute, or relative to this package; it has ``main(arguments: Sequence[str]) -> int | None``.
        help: its description, one line.
        needs: the modules that it imports, and the package of each.
        extra: the optional extra of this project that installs ``needs``.
    """

    module: str
    help: str
    needs: tuple[tuple[str, str], ...] = ()
    extra: str = ""


TQDM, PILLOW = ("tqdm", "tqdm"), ("PIL", "pillow")

COMMANDS = {
    "lora": Command(
        module="pcm_core.lora.command",
        help="say what a LoRA file is; --convert OUT writes it for other tools",
    ),
    "check": Command(
        module=".check.command",
        help="check how workflows sample their few-step files (--comfyui judges every scheduler)",
    ),
    "distill": Command(
        module=".distill.command",
        help="train a PCM LoRA of a model, on one process or many (needs ComfyUI)",
        needs=(TQDM, PILLOW),
        extra="distill",
    ),
    "generate": Command(
        module=".generate.command",
        help="make a folder of images or clips from a file of prompts (needs ComfyUI)",
        needs=(TQDM, PILLOW),
        extra="distill",
    ),
    "metrics": Command(
        module=".metrics.command",
        help="measure a folder of images or clips, alone or against another",
        needs=(TQDM, PILLOW),
        extra="metrics",
    ),
    "table": Command(
        module=".table.command",
        help="generate and measure a whole table of systems by step counts (needs ComfyUI)",
        needs=(TQDM, PILLOW),
        extra="metrics",
    ),
}


def overview() -> str:
    """The output of ``pcm --help``."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: pcm COMMAND ...", "", *rows, "", "pcm COMMAND --help has the options of each."])


def missing_packages(command: Command) -> list[str]:
    """The packages that a command needs and that are not installed."""
    return [package for module, package in command.needs if importlib.util.find_spec(module) is None]


def run(name: str, arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    command = COMMANDS[name]
    if absent := missing_packages(command):
        sys.exit(
            f"pcm {name} needs {' and '.join(absent)}, which this Python lacks. In the folder of this project run: "
            f'pip install ".[{command.extra}]"'
        )
    module = importlib.import_module(command.module, package=__package__)
    importlib.import_module("pcm_core.console").any_console()  # after what the overview must not wait for
    return module.main(arguments) or 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script: exit code 0, 1 after a refusal, 2 for a command that does not exist."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("", "-h", "--help"):
        sys.stdout.write(overview() + "\n")
        return 0 if name else 2
    if name not in COMMANDS:
        sys.stderr.write(f'pcm has no command "{name}". It has: {", ".join(COMMANDS)}.\n')
        return 2
    return run(name, rest[:-1])
