"""Models of real size with random weights: the stock loader and KSampler against Load PCM LoRA and PCM Sampler.

    python -m benchmarks.real_size [--models sd15 sdxl] [--size 256] [--rounds 2] [--device cpu]

LoRAs have the released size: rank 64 on what the authors train, 278 modules (134.6 MB) for SD1.5 and 788 (393.8 MB) for
SDXL. Each measurement is a process of its own, the two sides in turns: seconds from the loaded model to the latent,
LoRA and merging included, peak memory over that of the loaded model, and the latents compared. Needs COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import markdown
from benchmarks.lora_load import RELEASED, node_call, peak, write_lora
from benchmarks.memory_truth import resident
from benchmarks.model_shapes import MODELS, fill

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4
NAMES = {"sd15": "pcm_sd15_smallcfg_4step_converted", "sdxl": RELEASED}


def boot(folder: Path, device: str) -> None:
    """The host in this process, with ``folder`` as its base directory."""
    sys.path[:] = [os.environ["COMFYUI_PATH"], *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    import comfy.cli_args

    comfy.cli_args.args.cpu = device == "cpu"
    comfy.cli_args.args.base_directory = str(folder)
    comfy.cli_args.args.use_pytorch_cross_attention = True
    torch.set_num_threads(1 if device == "cpu" else os.cpu_count() or 1)


def make(name: str, folder: Path) -> None:
    """Write a checkpoint and a LoRA, in a process of its own."""
    boot(folder, "cpu")
    from safetensors.torch import load_file, save_file

    model = MODELS[name].build(torch.float16, "cpu")
    fill(model.model.diffusion_model)
    path = folder / "models" / "diffusion_models" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.model.diffusion_model.state_dict().items()}, path)
    lora = folder / "models" / "loras" / f"{NAMES[name]}.safetensors"
    lora.parent.mkdir(parents=True, exist_ok=True)
    modules = write_lora(model, lora, 64)
    # Its values are of unit scale, with which a model gives nothing but NaN: as small as a trained LoRA's.
    save_file({key: value if key.endswith("alpha") else value * 0.02 for key, value in load_file(lora).items()}, lora)
    print(modules)


def one(name: str, side: str, folder: Path, size: int, device: str) -> None:
    """One measurement; prints seconds and MB as JSON and leaves the latent in ``folder``."""
    boot(folder, device)
    import comfy.sd

    import nodes

    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(folder / "models" / "diffusion_models" / f"{name}.safetensors"))
        load = loader(side, NAMES[name], folder)
        text = MODELS[name].conditioning()
        latent = {"samples": torch.zeros(1, 4, size // 8, size // 8)}
        warm = sample(nodes, "stock", model, text, latent)  # loads the model, and what is imported only then
        del warm
        before = _memory(device, reset=True)
        started = time.perf_counter()
        patched = load(model)
        made = sample(nodes, side, patched, text, latent)
        seconds, memory = time.perf_counter() - started, _memory(device) - before
    torch.save(made, folder / f"{name}_{side}.pt")
    print(json.dumps({"seconds": seconds, "memory": memory}))


def loader(side: str, name: str, folder: Path) -> Any:
    """``model -> patched model`` by the host's loader or ours."""
    ours = node_call("ours", folder)  # both sides with the pack in the host
    import nodes

    if side == "ours":
        node = nodes.NODE_CLASS_MAPPINGS["PCMLoraLoader"]
        return lambda model: node.execute(model=model, lora_name=f"{name}.safetensors", strength=1.0).args[0]
    assert ours
    stock = nodes.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"]()
    return lambda model: stock.load_lora_model_only(model, f"{name}.safetensors", 1.0)[0]


def sample(nodes: Any, side: str, model: Any, text: Any, latent: Any) -> torch.Tensor:
    if side == "stock":
        return nodes.common_ksampler(model, 1, STEPS, 1.0, "euler", "simple", text, text, latent)[0]["samples"].clone()
    node = nodes.NODE_CLASS_MAPPINGS["PCMSampler"]
    inputs = {key: given[1]["default"] for key, given in node.INPUT_TYPES()["required"].items()
              if len(given) > 1 and "default" in given[1]}  # fmt: skip
    inputs |= {"model": model, "positive": text, "negative": text, "latent_image": latent, "seed": 1}
    return node.execute(**inputs).args[0]["samples"].clone()


def _memory(device: str, reset: bool = False) -> float:
    """MB: the peak since the last reset, or with ``reset`` what lies there now."""
    if device == "cpu":
        peak(reset=reset)
        return resident() / 2**20 if reset else peak()
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.real_size", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return done.stdout.strip().splitlines()[-1]


def compare(name: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Both sides in turns; a row of the table."""
    modules = run("--make", name, str(folder))
    found: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    for turn in range(options.rounds):
        for side in ("stock", "ours") if turn % 2 == 0 else ("ours", "stock"):
            words = run("--one", name, side, str(folder), str(options.size), options.device)
            found[side].append(json.loads(words))
            print(f"{name} {side}: {words}", file=sys.stderr, flush=True)
    stock, ours = (torch.load(folder / f"{name}_{side}.pt", weights_only=True) for side in ("stock", "ours"))
    apart = float((stock - ours).abs().max() / stock.abs().max())
    typical = {side: {key: statistics.median(row[key] for row in rows) for key in ("seconds", "memory")}
               for side, rows in found.items()}  # fmt: skip
    ratio = {key: typical["ours"][key] / typical["stock"][key] for key in ("seconds", "memory")}
    lora = (folder / "models" / "loras" / f"{NAMES[name]}.safetensors").stat().st_size / 1e6
    return [
        f"{name}, {options.size} px", f"{modules} modules, {lora:.1f} MB",
        *(f"{typical[side]['seconds']:.1f} s" for side in found), f"{ratio['seconds']:.2f}",
        *(f"{typical[side]['memory']:.0f} MB" for side in found), f"{ratio['memory']:.2f}", f"{apart:.1e}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(NAMES), default=["sd15"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make[0], Path(options.make[1]))
    elif options.one:
        name, side, folder, size, device = options.one
        one(name, side, Path(folder), int(size), device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = [compare(name, Path(folder), options) for name in options.models]
        head = ["", "LoRA", "stock", "ours", "ours / stock", "stock, memory", "ours, memory", "ours / stock", "apart"]
        print(f"{STEPS} steps at cfg 1, median of {options.rounds} processes a side, on the {options.device}.\n")
        print(markdown(head, rows))


if __name__ == "__main__":
    main()
