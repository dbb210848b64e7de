"""Load and apply an SDXL-sized LoRA: Load PCM LoRA against the host's LoraLoaderModelOnly, time and peak memory.

    COMFYUI_PATH=... python benchmarks/lora_load.py [--runs 3] [--rank 64]

The LoRA is synthetic, rank 64 on 788 modules as the released files (394 MB). The model has SDXL's full key list; its
weights take no memory (meta tensors), so that reading and matching is what is measured, not the merge, which is the
host's own code in both cases. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "adm_in_channels": 2816,
    "num_classes": "sequential", "use_spatial_transformer": True, "use_linear_in_transformer": True, "num_heads": -1,
    "num_head_channels": 64, "legacy": False, "use_checkpoint": False, "use_temporal_attention": False,
    "use_temporal_resblock": False,
}  # fmt: skip
# What the authors train (train_pcm_lora_sdxl_adv.py): attention, feed-forward, projections and convolutions.
PARTS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
         "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")  # fmt: skip


def host_model(folder: Path) -> Any:
    """SDXL on the meta device, as the host builds it; ``folder`` becomes its base directory."""
    sys.path[:] = [os.environ["COMFYUI_PATH"], *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = str(folder)
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    torch.set_num_threads(1)
    config = comfy.supported_models.SDXL(dict(SDXL))
    config.set_inference_dtype(torch.float16, None)
    with torch.device("meta"):
        model = config.get_model({}, "", device=torch.device("meta"))
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def write_lora(model: Any, path: Path, rank: int) -> int:
    """Random kohya-style tensors for every module the authors train; returns their number."""
    import comfy.utils
    import torch
    from safetensors.torch import save_file

    shapes = {key: value.shape for key, value in model.model.state_dict().items()}
    tensors: dict[str, torch.Tensor] = {}
    for theirs, ours in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items():
        name = theirs.removesuffix(".weight")
        if name == theirs or not name.endswith(PARTS) or f"diffusion_model.{ours}" not in shapes:
            continue
        shape, stem = shapes[f"diffusion_model.{ours}"], "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, *shape[1:], dtype=torch.float16)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), dtype=torch.float16)
        tensors[f"{stem}.alpha"] = torch.tensor(8.0)
    save_file(tensors, path)
    return len(tensors) // 3


def measure(which: str, folder: Path) -> None:
    """One load in this process; prints seconds and the growth of peak memory in MB."""
    import asyncio

    model = host_model(folder)
    import torch

    import nodes

    sys.path.append(str(ROOT))
    if which == "ours":
        name = f"{ROOT.name}_pack"
        (folder / "custom_nodes").mkdir(exist_ok=True)
        link = folder / "custom_nodes" / name
        if not link.exists():
            link.symlink_to(ROOT)
        assert asyncio.run(nodes.load_custom_node(str(link), module_parent="custom_nodes"))
        node = nodes.NODE_CLASS_MAPPINGS["PCMLoraLoader"]
        arguments: dict[str, Any] = {"strength": 1.0, "allow_partial": False}
    else:
        node, arguments = nodes.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"](), {"strength_model": 1.0}
    call = node.execute if which == "ours" else node.load_lora_model_only
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with torch.inference_mode():
        patched = call(model=model, lora_name="synthetic.safetensors", **arguments)
    for value in (patched.args if which == "ours" else patched)[0].patches.values():
        for tensor in value[0][1].weights[:2]:  # the host reads every byte when it merges
            tensor.float().sum()
    seconds = time.perf_counter() - started
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--one", nargs=2, metavar=("WHICH", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], Path(options.one[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "models" / "loras" / "synthetic.safetensors"
        path.parent.mkdir(parents=True)
        modules = write_lora(host_model(Path(folder)), path, options.rank)
        print(f"{modules} modules, {path.stat().st_size / 1e6:.0f} MB")
        results: dict[str, list[tuple[float, float]]] = {"host": [], "ours": []}
        for _ in range(options.runs):
            for which, rows in results.items():
                command = [sys.executable, __file__, "--one", which, folder]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                rows.append((float(output[-2]), float(output[-1])))
        best = {which: (min(r[0] for r in rows), min(r[1] for r in rows)) for which, rows in results.items()}
        for which, (seconds, memory) in best.items():
            print(f"{which:5} {seconds:6.2f} s  {memory:6.0f} MB")
        print(f"ratio time {best['ours'][0] / best['host'][0]:.2f}, memory {best['ours'][1] / best['host'][1]:.2f}")


if __name__ == "__main__":
    main()
