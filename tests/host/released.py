"""Tiny stand-ins under the names of the released files, and workflows made small, for tests that run whole graphs."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import fill

from devtools.generate import workflow_files

FAMILIES = {
    workflow_files.SD15: "sd15", workflow_files.SDXL: "sdxl", workflow_files.SD3: "sd3",
    workflow_files.FAST_HUNYUAN: "hunyuan_video", workflow_files.WAN_HIGH: "wan", workflow_files.WAN_LOW: "wan",
    workflow_files.SD15_SMALL: "sd15", workflow_files.SD15_NORMAL: "sd15", workflow_files.SDXL_SMALL: "sdxl",
    workflow_files.SDXL_NORMAL: "sdxl", workflow_files.SDXL_LCM_LIKE: "sdxl", workflow_files.SDXL_HYPER: "sdxl",
    workflow_files.SDXL_LIGHTNING: "sdxl", workflow_files.SD3_LORA: "sd3", workflow_files.WAN_LORA_HIGH: "wan",
    workflow_files.WAN_LORA_LOW: "wan",
}  # fmt: skip
LORA_TARGETS = {
    "sd15": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "sdxl": "input_blocks.2.1.transformer_blocks.0.attn1.to_q",
    "sd3": "joint_blocks.0.x_block.attn.proj",
    "wan": "blocks.0.self_attn.q",
}


def checkpoint(path: Path, tiny, channels: int) -> None:
    """A checkpoint with a TAESD in it and no text encoder."""
    from comfy.taesd.taesd import TAESD

    state = {f"model.diffusion_model.{key}": value for key, value in load_file(tiny.path).items()}
    vae = fill(TAESD(latent_channels=channels)).state_dict()
    state |= {f"first_stage_model.{key}": value for key, value in vae.items()}
    save_file({key: value.half().contiguous() for key, value in state.items()}, path)


def lora(path: Path, tiny, family: str) -> None:
    target = f"diffusion_model.{LORA_TARGETS[family]}"
    rows, columns = tiny.model.model.state_dict()[f"{target}.weight"].shape[:2]
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            f"{target}.lora_down.weight": torch.randn(4, columns, generator=generator) * 0.05,
            f"{target}.lora_up.weight": torch.randn(rows, 4, generator=generator) * 0.05,
            f"{target}.alpha": torch.tensor(4.0),
        },
        path,
    )


def control_lora(path: Path) -> None:
    """Hint block, zero convolutions and the middle that the tiny base lacks; the rest is the base model's, as in the
    released control LoRAs.
    """
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    net = ControlNet(
        image_size=32, in_channels=4, hint_channels=3, model_channels=320, num_res_blocks=[3], channel_mult=[1],
        transformer_depth=[0, 2, 5], transformer_depth_middle=-2, context_dim=2048, adm_in_channels=2816,
        num_classes="sequential", use_spatial_transformer=True, use_linear_in_transformer=True, num_heads=-1,
        num_head_channels=64, legacy=False, use_checkpoint=False, device="cpu", dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    own = ("input_hint_block", "zero_convs", "middle_block")
    state = {key: value.half() for key, value in fill(net).state_dict().items() if key.startswith(own)}
    save_file({**state, "lora_controlnet": torch.tensor([])}, path)


def wan_vae(path: Path) -> None:
    """Eight channels wide; the host reads the width from the file."""
    import inspect

    from comfy.ldm.wan.vae import WanVAE

    options = {"image_channels": 3, "conv_out_channels": 3}
    known = inspect.signature(WanVAE.__init__).parameters
    vae = WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0, **{k: v for k, v in options.items() if k in known},
    )  # fmt: skip
    save_file({key: value.half().contiguous() for key, value in fill(vae).state_dict().items()}, path)


def make_files(host, zoo) -> Path:
    """Every file of the tables, in the folder its note names."""
    for model in workflow_files.all_models():
        path = host.base / "models" / model.directory / model.name
        path.parent.mkdir(parents=True, exist_ok=True)
        family = FAMILIES.get(model)
        if model.directory == "checkpoints":
            checkpoint(path, zoo[family], 16 if family == "sd3" else 4)
        elif model.directory == "loras":
            lora(path, zoo[family], family)
        elif model.directory == "diffusion_models":
            path.write_bytes(zoo[family].path.read_bytes())
        elif model.directory == "controlnet":
            control_lora(path)
        elif model.directory == "vae":
            wan_vae(path)
        else:
            save_file({"not": torch.zeros(1)}, path)  # a text encoder: only its name is looked at
    folder = host.base / "input" / "my_pictures"
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.linear_gradient("L").resize((64, 64))
    Image.merge("RGBA", [picture] * 4).save(host.base / "input" / "example.png")
    Image.merge("RGB", [picture] * 3).save(folder / "1.png")
    (folder / "1.txt").write_text("a gradient")
    return host.base


def text_nodes(zoo) -> dict[str, type]:
    """Nodes in place of the text encoder, which cannot be tiny."""

    class Text:
        RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "run", "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {"family": ("STRING", {}), "text": ("STRING", {})}}

        def run(self, family, text):
            return (zoo[family].cond(len(text)),)

    class Data(Text):
        RETURN_TYPES, OUTPUT_IS_LIST = ("LATENT", "CONDITIONING"), (True, True)

        def run(self, family, text):
            tiny = zoo[family]
            return [tiny.latent(seed=n) for n in range(2)], [tiny.cond(n) for n in range(2)]

    return {"TestText": Text, "TestData": Data}


def family_in(graph: dict) -> str:
    names = {model.name: family for model, family in FAMILIES.items()}
    found = {names[v] for node in graph.values() for v in node["inputs"].values() if isinstance(v, str) and v in names}
    (family,) = found
    return family


def shrunk(graph: dict) -> dict:
    """The workflow at a size for tests: everything the sizes do not touch stays as shipped."""
    family = family_in(graph)
    small = {"width": 64, "height": 64, "length": 9, "batch_size": 2, "megapixels": 0.01}
    for node in graph.values():
        inputs, kind = node["inputs"], node["class_type"]
        if kind in ("CLIPTextEncode", "MakeTrainingDataset"):
            node["class_type"] = "TestText" if kind == "CLIPTextEncode" else "TestData"
            node["inputs"] = {"family": family, "text": inputs.get("text", "") if kind == "CLIPTextEncode" else ""}
        elif kind.startswith("Empty") or kind == "ImageScaleToTotalPixels":
            node["inputs"] = {k: v if k == "batch_size" and v == 1 else small.get(k, v) for k, v in inputs.items()}
        elif kind == "PCMCompare":
            node["inputs"] = {**inputs, "seeds": 1, "columns": re.sub(r"@\d+", "@2", inputs["columns"])}
        elif kind == "PCMDistillLora":
            node["inputs"] = {**inputs, "steps": 2, "batch_size": 1, "rank": 2, "preview_every": 0}
    return graph
