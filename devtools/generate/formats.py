"""Write docs/formats.md: every base model, key format, adapter and storage of the base, merged and while sampling.

    COMFYUI_PATH=... python -m devtools.generate.formats

Each cell loads a LoRA through Load PCM LoRA on the host's own classes, in the tiny sizes of the tests, and compares
the weight with the sum computed here: ``W + scale * B A``, ``torch.kron``, the product of LoHa, the formula of DoRA.
The figure is the largest difference, as a share of the largest value of the update. ``refused`` is a PCMError, whose
sentence is below the table; ``-`` where there is no such thing.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "formats.md"
# Base model to the tiny model of the tests.
MODELS = {
    "Stable Diffusion 1.5": "sd15", "SDXL": "sdxl", "Stable Diffusion 3": "sd3", "FLUX.1": "flux", "FLUX.2": "flux2",
    "Wan": "wan", "HunyuanVideo": "hunyuan_video", "HunyuanVideo 1.5": "hunyuan_video15", "LTX-Video": "ltxv",
    "LTX-2": "ltx2", "Mochi": "mochi", "Qwen-Image": "qwen_image", "Z-Image": "z_image", "Krea 2": "krea2",
    "Lens": "lens", "ERNIE-Image": "ernie_image", "Mage-Flow": "mage_flow", "AuraFlow": "auraflow",
    "MiniMax-H3": "minimax_h3", "PixArt": "pixart", "HiDream": "hidream",
}  # fmt: skip
SPELLINGS: dict[str, Callable[[str], str]] = {
    "`diffusion_model.`": lambda name: f"diffusion_model.{name}",
    "`lora_unet_`": lambda name: "lora_unet_" + name.replace(".", "_"),
    "`base_model.model.`": lambda name: f"base_model.model.{name}",
    "`transformer.`": lambda name: f"transformer.{name}",
    "`_fsdp_wrapped_module.`": lambda name: f"_fsdp_wrapped_module.{name}",
    "diffusers' names": lambda name: f"lora_transformer_{name}",  # the canonical name, whose dots are lost
}
ADAPTERS = ("LoRA", "LoKr", "LoHa", "DoRA", "diff")
STORAGE = ("fp32", "fp16", "fp8", "scaled fp8", "int8", "GGUF Q8_0")
# The host's quantised formats: sampled without merging.
QUANTISED = {"scaled fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}
MODES = ("merge", "bypass")


def adapter(kind: str, shape: tuple[int, ...], weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
    """Tensors of an adapter for a matrix, and the weight it means; ``None`` where the shape has no such adapter."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(rows * 31 + columns)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * 0.1

    if kind == "LoKr":
        if rows % 2 or columns % 2:
            return None
        one, two = random(2, 2), random(rows // 2, columns // 2)
        return {"lokr_w1": one, "lokr_w2": two}, weight + torch.kron(one, two)
    if kind == "LoHa":
        a, b, c, d = random(rows, 2), random(2, columns), random(rows, 2), random(2, columns)
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        return dict(zip(names, (a, b, c, d), strict=True)), weight + (a @ b) * (c @ d)
    if kind == "diff":
        update = random(rows, columns)
        return {"diff": update}, weight + update
    up, down = random(rows, 4), random(4, columns)
    parts = {"lora_B.weight": up, "lora_A.weight": down, "alpha": torch.tensor(2.0)}
    merged = weight + up @ down / 2
    if kind == "LoRA":
        return parts, merged
    magnitude = weight.norm(dim=1) + random(rows).abs()
    return parts | {"lora_magnitude_vector": magnitude}, magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True)


class Matrix:
    """The running host, its tiny models, and the cells."""

    def __init__(self, comfyui: Path) -> None:
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
        sys.path += [str(ROOT / "tests" / "host"), str(ROOT)]
        importlib.import_module("scripts.pack").install()
        names = ("conftest", "tiny", "tiny_image", "tiny_video")
        conftest, self.tiny, image, video = map(importlib.import_module, names)
        self.folder = Path(tempfile.mkdtemp())
        self.host = conftest._boot(comfyui, self.folder)
        self.zoo = self.tiny.Zoo(self.folder, image.FACTORIES | video.FACTORIES)
        self.sentences: dict[str, int] = {}
        self.last: tuple[tuple[str, str], Any] = ("", ""), None

    def matrices(self, model: Any, spelling: str, count: int = 4) -> list[tuple[str, Any]]:
        """Names and targets of the first matrices of a model's blocks."""
        keys = [key for key, value in model.model.named_parameters()
                if key.endswith(".weight") and value.ndim == 2 and ("block" in key or "layers." in key)]  # fmt: skip
        target = self.host.pack("pcm_core.lora.keys").Target
        if "diffusers" not in spelling:
            return [(key.removeprefix("diffusion_model.").removesuffix(".weight"), target(key)) for key in keys[:count]]
        weights = self.host.pack("nodes.host.lora").model_weights(model)
        extra = self.host.pack("pcm_core.lora.diffusers_names").extra_targets(weights.base_model, weights.shapes)
        canonical, index = self.host.pack("pcm_core.lora.keys").canonical, {}
        for name, found in (*extra.items(), *weights.names.items()):
            index.setdefault(canonical(name), found)
        theirs = [(name, found) for name, found in index.items()
                  if found.weight in keys and not found.swap
                  and canonical(found.weight.removesuffix(".weight")) != name]  # fmt: skip
        return theirs[:count]

    def cell(self, family: str, spelling: str, kind: str, storage: str, mode: str) -> str:
        """``exact (figure)``, ``refused (number of the sentence)`` or ``-``."""
        stored = self.stored(family, storage)
        if stored is None or (mode == "bypass" and storage not in QUANTISED):
            return "-"
        tensors: dict[str, Tensor] = {}
        meant: dict[str, tuple[Tensor, Tensor]] = {}
        for name, target in self.matrices(stored, spelling):
            before = self.unpacked(stored, target.weight)
            _, want = meant.get(target.weight, (before, before.clone()))
            start, rows = target.rows or (0, len(before))
            made = adapter(kind, (rows, before.shape[1]), before[start : start + rows])
            if made is not None:
                want[start : start + rows] = made[1]
                meant[target.weight] = before, want
                tensors |= {f"{SPELLINGS[spelling](name)}.{role}": value for role, value in made[0].items()}
        return self.compare(stored, tensors, meant, mode) if tensors else "-"

    def compare(
        self, model: Any, tensors: dict[str, Tensor], meant: dict[str, tuple[Tensor, Tensor]], mode: str
    ) -> str:
        write = importlib.import_module("safetensors.torch").save_file
        folder = Path(importlib.import_module("folder_paths").folder_names_and_paths["loras"][0][0])
        folder.mkdir(parents=True, exist_ok=True)
        write({key: value.contiguous() for key, value in tensors.items()}, folder / "cell.safetensors")
        error = self.host.pack("pcm_core.errors").PCMError
        try:
            loaded, report, *_ = self.host.call(
                "PCMLoraLoader", model=model, lora_name="cell.safetensors", strength=1.0
            )
        except error as refusal:
            number = self.sentences.setdefault(str(refusal), len(self.sentences) + 1)
            return f"refused ({number})"
        if f"{len(tensors)} of {len(tensors)} applied" not in report:
            return "WRONG: not all applied"
        worst = max(self.difference(loaded, key, *values, mode) for key, values in meant.items())
        return f"exact ({worst:.0e})" if worst < 1e-4 else f"WRONG ({worst:.0e})"

    def difference(self, loaded: Any, key: str, before: Tensor, want: Tensor, mode: str) -> float:
        """Largest difference between the weight that is used and the one that is meant."""
        calculate = importlib.import_module("comfy.lora").calculate_weight
        if mode == "bypass":
            live = self.host.pack("nodes.host.unmerged")._unmerged(loaded)
            (function,) = live.weight_wrapper_patches[key]
            got = function(before.clone())
        else:
            got = calculate(loaded.patches[key], before.clone(), key)
        return float((got - want).abs().max() / (want - before).abs().max())

    def unpacked(self, model: Any, key: str) -> Tensor:
        """What a stored weight means, fp32."""
        value: Any = model.model.get_parameter(key)
        if isinstance(value, importlib.import_module("comfy.quant_ops").QuantizedTensor):
            value = value.dequantize()
        return getattr(value, "meaning", value).detach().float().clone()

    def stored(self, family: str, storage: str) -> Any:
        """The tiny model with its weights stored that way, made once; ``None`` where the tests have none."""
        if self.last[0] != (family, storage):
            self.last = (family, storage), self.store_all(family, storage)
        return self.last[1]

    def store_all(self, family: str, storage: str) -> Any:
        if storage == "fp32":
            return self.zoo[family].model
        known = importlib.import_module("comfy.quant_ops").QUANT_ALGOS
        if storage in QUANTISED and QUANTISED[storage] not in known:
            return None
        model = self.zoo.factories[family](self.folder).model
        for key, value in list(model.model.named_parameters()):
            if value.ndim == 2 and key.endswith(".weight") and ("block" in key or "layers." in key):
                self.store(model, key, value, storage)
        return model

    def store(self, model: Any, key: str, value: Tensor, storage: str) -> None:
        kinds = {"fp16": torch.float16, "fp8": torch.float8_e4m3fn}
        module = model.model.get_submodule(key.removesuffix(".weight"))
        if storage in QUANTISED:
            with torch.inference_mode():  # as the executor does: such tensors cannot be used in it otherwise
                module.weight = torch.nn.Parameter(quantised(value, QUANTISED[storage]), requires_grad=False)
        elif storage in kinds:
            module.weight = torch.nn.Parameter(value.detach().to(kinds[storage]), requires_grad=False)
        elif value.shape[1] % 32 == 0:
            module.weight = packed(value)


def quantised(value: Tensor, scheme: str) -> Tensor:
    """A weight as the host keeps it in one of its own formats."""
    quant_ops = importlib.import_module("comfy.quant_ops")
    layout = quant_ops.QUANT_ALGOS[scheme]["comfy_tensor_layout"]
    options = {"scale": "recalculate"} if scheme == "float8_e4m3fn" else {}
    return quant_ops.QuantizedTensor.from_float(value.detach().float(), layout, **options)


def packed(value: Tensor) -> torch.nn.Parameter:
    """Blocks of a GGUF file whose shape is that of the weight, as ComfyUI-GGUF keeps them."""
    gguf = importlib.import_module("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quants.quantize(value.detach().float().numpy(), kind)
    shape = value.shape

    class Packed(torch.nn.Parameter):
        @property
        def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
            return shape

    result = Packed(torch.from_numpy(blocks), requires_grad=False)
    result.meaning = torch.from_numpy(gguf.quants.dequantize(blocks, kind)).reshape(shape)  # pyright: ignore[reportAttributeAccessIssue]
    return result


def table(matrix: Matrix, storage: str, mode: str, models: dict[str, str]) -> list[str]:
    """Rows of one storage and mode: a base model and adapter each, with a column for each key format."""
    head = [
        f"### {storage}, {mode}",
        "",
        f"| base model | adapter | {' | '.join(SPELLINGS)} |",
        "|---" * (len(SPELLINGS) + 2) + "|",
    ]
    rows: list[str] = []
    for name, family in models.items():
        for kind in ADAPTERS:
            cells = [matrix.cell(family, spelling, kind, storage, mode) for spelling in SPELLINGS]
            if set(cells) != {"-"}:
                rows.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return [*head, *rows, ""] if rows else []


INTRODUCTION = """# LoRA formats

Every base model, key format, adapter and storage of the base that Load PCM LoRA was tried on, on the tiny models of the
tests. A figure is the largest difference from the weight that PEFT's, LyCORIS' and torch's formulas give, as a share
of the largest value of the update. `merge` is the host's own patching of what the weight means; `bypass` is what a
quantised weight gets while it is sampled. `-`: the tests have no such model, or the shapes no such adapter.
Written by `python -m devtools.generate.formats`.
"""


def page(matrix: Matrix, models: dict[str, str] = MODELS, storages: tuple[str, ...] = STORAGE) -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for storage in storages:
        for mode in MODES:
            lines += table(matrix, storage, mode, models)
    if matrix.sentences:
        lines += ["## Refused", "", *(f"{number}. {text}" for text, number in matrix.sentences.items())]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    OUT.write_text(page(Matrix(Path(os.environ["COMFYUI_PATH"]).resolve())), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
