"""Models of real size with random weights: the stock loader and KSampler against Load PCM LoRA and PCM Sampler.

    python -m benchmarks.real_size [--models sd15 sdxl] [--size 256] [--rounds 2] [--device cpu]
    python -m benchmarks.real_size --device cuda --models sd15 sdxl sd35 flux flux_fp8 wan_14b --size 512
    python -m benchmarks.real_size --tiny --models sd15 sd35 flux flux_fp8 wan_14b      narrow ones, to try the script

LoRAs have the released size: rank 64 on what the authors train, 278 modules (134.6 MB) for SD1.5, 788 (393.8 MB) for
SDXL; for transformers every matrix of their blocks, with the settings of a PCM LoRA in the file. Clips have 33 frames
of 832 x 480, whatever --size says. Each measurement is a process of its own, the two sides in turns: seconds from the
loaded model to the latent, LoRA and merging included (on the CPU of the processor, which other load affects least),
peak memory over that of the loaded model, and the latents compared. A first process does not count: the kernel still
has free memory for it. Needs COMFYUI_PATH.
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
from benchmarks.model_shapes import DETECTED, MODELS, Model, fill

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4
NAMES = {"sd15": "pcm_sd15_smallcfg_4step_converted", "sdxl": RELEASED}
NAMES |= {name: f"a_pcm_lora_of_{name}" for name in ("sd35", "flux", "flux_fp8", "wan_14b")}
# Of such a LoRA; its edges are the timesteps of four trailing steps, which the stock scheduler "simple" samples too.
SETTINGS = {"pcm_phases": "4", "pcm_grid": "40", "pcm_spacing": "trailing", "pcm_terminal": "zero",
            "pcm_edges": "0,10,20,30,40", "pcm_cfg": "1.0", "pcm_prediction": "flow", "format": "pt"}  # fmt: skip


def shapes(name: str, tiny: bool) -> Model:
    """The model, or one of its family that is narrow enough to try the script."""
    name = {"flux_fp8": "flux", "wan_14b": "wan_1b"}.get(name, name) if tiny else name.removesuffix("_fp8")
    return DETECTED[name] if tiny else MODELS[name]


def boot(folder: Path, device: str) -> None:
    """The host in this process, with ``folder`` as its base directory."""
    sys.path[:] = [os.environ["COMFYUI_PATH"], *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    import comfy.cli_args

    comfy.cli_args.args.cpu = device == "cpu"
    comfy.cli_args.args.base_directory = str(folder)
    comfy.cli_args.args.use_pytorch_cross_attention = True
    torch.set_num_threads(1 if device == "cpu" else os.cpu_count() or 1)


def make(name: str, folder: Path, tiny: bool) -> None:
    """Write a checkpoint and a LoRA, in a process of its own."""
    boot(folder, "cpu")
    from safetensors.torch import load_file, save_file

    unet = name in ("sd15", "sdxl")
    model = shapes(name, tiny).build(torch.float16 if unet else torch.bfloat16, "cpu")
    network = model.model.diffusion_model
    fill(network)
    path = folder / "models" / "diffusion_models" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {key: value.to(torch.float8_e4m3fn) if name.endswith("_fp8") and value.ndim > 1 else value
              for key, value in network.state_dict().items()}  # fmt: skip
    save_file({key: value.contiguous() for key, value in stored.items()}, path)
    lora = folder / "models" / "loras" / f"{NAMES[name]}.safetensors"
    lora.parent.mkdir(parents=True, exist_ok=True)
    modules = write_lora(model, lora, 64) if unet else write_own_lora(network, lora)
    # Its values are of unit scale, with which a model gives nothing but NaN: as small as a trained LoRA's.
    small = {key: value if key.endswith("alpha") else value * 0.02 for key, value in load_file(lora).items()}
    save_file(small, lora, metadata=None if unet else SETTINGS)
    print(modules)


def write_own_lora(network: Any, path: Path) -> int:
    """Random pairs of rank 64 for every matrix of a transformer's blocks; returns their number."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if "blocks" in name and hasattr(module, "in_features"):
            stem, sizes = f"diffusion_model.{name}", (module.in_features, module.out_features)
            tensors[f"{stem}.lora_down.weight"] = torch.randn(64, sizes[0], dtype=torch.bfloat16)
            tensors[f"{stem}.lora_up.weight"] = torch.randn(sizes[1], 64, dtype=torch.bfloat16)
            tensors[f"{stem}.alpha"] = torch.tensor(8.0)
    save_file(tensors, path)
    return len(tensors) // 3


def one(name: str, side: str, folder: Path, options: argparse.Namespace) -> None:
    """One measurement; prints seconds and MB as JSON and leaves the latent in ``folder``."""
    device, given = options.device, shapes(name, options.tiny)
    boot(folder, device)
    import comfy.sd

    import nodes

    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(folder / "models" / "diffusion_models" / f"{name}.safetensors"))
        load = loader(side, NAMES[name], folder)
        text, shape = given.conditioning(), given.latent
        if len(shape) == 3 and not options.tiny:
            shape = (shape[0], options.size // 8, options.size // 8)
        latent = {"samples": torch.zeros(1, *shape)}
        warm = sample(nodes, side, model, text, latent)  # loads the model, and what is imported only then
        del warm
        before = _memory(device, reset=True)
        clock = time.process_time if device == "cpu" else time.perf_counter
        started = clock()
        patched = load(model)
        made = sample(nodes, side, patched, text, latent)
        seconds, memory = clock() - started, _memory(device) - before
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
    more = ["--tiny"] if options.tiny else []
    modules = run("--make", name, str(folder), *more)
    found: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    measure = ["--size", str(options.size), "--device", options.device, *more]
    run("--one", name, "stock", str(folder), *measure)  # finds memory free that all others must have reclaimed for them
    for turn in range(options.rounds):
        for side in ("stock", "ours") if turn % 2 == 0 else ("ours", "stock"):
            words = run("--one", name, side, str(folder), *measure)
            found[side].append(json.loads(words))
            print(f"{name} {side}: {words}", file=sys.stderr, flush=True)
    stock, ours = (torch.load(folder / f"{name}_{side}.pt", weights_only=True) for side in ("stock", "ours"))
    apart = float((stock - ours).abs().max() / stock.abs().max())
    typical = {side: {key: statistics.median(row[key] for row in rows) for key in ("seconds", "memory")}
               for side, rows in found.items()}  # fmt: skip
    ratio = {key: typical["ours"][key] / typical["stock"][key] for key in ("seconds", "memory")}
    lora = (folder / "models" / "loras" / f"{NAMES[name]}.safetensors").stat().st_size / 1e6
    return [
        name + (", narrow" if options.tiny else f", {options.size} px" if len(shapes(name, False).latent) == 3 else ""),
        f"{modules} modules, {lora:.1f} MB",
        *(f"{typical[side]['seconds']:.1f} s" for side in found), f"{ratio['seconds']:.2f}",
        *(f"{typical[side]['memory']:.0f} MB" for side in found), f"{ratio['memory']:.2f}", f"{apart:.1e}",
    ]  # fmt: skip


def compare_or_say(name: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """A model that cannot be made or run here leaves a row that says so; the others still say something."""
    try:
        return compare(name, folder, options)
    except subprocess.CalledProcessError as error:
        return [name, f"failed, exit {error.returncode}", *[""] * 7]
    finally:  # checkpoints of 24 GB
        for path in folder.glob("models/*/*.safetensors"):
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(NAMES), default=["sd15"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="narrow models of the same families, to try the script")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make[0], Path(options.make[1]), options.tiny)
    elif options.one:
        name, side, folder = options.one
        one(name, side, Path(folder), options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = [compare_or_say(name, Path(folder), options) for name in options.models]
        head = ["", "LoRA", "stock", "ours", "ours / stock", "stock, memory", "ours, memory", "ours / stock", "apart"]
        print(f"{STEPS} steps at cfg 1, median of {options.rounds} processes a side, on the {options.device}.\n")
        print(markdown(head, rows))


if __name__ == "__main__":
    main()
