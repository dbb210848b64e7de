"""The same latents in another process, with other threads, on other versions of ComfyUI and on a GPU, each in its own
process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from devtools.host import SDISTS
from devtools.paths import HOSTS
from devtools.server import on_cpu

pytestmark = [pytest.mark.host, pytest.mark.long]

Latents = dict[str, Tensor]
# Two threads split a sum of a matrix product in two, so its last bits differ; the networks pass them on.
THREADS = 1e-5
VERSIONS = 1e-5  # hosts may order their operations otherwise
DEVICES = 1e-4  # and a GPU all of them


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Latents]:
    """Latents of a host, made in a process with so many threads; on the device of PCM_DEVICE."""

    def run(comfyui: Path, threads: int = 1, **environment: str) -> Latents:
        out = tmp_path_factory.mktemp("latents") / "out.safetensors"
        script = Path(__file__).with_name("latents.py")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | environment
        command = [sys.executable, str(script), str(comfyui), str(out), str(threads)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return load_file(out)

    return run


@pytest.fixture(scope="module")
def first(sample: Callable[..., Latents], comfyui: Path) -> Latents:
    return sample(comfyui)


def distances(some: Latents, others: Latents) -> dict[str, float]:
    """The largest difference of each latent over its largest value; 0 means that every bit is the same."""
    assert some.keys() == others.keys()
    return {key: float((some[key] - others[key]).abs().max() / some[key].abs().max()) for key in some}


def report(title: str, found: dict[str, float]) -> float:
    same = sum(value == 0 for value in found.values())
    worst = max(found, key=lambda key: found[key])
    print(f"{title}: {same} of {len(found)} bitwise, at most {found[worst]:.1e} ({worst})")
    return found[worst]


def test_another_process(sample: Callable[..., Latents], comfyui: Path, first: Latents) -> None:
    assert report("another process", distances(first, sample(comfyui))) == 0


@pytest.mark.parametrize("threads", [2, 4])
def test_more_threads(sample: Callable[..., Latents], comfyui: Path, first: Latents, threads: int) -> None:
    assert report(f"{threads} threads", distances(first, sample(comfyui, threads=threads))) <= THREADS


@pytest.mark.skipif(on_cpu(), reason="PCM_DEVICE=cuda is not set")
def test_a_gpu(sample: Callable[..., Latents], comfyui: Path, first: Latents) -> None:
    assert report("CPU against GPU", distances(sample(comfyui, PCM_DEVICE="cpu"), first)) <= DEVICES


@pytest.mark.parametrize("version", list(SDISTS))
def test_another_version_of_the_host(sample: Callable[..., Latents], first: Latents, version: str) -> None:
    host = HOSTS / version
    if not (host / "nodes.py").exists():
        pytest.skip(f"{host.name} is not there; python dev.py test --long brings it")
    assert report(f"ComfyUI {version}", distances(first, sample(host))) <= VERSIONS
