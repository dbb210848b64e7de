"""Paths, and what several suites share.

The repository root goes to the end of ``sys.path``: ``import pcm_core`` and ``import demo`` work, and ``import nodes``
still finds the host's ``nodes.py`` once ``tests/host/conftest.py`` has put COMFYUI_PATH first.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

if TYPE_CHECKING:  # what needs the host is imported by those who ask for it
    from demo.client import Client
    from devtools.server import Server

ROOT = Path(__file__).resolve().parent.parent

# A busy machine may take its time.
settings.register_profile("pcm", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pcm")


def _is_root(entry: str) -> bool:
    return not entry or Path(entry).resolve() == ROOT


sys.path[:] = [entry for entry in sys.path if not _is_root(entry)] + [str(ROOT)]
pack = importlib.import_module("scripts.pack")  # needs the path above
pack.install()


@pytest.fixture(scope="session")
def sd_table() -> torch.Tensor:
    """Sigmas of SD 1.5 and SDXL, ascending, float32 [1000], by the formula of the host's ModelSamplingDiscrete."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas) / alphas).sqrt().float()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--packs", metavar="DIR", help="a folder with other node packs, for tests/neighbours")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set: server tests need a ComfyUI checkout")
    return Path(path).resolve()


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real ComfyUI for the session, with both packs, a probe, the demo weights and files nobody should load."""
    from devtools.server import Server

    with Server(Path(sys.executable), comfyui, server_base(tmp_path_factory.mktemp("base"))) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    from demo.client import Client

    with Client(server.url) as connected:
        yield connected


def server_base(folder: Path) -> Path:
    from devtools.base import link_folder, make_base

    make_base(folder)
    link_folder(folder / "custom_nodes" / "weights_pack", ROOT / "tests" / "trust" / "weights_pack")
    bad_loras(folder / "models" / "loras")
    return folder


def bad_loras(folder: Path) -> None:
    """A file cut off in the middle, one that is no safetensors at all, and a LoRA of Stable Diffusion 1.5."""
    whole = (folder / "demo_pcm_4phase.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "not_safetensors.safetensors").write_bytes(b"<html>Not found</html>")
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{module}.lora_down.weight": torch.ones(4, 320), f"{module}.lora_up.weight": torch.ones(320, 4)}
    save_file(tensors, folder / "pcm_sd15_smallcfg_4step_converted.safetensors")
