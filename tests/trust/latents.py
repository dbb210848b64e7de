"""Samples tiny models in a process and on a host of its own, and writes the latents: see ``test_determinism``.

python latents.py COMFYUI OUT.safetensors THREADS
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FAMILIES = {"eps": (32, 32), "v": (32, 32), "sd3": (16, 16), "flux": (16, 16), "wan": (16, 16), "ltxv": (4, 4)}
NOISES = {"deterministic": 1.0, "stochastic": 0.5}


def main() -> None:
    sys.path.append(str(ROOT))  # as tests/conftest.py does
    comfyui, out, threads = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), int(sys.argv[3])
    spec = importlib.util.spec_from_file_location("host_conftest", ROOT / "tests" / "host" / "conftest.py")
    assert spec is not None and spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    sys.modules["host_conftest"] = conftest
    spec.loader.exec_module(conftest)
    with tempfile.TemporaryDirectory() as folder:
        host = conftest._boot(comfyui, Path(folder))
        import tiny
        import torch
        from safetensors.torch import save_file

        torch.set_num_threads(threads)
        zoo, found = tiny.Zoo(Path(folder)), {}
        for name, size in FAMILIES.items():
            given = zoo[name]
            shape = (2, *given.shapes[0][:-2], *size)
            picture = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            for noise, determinism in NOISES.items():
                latent, *_ = host.call(
                    "PCMSampler", model=given.model, positive=given.positive, negative=given.negative, seed=5,
                    latent_image={"samples": picture}, steps=4, cfg="3", denoise=0.8,
                    determinism=determinism,
                )  # fmt: skip
                found[f"{name} {noise}"] = latent["samples"].contiguous()
        save_file(found, out)


if __name__ == "__main__":
    main()
