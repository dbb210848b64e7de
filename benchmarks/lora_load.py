"""Load and merge an SDXL-sized LoRA: Load PCM LoRA against the host's LoraLoaderModelOnly, time and peak memory.

    python -m benchmarks.lora_load [--runs 3] [--rank 64]

The LoRA is synthetic: rank 64 on 788 modules, like the released files (394 MB). The model has SDXL's full key list; its
weights take no memory (meta tensors), and each is created when it is merged, as for an offloaded model. Each run is a
process of its own. Needs COMFYUI_PATH. Three rows:

host      LoraLoaderModelOnly
ours      Load PCM LoRA on a file with the name of a released one
renamed   Load PCM LoRA on the same file under an unknown name: it is hashed, once per session

and three columns: the node alone; the time until every value has been read once (the host's loader maps the file and
leaves reading to the merge, so one read is added; our node reads it for its checks and norms); the node and the host's
merge of every weight. Seconds are CPU seconds, median of the runs, because the kernel's time for allocating the merge's
memory varies by seconds. Peak memory is the growth of the process before the merge, file pages included.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import markdown

ROOT = Path(__file__).resolve().parent.parent
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "adm_in_channels": 2816,
    "num_classes": "sequential", "use_spatial_transformer": True, "use_linear_in_transformer": True, "num_heads": -1,
    "num_head_channels": 64, "legacy": False, "use_checkpoint": False, "use_temporal_attention": False,
    "use_temporal_resblock": False,
}  # fmt: skip
RELEASED, UNKNOWN = "pcm_sdxl_smallcfg_4step_converted", "my_favourite"
# What the authors train (train_pcm_lora_sdxl_adv.py): attention, feed-forward, projections and convolutions.
PARTS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
         "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")  # fmt: skip


def host_model(folder: Path) -> Any:
    """SDXL on the meta device, as the host builds it; ``folder`` becomes its base directory."""
    sys.path[:] = [os.environ["COMFYUI_PATH"], *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = str(folder)
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    torch.set_num_threads(1)
    config = comfy.supported_models.SDXL(dict(SDXL))
    config.set_inference_dtype(torch.float16, None)
    with torch.device("meta"):
        model = config.get_model({}, "", device=torch.device("meta"))
    model.model_sampling = comfy.model_base.model_sampling(config, model.model_type)  # its table gets values
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


def node_call(which: str, folder: Path) -> Callable[[Any], Any]:
    """The node of row ``which`` as ``model -> patched model``."""
    import asyncio

    import nodes

    sys.path.append(str(ROOT))
    if which == "host":
        node = nodes.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"]()
        return lambda model: node.load_lora_model_only(model, f"{RELEASED}.safetensors", 1.0)[0]
    (folder / "custom_nodes").mkdir(exist_ok=True)
    link = folder / "custom_nodes" / f"{ROOT.name}_pack"
    if not link.exists():
        link.symlink_to(ROOT)
    assert asyncio.run(nodes.load_custom_node(str(link), module_parent="custom_nodes"))
    ours = nodes.NODE_CLASS_MAPPINGS["PCMLoraLoader"]
    name = RELEASED if which == "ours" else UNKNOWN
    return lambda model: ours.execute(model=model, lora_name=f"{name}.safetensors", strength=1.0).args[0]


def peak(reset: bool = False) -> float:
    """Peak resident memory of this process in MB, since the last reset if the system can reset it (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if reset:
        Path("/proc/self/clear_refs").write_text("5", "ascii", newline="\n")
    line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def measure(which: str, folder: Path) -> None:
    """One run in this process; prints the CPU seconds of the three columns and the growth of peak memory in MB."""
    model = host_model(folder)
    import comfy.lora
    import torch

    call = node_call(which, folder)
    gc.collect()
    gc.freeze()  # collecting the host's million objects takes longer than what is measured
    before, started = peak(reset=True), time.process_time()
    with torch.inference_mode():
        patches = call(model).patches
        loaded = time.process_time()
        for value in patches.values():
            for tensor in value[0][1].weights[:2]:
                tensor.float().sum()
        read = time.process_time() if which == "host" else loaded
        memory = peak() - before
        shapes = {key: value.shape for key, value in model.model.state_dict().items()}
        merging = time.process_time()
        for key, value in patches.items():
            comfy.lora.calculate_weight(value, torch.zeros(shapes[key]), key)
        merged = time.process_time()
    print(loaded - started, read - started, loaded - started + merged - merging, memory)


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
        path = Path(folder) / "models" / "loras" / f"{RELEASED}.safetensors"
        path.parent.mkdir(parents=True)
        modules = write_lora(host_model(Path(folder)), path, options.rank)
        os.link(path, path.with_stem(UNKNOWN))
        size = path.stat().st_size / 1e6
        runs: dict[str, list[list[float]]] = {"host": [], "ours": [], "renamed": []}
        for _ in range(options.runs):
            for which, rows in runs.items():
                command = [sys.executable, "-m", "benchmarks.lora_load", "--one", which, folder]
                output = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True).stdout.split()
                rows.append([float(number) for number in output[-4:]])
    typical = {which: [statistics.median(column) for column in zip(*rows, strict=True)] for which, rows in runs.items()}
    rows: list[list[str]] = []
    for which, values in typical.items():
        cells = [*(f"{value:.2f} s" for value in values[:3]), f"{values[3]:.0f} MB"]
        ratios = [value / host for value, host in zip(values, typical["host"], strict=True)]
        rows.append([which, *(f"{cell} ({ratio:.2f} x)" for cell, ratio in zip(cells, ratios, strict=True))])
    print(f"{modules} modules, {size:.0f} MB, CPU seconds, median of {options.runs} runs, one thread.\n")
    print(markdown(["", "node", "values read once", "node and merge", "peak memory"], rows))


if __name__ == "__main__":
    main()
