"""The files of ``pcm distill``, read or refused in one sentence, and written atomically."""

from __future__ import annotations

import csv
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pcm_core.errors import PCMError
from pcm_core.finished_file import put

_STATE = {"step", "losses", "adapters", "generator", "config"}
_OPTIMIZER = {"optimizer", "optimiser"}  # today's name and that of 0.1.0


def refuse(found: str, expected: str, action: str) -> NoReturn:
    """Exit with the message of a ``PCMError``."""
    sys.exit(str(PCMError(found, expected, action)))


def reason(error: Exception) -> str:
    """The first line of a library's message, without torch's advice to trust the file."""
    if isinstance(error, (pickle.UnpicklingError, LookupError, EOFError)):
        return "its contents are not what was expected"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_tensors(path: Path, expected: str, action: str) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # other files raise any of a dozen exceptions
        refuse(f"{path} cannot be read ({reason(error)}).", expected, action)


def read_cache(path: Path) -> dict[str, Any]:
    """Read a cache of latents and texts written by ``--images``; the negative may be ``None``."""
    what = ("a cache that a run with --images wrote.", "Give another file, or encode again with --images.")
    cached = read_tensors(path, *what)
    if not _is_cache(cached):
        refuse(f"{path} does not hold latents and texts.", *what)
    return {"negative": None, **cached}


def _is_cache(cached: Any) -> bool:
    if not isinstance(cached, dict) or not cached.get("latents") or not isinstance(cached["latents"], list):
        return False
    texts, negative = cached.get("texts"), cached.get("negative")
    return (
        all(isinstance(latent, Tensor) for latent in cached["latents"])
        and isinstance(texts, list)
        and all(_is_text(text) for text in texts)
        and (negative is None or _is_text(negative))
    )


def _is_text(text: Any) -> bool:
    """Whether ``text`` is a conditioning of the host: pairs of a tensor and a dictionary."""
    return isinstance(text, list) and all(
        isinstance(part, (list, tuple))
        and len(part) == 2
        and isinstance(part[0], (Tensor, type(None)))
        and isinstance(part[1], dict)
        for part in text
    )


def read_state(path: Path) -> dict[str, Any]:
    what = ("a checkpoint that a run with --state wrote.", "Give its name, or a new one to start from the beginning.")
    state = read_tensors(path, *what)
    if not isinstance(state, dict) or not state.keys() >= _STATE or not state.keys() & _OPTIMIZER:
        refuse(f"{path} is not a checkpoint.", *what)
    return state


def save_state(state: dict[str, Any], path: Path, what: str = "checkpoint") -> None:
    """Write a checkpoint or a cache atomically.

    Where the old file is open in another program and the system does not replace it, the new one is beside it: a run
    goes on and says so, and a cache, which is read again at once, ends it.
    """
    partial = path.with_suffix(".part")
    try:
        torch.save(state, partial)
        written = put(partial, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError when the disk is full
        partial.unlink(missing_ok=True)
        refuse(
            f"{path} cannot be written ({error}).",
            "free space and write permission.",
            f"Any earlier {what} is unchanged: free some space and start again.",
        )
    if written == path:
        return
    held = PCMError(
        f"{path} is open in another program.",
        "a file that can be replaced.",
        f"The new {what} is {written}: give its name to go on from it.",
    )
    if what != "checkpoint":
        sys.exit(str(held))
    print(f"\n{held}", file=sys.stderr, flush=True)


class StepLog:
    """A CSV file with one row per step; after an interruption it continues after the steps of the checkpoint.

    If the file cannot be created the run ends; if a later row cannot be written it continues without the log.
    """

    HEAD = ("step", "loss", "generator_loss", "discriminator_loss", "grad_norm", "lr")

    def __init__(self, path: Path | None, done: int) -> None:
        self.path = path
        if path is None:
            return
        device = path.exists() and not path.is_file()  # a pipe or device is written to, not replaced
        self.path = path if device else path.resolve()
        partial = path if device else self.path.with_name(f"{self.path.name}.part")
        try:
            kept = _rows_until(self.path, done) if path.is_file() else []
            with partial.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([self.HEAD, *kept])
            if not device:
                partial.replace(self.path)
        except (OSError, csv.Error) as error:
            if not device:
                with suppress(OSError):
                    partial.unlink()
            refuse(
                f"{path} cannot be written ({error}).", "free space and write permission.", "Give --csv another name."
            )

    def __call__(self, report: Any) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([getattr(report, name) for name in self.HEAD])
        except OSError as error:
            found = f"{self.path} cannot be written at step {report.step} ({error})."
            said = PCMError(found, "free space and write permission.", "The run continues without its log.")
            print(f"\n{said}", file=sys.stderr, flush=True)
            self.path = None


def _rows_until(path: Path, done: int) -> list[list[str]]:
    """The complete rows of the first ``done`` steps: the last row may have been cut off while it was written."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(line for line in file if line.endswith("\n"))
        return [row for row in rows if row and row[0].isdecimal() and int(row[0]) <= done]
