"""One process or many, and the pack inside them: what ``pcm distill`` and ``pcm generate`` share."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "phased_consistency_pack"
Pack = Callable[[str], ModuleType]
T = TypeVar("T")
# Of processes that wait while the first encodes pictures; torch would give up after 10 minutes, on a CPU after 30.
PATIENCE = timedelta(hours=12)


class Workers:
    """This process and its peers; a single process without Accelerate."""

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1

    @classmethod
    def start(cls, single: bool, on_cpu: bool, *, patient: bool = False) -> Workers:
        if importlib.util.find_spec("accelerate") is None:
            if single or int(os.environ.get("WORLD_SIZE", "1")) == 1:
                return cls()
            sys.exit(
                "Several processes need Hugging Face Accelerate (pip install accelerate, or the extra [distill]). "
                "Or run one, with --single."
            )
        if single:
            return cls()
        accelerate = importlib.import_module("accelerate")
        handlers = [accelerate.InitProcessGroupKwargs(timeout=PATIENCE)] if patient else []
        return cls(accelerate.Accelerator(cpu=on_cpu, kwargs_handlers=handlers))

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """That of this process."""
        default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return self.accelerator.device if self.accelerator else default

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its mean over the processes."""
        for tensor in tensors:
            tensor.copy_(self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="mean"))

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a list that is the same in all processes; every item is in exactly one part."""
        if self.rank >= len(items):
            return []  # Accelerate would give the last item to every surplus process
        if self.accelerator is None:
            return list(items)
        with self.accelerator.split_between_processes(list(items)) as mine:
            return list(mine)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do before they go on; where one cannot, all stop, and none waits for it forever.

        Raises:
            SystemExit: in the processes that could, if one could not; there the error itself.
        """
        failed: BaseException | None = None
        try:
            yield
        except (Exception, SystemExit) as error:
            failed = error
        flag = torch.tensor([float(failed is not None)])
        if self.count > 1:
            self.average([flag])
        if failed is not None:
            raise failed
        if float(flag) > 0:
            sys.exit("Another process could not go on; it says why.")

    def wait(self) -> None:
        if self.accelerator:
            self.accelerator.wait_for_everyone()


def pack_root(comfyui: Path) -> Path:
    """The folder of the pack: this clone, or for commands installed by pip the copy in ComfyUI's custom_nodes."""
    if _is_pack(ROOT):
        return ROOT
    found = [folder for folder in sorted((comfyui / "custom_nodes").glob("*")) if _is_pack(folder)]
    if not found:
        sys.exit(
            "This command runs the nodes of the pack, which pip does not install, and there are none in "
            f"{comfyui / 'custom_nodes'}. Clone the pack there, or install from a clone with pip install -e ."
        )
    ours, theirs = importlib.metadata.version("phased-consistency"), _version(found[0])
    if ours != theirs:
        sys.exit(f"{found[0]} is version {theirs} of the pack, this command {ours}. Install one version of both.")
    return found[0]


def _is_pack(folder: Path) -> bool:
    return _version(folder) is not None


def _version(folder: Path) -> str | None:
    """The version in the pyproject.toml of a copy of this pack; ``None`` for any other folder."""
    project = folder / "pyproject.toml"
    text = project.read_text("utf-8", errors="replace") if project.is_file() else ""
    if not re.search(r'^name = "phased-consistency"$', text, re.MULTILINE):
        return None
    found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else ""


def see_demo() -> None:
    """Make the demo world of this clone importable; last, as the host has modules of short names too."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))


def load_pack(comfyui: str | None = None) -> Pack:
    """Import the pack like the host, and return its modules by name.

    Args:
        comfyui: a ComfyUI checkout; default: COMFYUI_PATH.
    """
    comfyui = comfyui or os.environ.get("COMFYUI_PATH")
    if not comfyui:
        sys.exit("This command runs inside ComfyUI: give a checkout of it with --comfyui PATH, or in COMFYUI_PATH.")
    if not (Path(comfyui) / "comfy" / "sd.py").is_file():
        sys.exit(f"{comfyui} is not a ComfyUI checkout. Point --comfyui or COMFYUI_PATH at one.")
    root = pack_root(Path(comfyui))
    # The root goes last: this repository has a package "nodes", the host a module of that name.
    others = [entry for entry in sys.path if entry and Path(entry).resolve() != root]
    sys.path[:] = [comfyui, *others, str(root)]
    if not torch.cuda.is_available():
        importlib.import_module("comfy.cli_args").args.cpu = True  # before comfy.model_management
    spec = importlib.util.spec_from_file_location(PACKAGE, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    sys.modules[PACKAGE] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name: importlib.import_module(f"{PACKAGE}.{name}")
