"""Workflows that sample a few-step file as its authors say, built node by node for many loaders and samplers.

The settings are typed here from the authors' pages, not read from the table of methods: what the check calls right is
held against this.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Prompt = dict[str, dict[str, Any]]

# class: (inputs by link with their types, widgets in order, output types)
CLASSES: dict[str, tuple[dict[str, str], list[str], list[str]]] = {
    "UNETLoader": ({}, ["unet_name", "weight_dtype"], ["MODEL"]),
    "UnetLoaderGGUF": ({}, ["unet_name"], ["MODEL"]),
    "CheckpointLoaderSimple": ({}, ["ckpt_name"], ["MODEL", "CLIP", "VAE"]),
    "LoraLoaderModelOnly": ({"model": "MODEL"}, ["lora_name", "strength_model"], ["MODEL"]),
    "LoraLoader": (
        {"model": "MODEL", "clip": "CLIP"}, ["lora_name", "strength_model", "strength_clip"], ["MODEL", "CLIP"],
    ),
    "LoraLoader|pysssh": (
        {"model": "MODEL", "clip": "CLIP"}, ["lora_name", "strength_model", "strength_clip"], ["MODEL", "CLIP"],
    ),
    "Power Lora Loader (rgthree)": ({"model": "MODEL", "clip": "CLIP"}, ["lora_1"], ["MODEL", "CLIP"]),
    "CR LoRA Stack": ({}, ["switch_1", "lora_name_1", "model_weight_1", "clip_weight_1"], ["LORA_STACK"]),
    "CR Apply LoRA Stack": (
        {"model": "MODEL", "clip": "CLIP", "lora_stack": "LORA_STACK"}, [], ["MODEL", "CLIP", "LORA_STACK"],
    ),
    "PCMLoraLoader": ({"model": "MODEL"}, ["lora_name", "strength", "allow_partial"], ["MODEL", "STRING"]),
    "ModelSamplingSD3": ({"model": "MODEL"}, ["shift"], ["MODEL"]),
    "ModelSamplingAuraFlow": ({"model": "MODEL"}, ["shift"], ["MODEL"]),
    "CFGZeroStar": ({"model": "MODEL"}, [], ["MODEL"]),
    "CLIPTextEncode": ({"clip": "CLIP"}, ["text"], ["CONDITIONING"]),
    "CLIPLoader": ({}, ["clip_name", "type", "device"], ["CLIP"]),
    "EmptyLatentImage": ({}, ["width", "height", "batch_size"], ["LATENT"]),
    "KSampler": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"], ["LATENT"],
    ),
    "KSampler (Efficient)": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "preview_method"], ["MODEL", "LATENT"],
    ),
    "KSamplerAdvanced": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ["add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
         "return_with_leftover_noise"], ["LATENT"],
    ),
    "PCMSampler": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ["seed", "steps", "cfg", "denoise", "phases", "spacing", "terminal", "grid", "spend_extra_steps", "determinism",
         "gamma", "add_noise", "start_step", "end_step", "return_with_leftover_noise"], ["LATENT", "LATENT"],
    ),
    "KSamplerSelect": ({}, ["sampler_name"], ["SAMPLER"]),
    "BasicScheduler": ({"model": "MODEL"}, ["scheduler", "steps", "denoise"], ["SIGMAS"]),
    "CFGGuider": ({"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING"}, ["cfg"], ["GUIDER"]),
    "RandomNoise": ({}, ["noise_seed"], ["NOISE"]),
    "SamplerCustom": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "sampler": "SAMPLER",
         "sigmas": "SIGMAS", "latent_image": "LATENT"}, ["add_noise", "noise_seed", "cfg"], ["LATENT", "LATENT"],
    ),
    "SamplerCustomAdvanced": (
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"}, [],
        ["LATENT", "LATENT"],
    ),
    "PrimitiveInt": ({}, ["value"], ["INT"]),
    "SaveLatent": ({"samples": "LATENT"}, ["filename_prefix"], []),
}  # fmt: skip


@dataclass(frozen=True)
class Right:
    """How a file is sampled. ``shift`` is what a node sets; ``None`` leaves the model's own."""

    file: str
    base: str
    steps: int
    cfg: float = 1.0
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: float | None = None
    patch: str = "ModelSamplingSD3"
    strength: float = 1.0
    lora: bool = True


# SDXL, SD 1.5, SD3, Flux, Qwen-Image, Wan: from the cards linked in pcm_core/profiles.
RIGHT = [
    Right("pcm_sdxl_smallcfg_4step_converted.safetensors", "sd_xl_base_1.0.safetensors", 4, cfg=1.0),
    Right("pcm_sdxl_normalcfg_8step_converted.safetensors", "sd_xl_base_1.0.safetensors", 8, cfg=4.0),
    Right("pcm_sd15_smallcfg_8step_converted.safetensors", "v1-5-pruned-emaonly.safetensors", 8),
    Right("Hyper-SDXL-8steps-lora.safetensors", "juggernautXL.safetensors", 8),
    Right("sdxl_lightning_4step_lora.safetensors", "sd_xl_base_1.0.safetensors", 4),
    Right("sdxl_lightning_8step_lora.safetensors", "sd_xl_base_1.0.safetensors", 8),
    Right("dmd2_sdxl_4step_lora_fp16.safetensors", "sd_xl_base_1.0.safetensors", 4, sampler="lcm"),
    Right("Hyper-SD3-8steps-CFG-lora.safetensors", "sd3_medium.safetensors", 8, cfg=5.0, shift=3.0, strength=0.125),
    Right("Hyper-FLUX.1-dev-8steps-lora.safetensors", "flux1-dev.safetensors", 8, strength=0.125),
    Right("FLUX.1-Turbo-Alpha.safetensors", "flux1-dev.safetensors", 8),
    Right("TDD-FLUX.1-dev-lora-beta.safetensors", "flux1-dev.safetensors", 8, strength=0.125),
    Right("Qwen-Image-Lightning-4steps-V1.0.safetensors", "qwen_image_fp8_e4m3fn.safetensors", 4, shift=3.0,
          patch="ModelSamplingAuraFlow"),
    Right("Qwen-Image-Lightning-8steps-V2.0.safetensors", "qwen_image_fp8_e4m3fn.safetensors", 8, shift=3.0,
          patch="ModelSamplingAuraFlow"),
    Right("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors", "wan2.1_t2v_14B_fp16.safetensors", 4,
          shift=5.0),
    Right("Wan21_AccVid_T2V_14B_lora_rank32_fp16.safetensors", "wan2.1_t2v_14B_fp16.safetensors", 10, shift=5.0),
    Right("z_image_turbo_bf16.safetensors", "", 8, lora=False),
    Right("flux1-schnell.safetensors", "", 4, lora=False),
    Right("krea2_turbo_fp8_scaled.safetensors", "", 8, lora=False),
]  # fmt: skip
HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
HIGH_LORA = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
LOW_LORA = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors"
LORA_LOADERS = (
    "LoraLoaderModelOnly", "LoraLoader", "LoraLoader|pysssh", "Power Lora Loader (rgthree)", "CR LoRA Stack",
)  # fmt: skip
SAMPLERS = ("KSampler", "KSampler (Efficient)", "SamplerCustom", "SamplerCustomAdvanced")


class Builder:
    """Nodes of a prompt, by what they are for."""

    def __init__(self) -> None:
        self.prompt: Prompt = {}

    def add(self, kind: str, **inputs: Any) -> list[Any]:
        """A node; gives its first output."""
        name = str(len(self.prompt) + 3)
        self.prompt[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
        return [name, 0]

    def text(self, words: str, clip: list[Any]) -> list[Any]:
        return self.add("CLIPTextEncode", clip=clip, text=words)

    def lora(self, loader: str, model: list[Any], clip: list[Any], file: str, strength: float) -> list[Any]:
        if loader == "LoraLoaderModelOnly":
            return self.add(loader, model=model, lora_name=file, strength_model=strength)
        if loader == "Power Lora Loader (rgthree)":
            return self.add(loader, model=model, clip=clip, lora_1={"on": True, "lora": file, "strength": strength})
        if loader == "CR LoRA Stack":
            stack = self.add(loader, switch_1="On", lora_name_1=file, model_weight_1=strength, clip_weight_1=1.0)
            return self.add("CR Apply LoRA Stack", model=model, clip=clip, lora_stack=stack)
        return self.add(loader, model=model, clip=clip, lora_name=file, strength_model=strength, strength_clip=1.0)

    def sample(self, sampler: str, model: list[Any], right: Right, clip: list[Any]) -> list[Any]:
        words = {"positive": self.text("a fox", clip), "negative": self.text("blurry", clip)}
        latent = self.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
        if sampler.startswith("KSampler"):
            extra = {"preview_method": "auto"} if "Efficient" in sampler else {}
            return self.add(
                sampler, model=model, **words, latent_image=latent, seed=7, steps=right.steps, cfg=right.cfg,
                sampler_name=right.sampler, scheduler=right.scheduler, denoise=1.0, **extra,
            )  # fmt: skip
        made = self.add("BasicScheduler", model=model, scheduler=right.scheduler, steps=right.steps, denoise=1.0)
        chosen = self.add("KSamplerSelect", sampler_name=right.sampler)
        if sampler == "SamplerCustom":
            return self.add(
                sampler, model=model, **words, sampler=chosen, sigmas=made, latent_image=latent, add_noise=True,
                noise_seed=7, cfg=right.cfg,
            )  # fmt: skip
        guider = self.add("CFGGuider", model=model, **words, cfg=right.cfg)
        noise = self.add("RandomNoise", noise_seed=7)
        return self.add(sampler, noise=noise, guider=guider, sampler=chosen, sigmas=made, latent_image=latent)


def build(right: Right, loader: str = "LoraLoaderModelOnly", sampler: str = "KSampler") -> Prompt:
    """One file, one sampler."""
    builder = Builder()
    clip = builder.add("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion", device="default")
    base = right.base if right.lora else right.file
    kind = "UnetLoaderGGUF" if base.endswith(".gguf") else "UNETLoader"
    extra = {} if kind == "UnetLoaderGGUF" else {"weight_dtype": "default"}
    model = builder.add(kind, unet_name=base, **extra)
    if right.lora:
        model = builder.lora(loader, model, clip, right.file, right.strength)
    if right.shift is not None:
        model = builder.add(right.patch, model=model, shift=right.shift)
    model = builder.add("CFGZeroStar", model=model)
    builder.add("SaveLatent", samples=builder.sample(sampler, model, right, clip), filename_prefix="x")
    return builder.prompt


def build_pair(loader: str = "LoraLoaderModelOnly") -> Prompt:
    """Wan 2.2: two experts, two steps each."""
    builder = Builder()
    clip = builder.add("CLIPLoader", clip_name="umt5_xxl.safetensors", type="wan", device="default")
    words = {"positive": builder.text("a fox", clip), "negative": builder.text("blurry", clip)}
    latent = builder.add("EmptyLatentImage", width=832, height=480, batch_size=1)
    for base, lora, first in ((HIGH, HIGH_LORA, True), (LOW, LOW_LORA, False)):
        model = builder.add("UNETLoader", unet_name=base, weight_dtype="default")
        model = builder.lora(loader, model, clip, lora, 1.0)
        model = builder.add("ModelSamplingSD3", model=model, shift=5.0)
        latent = builder.add(
            "KSamplerAdvanced", model=model, **words, latent_image=latent, noise_seed=7, steps=4, cfg=1.0,
            add_noise="enable" if first else "disable", sampler_name="euler", scheduler="simple",
            start_at_step=0 if first else 2, end_at_step=2 if first else 4,
            return_with_leftover_noise="enable" if first else "disable",
        )  # fmt: skip
    builder.add("SaveLatent", samples=latent, filename_prefix="x")
    return builder.prompt


def as_ui(prompt: Mapping[str, Any], *, primitive: bool = False) -> dict[str, Any]:
    """The UI form of a prompt, with reroutes on the way of the model; ``primitive`` feeds steps from a node."""
    prompt = copy.deepcopy(dict(prompt))
    if primitive:
        for name in [name for name, node in prompt.items() if "steps" in node["inputs"]]:
            made = str(max(int(key) for key in prompt) + 1)
            prompt[made] = {"class_type": "PrimitiveInt", "inputs": {"value": prompt[name]["inputs"]["steps"]}}
            prompt[name]["inputs"]["steps"] = [made, 0]
    nodes: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    for name, node in prompt.items():
        sockets, widgets, outputs = CLASSES[node["class_type"]]
        given = node["inputs"]
        slots = [{"name": key, "type": kind, "link": None} for key, kind in sockets.items()]
        slots += [
            {"name": key, "type": "INT", "link": None, "widget": {"name": key}}
            for key in widgets if isinstance(given.get(key), list)
        ]  # fmt: skip
        values: list[Any] = []
        for key in widgets:
            values.append(20 if isinstance(given[key], list) else given[key])
            if key in ("seed", "noise_seed"):
                values.append("randomize")
        nodes.append({
            "id": int(name), "type": node["class_type"], "pos": [300 * int(name), 100], "size": [200, 100], "mode": 0,
            "order": int(name), "flags": {}, "properties": {}, "inputs": slots, "widgets_values": values,
            "outputs": [{"name": kind, "type": kind, "links": []} for kind in outputs],
        })  # fmt: skip
    by_id = {node["id"]: node for node in nodes}
    for name, node in prompt.items():
        for slot, entry in enumerate(by_id[int(name)]["inputs"]):
            source = node["inputs"].get(entry["name"])
            if source is None:
                continue
            link = [len(links) + 1, int(source[0]), source[1], int(name), slot, entry["type"]]
            links.append(link)
            entry["link"] = link[0]
            by_id[link[1]]["outputs"][link[2]]["links"].append(link[0])
    last = max(by_id)
    return {"version": 0.4, "last_node_id": last, "last_link_id": len(links), "nodes": nodes, "links": links,
            "groups": [], "extra": {}, "config": {}}  # fmt: skip


def right(file: str, **changes: Any) -> Right:
    """The entry of ``RIGHT`` for a file, with changes."""
    return replace(next(entry for entry in RIGHT if entry.file.startswith(file)), **changes)
