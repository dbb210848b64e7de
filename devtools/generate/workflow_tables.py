"""The content of each shipped workflow: its files, its nodes from left to right, and its note."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .workflow_builder import Graph
from .workflow_files import (
    CANNY,
    CLIP_L,
    FAST_HUNYUAN,
    HUNYUAN_VAE,
    LLAVA,
    SD3,
    SD3_LORA,
    SD15,
    SD15_NORMAL,
    SD15_SMALL,
    SDXL,
    SDXL_HYPER,
    SDXL_LCM_LIKE,
    SDXL_LIGHTNING,
    SDXL_NORMAL,
    SDXL_SMALL,
    UMT5,
    WAN_HIGH,
    WAN_LORA_HIGH,
    WAN_LORA_LOW,
    WAN_LOW,
    WAN_VAE,
)
from .workflow_parts import load_lora, note, prompts, report, sample, save, video

_LORA_SETS = "With **auto** and **0** the LoRA decides. Its report says what was found."


def sd15_text_to_image(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SD15)
    latent = g.add("EmptyLatentImage", 0, width=512, height=512)
    small = load_lora(g, 1, base[0], SD15_SMALL, "Load smallcfg")
    normal = load_lora(g, 1, base[0], SD15_NORMAL, "Load normalcfg")
    texts = prompts(g, 1, base[1])
    for model, name in ((small, "smallcfg"), (normal, "normalcfg")):
        result = sample(g, 2, model[0], texts, latent[0], f"PCM Sampler, {name}", seed=1)
        save(g, 3, result, base[2], model, f"sd15_{name}")
    note(g, "SD 1.5 in four steps, two kinds of LoRA", [
        "**lora_name**. smallcfg: cfg 1, four evaluations, no negative prompt. normalcfg: cfg 3, eight evaluations, "
        "with a negative prompt.",
        "**steps** 0 runs the phases of the LoRA. More than that costs time and does not help.",
        "**cfg** auto, or one value per phase: `3, 1, 1, 1` keeps the negative prompt where it counts.",
    ], _LORA_SETS)  # fmt: skip


def sdxl_text_to_image(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SDXL)
    latent = g.add("EmptyLatentImage", 0, width=1024, height=1024)
    model = load_lora(g, 1, base[0], SDXL_SMALL)
    texts = prompts(g, 1, base[1])
    result = sample(g, 2, model[0], texts, latent[0], seed=1)
    save(g, 3, result, base[2], model, "sdxl")
    note(g, "SDXL in four steps", [
        "**lora_name**. Pick the 2, 8 or 16 step file and the steps follow.",
        "**width, height** near a million pixels, as SDXL was trained.",
        "**cfg** auto. At 1 the negative prompt is not used and a step costs one evaluation, above 1 two.",
    ], _LORA_SETS)  # fmt: skip


def sdxl_image_to_image(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SDXL)
    picture = g.add("LoadImage", 0, image="example.png")
    model = load_lora(g, 1, base[0], SDXL_NORMAL)
    texts = prompts(g, 1, base[1])
    scaled = g.add("ImageScaleToTotalPixels", 1, wide=340, image=picture[0], upscale_method="lanczos",
                   resolution_steps=8)  # fmt: skip
    latent = g.add("VAEEncode", 2, wide=240, beside=scaled, pixels=scaled[0], vae=base[2])
    result = sample(g, 3, model[0], texts, latent[0], seed=1, denoise=0.6)
    save(g, 4, result, base[2], model, "sdxl_image_to_image")
    note(g, "SDXL image to image", [
        "**denoise**. Sampling starts inside a phase at that noise level and keeps every later edge: 0.6 runs 5 steps "
        "of an 8-phase LoRA. 0 returns the image unchanged.",
        "**lora_name**. More phases give finer choices of denoise; 8 is a good start.",
        "**cfg** auto is 4 here, with the negative prompt.",
    ], _LORA_SETS)  # fmt: skip


def sdxl_inpaint(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SDXL)
    picture = g.add("LoadImage", 0, title="Picture (right click: mask editor)", image="example.png")
    model = load_lora(g, 1, base[0], SDXL_NORMAL)
    texts = prompts(g, 1, base[1])
    grown = g.add("GrowMask", 1, wide=340, mask=picture[1], expand=8)
    latent = g.add("VAEEncode", 2, wide=280, beside=texts[0], pixels=picture[0], vae=base[2])
    shown = g.add("MaskToImage", 2, wide=280, beside=texts[1], mask=grown[0])
    soft = g.add("ImageBlur", 2, wide=280, image=shown[0], blur_radius=12, sigma=6.0)
    masked = g.add("SetLatentNoiseMask", 3, wide=280, beside=latent, samples=latent[0])
    mask = g.add("ImageToMask", 3, wide=280, beside=shown, image=soft[0], channel="red")
    masked.inputs["mask"] = mask[0]
    result = sample(g, 4, model[0], texts, masked[0], seed=1, denoise=0.9)
    pictures = g.add("VAEDecode", 5, samples=result[0], vae=base[2])
    report(g, 5, model)
    whole = g.add("ImageCompositeMasked", 6, wide=380, destination=picture[0], source=pictures[0], mask=mask[0])
    g.add("SaveImage", 6, wide=380, images=whole[0], filename_prefix="pcm/sdxl_inpaint")
    note(g, "SDXL inpaint", [
        "**Mask**. Right-click the image, Open in MaskEditor. It is grown by 8 pixels and blurred, so that the seam "
        "does not show.",
        "**denoise** 0.9 keeps some of what was there; 1 ignores it.",
        "**lora_name**. 8 phases: with 2, the surroundings have too little influence.",
    ], "Outside the mask the pixels of your image do not change.")  # fmt: skip


def sdxl_controlnet(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SDXL)
    net = g.add("ControlNetLoader", 0, control_net_name=CANNY)
    latent = g.add("EmptyLatentImage", 0, width=1024, height=1024)
    picture = g.add("LoadImage", 0, image="example.png")
    model = load_lora(g, 1, base[0], SDXL_NORMAL)
    texts = prompts(g, 1, base[1])
    edges = g.add("Canny", 1, wide=340, image=picture[0])
    guided = g.add(
        "ControlNetApplyAdvanced", 2, positive=texts[0][0], negative=texts[1][0], control_net=net[0], image=edges[0],
        strength=0.7, end_percent=0.8, vae=base[2],
    )  # fmt: skip
    g.add("PreviewImage", 2, beside=texts[1], images=edges[0])
    first = g.add(
        "PCMSampler", 3, title="First pass", model=model[0], positive=guided[0], negative=guided[1],
        latent_image=latent[0], seed=1,
    )  # fmt: skip
    larger = g.add("LatentUpscaleBy", 3, samples=first[0], upscale_method="bislerp", scale_by=1.5)
    second = sample(g, 4, model[0], texts, larger[0], "Second pass", seed=2, denoise=0.5)
    pictures = g.add("VAEDecode", 5, beside=second, samples=second[0], vae=base[2])
    report(g, 5, model)
    g.add("PCMSaveImage", 6, title="Save, with what ran", wide=340, beside=second, images=pictures[0], info=second[2],
          filename_prefix="pcm/sdxl_controlnet")  # fmt: skip
    note(g, "SDXL with ControlNet and a second pass", [
        "**strength, end_percent** of the ControlNet: 0.7 until 0.8, so that the last phases are free.",
        "**denoise** of the second pass: 0.5 runs the last four of eight phases.",
        "**scale_by** 1.5. The second pass sharpens what scaling blurred, without the ControlNet.",
    ], "Both passes use one LoRA and its settings. The image is saved with what the second pass ran.")  # fmt: skip


def sd3_text_to_image(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SD3)
    latent = g.add("EmptySD3LatentImage", 0, width=1024, height=1024)
    model = load_lora(g, 1, base[0], SD3_LORA)
    texts = prompts(g, 1, base[1], negative="")
    result = sample(g, 2, model[0], texts, latent[0], seed=1)
    save(g, 3, result, base[2], model, "sd3")
    note(g, "SD3 in four steps", [
        "**lora_name**. The name says the shift it was trained with, and the model is set to that: shift 3 here.",
        "**cfg** auto is 1.2, as the authors test it. 1 is faster and softer.",
        "**strength** 1. A LoRA without alpha keys, trained with the authors' script, is scaled as they intend.",
    ], "The checkpoint is behind a licence page: log in there to download it.")  # fmt: skip


def other_loaders(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SDXL)
    latent = g.add("EmptyLatentImage", 0, width=1024, height=1024)
    lora = g.add("LoraLoaderModelOnly", 1, wide=340, title="Any LoRA loader", model=base[0], lora_name=SDXL_LIGHTNING)
    model = g.add("PCMSettings", 1, wide=340, model=lora[0], file_name=SDXL_LIGHTNING.name)
    texts = prompts(g, 1, base[1])
    result = sample(g, 2, model[0], texts, latent[0], seed=1)
    pictures = g.add("VAEDecode", 3, beside=result, samples=result[0], vae=base[2])
    g.add("SaveImage", 4, wide=340, beside=result, images=pictures[0], filename_prefix="pcm/other_loaders")
    note(g, "A few-step LoRA in a loader of another pack", [
        "**file_name** of PCM Settings: the LoRA that the other loader applies. Or choose the **method**.",
        "**The strength** is the other loader's business; the node says so where the method wants another than 1.",
        "**The loader** may be any: a stack, a LoRA manager, Power Lora Loader, hooks, Nunchaku.",
    ], "Load PCM LoRA does both in one, and reads key formats that others leave out.")  # fmt: skip


def building_blocks(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SD15)
    latent = g.add("EmptyLatentImage", 0, width=512, height=512)
    noise = g.add("RandomNoise", 0, noise_seed=1)
    model = load_lora(g, 1, base[0], SD15_NORMAL)
    texts = prompts(g, 1, base[1])
    guider = g.add(
        "PCMGuider", 2, model=model[0], positive=texts[0][0], negative=texts[1][0], cfg="3, 1, 1, 1", title="PCM Guider"
    )
    sampler = g.add("SamplerPCM", 2)
    sigmas = g.add("PCMPhaseScheduler", 2, model=model[0])
    result = g.add(
        "SamplerCustomAdvanced", 3, noise=noise[0], guider=guider[0], sampler=sampler[0], sigmas=sigmas[0],
        latent_image=latent[0],
    )  # fmt: skip
    save(g, 4, result, base[2], model, "blocks")
    plot = g.add("PCMPhasePlot", 3, model=model[0], sigmas=sigmas[0], cfg="3, 1, 1, 1")
    g.add("PreviewImage", 5, title="The phases", wide=380, images=plot[0])
    note(g, "The parts of the PCM Sampler", [
        "**cfg** of the PCM Guider: one value per phase. `3, 1, 1, 1` uses the negative prompt in the noisiest phase "
        "only and costs five evaluations.",
        "**SIGMAS** can be split with SplitSigmas and continued with another sampler; each part reads the model.",
        "**spacing** (advanced): trailing, aligned or tcd. The plot shows where the steps lie.",
    ], "For your own graphs with SamplerCustomAdvanced. Otherwise use the PCM Sampler.")  # fmt: skip


def compare_steps(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SD15)
    latent = g.add("EmptyLatentImage", 0, width=512, height=512)
    model = load_lora(g, 1, base[0], SD15_SMALL)
    texts = prompts(g, 1, base[1])
    second = g.add("CLIPTextEncode", 1, title="Second prompt", wide=340, clip=base[1],
                   text="a lighthouse on a cliff, storm, oil painting")  # fmt: skip
    inputs: dict[str, Any] = {"models.model_b": base[0], "prompts.positive_2": second[0]}
    sheet = g.add(
        "PCMCompare", 2, wide=380, model=model[0], positive=texts[0][0], negative=texts[1][0], latent_image=latent[0],
        vae=base[2], seed=1, columns="1, 2, 4\nb: euler/simple@4 cfg 7\nb: euler/simple@25 cfg 7 = teacher",
        row_labels="fox\nlighthouse", **inputs,
    )  # fmt: skip
    g.add("SaveImage", 3, wide=640, images=sheet[0], filename_prefix="pcm/compare")
    g.add("PreviewAny", 3, title="Likeness to the last column", wide=640, source=sheet[1])
    note(g, "Compare", [
        "**columns**. A step count, `auto`, or `sampler/scheduler@steps`. `b:` in front takes the model on model_b, "
        "`cfg 7` and `= name` may follow.",
        "**models** takes up to seven: other LoRAs (LCM, TCD, Turbo, Lightning) or none. **prompts** and **seeds** "
        "make rows.",
        "**The last column** is the reference that the others are measured against. Connect a CLIP vision model for "
        "the measure of the PCM paper.",
    ])  # fmt: skip


def compare_systems(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SDXL)
    latent = g.add("EmptyLatentImage", 0, width=1024, height=1024)
    texts = prompts(g, 0, base[1])
    pcm = load_lora(g, 1, base[0], SDXL_SMALL, "PCM")
    others = [
        load_lora(g, 1, base[0], file, name)
        for file, name in ((SDXL_LCM_LIKE, "LCM"), (SDXL_HYPER, "Hyper-SD"), (SDXL_LIGHTNING, "Lightning"))
    ]
    inputs: dict[str, Any] = {f"models.model_{letter}": model[0] for letter, model in zip("bcd", others, strict=True)}
    inputs["models.model_e"] = base[0]
    sheet = g.add(
        "PCMCompare", 2, wide=400, model=pcm[0], positive=texts[0][0], negative=texts[1][0], latent_image=latent[0],
        vae=base[2], seed=1, seeds=2, **inputs,
        columns="auto = PCM\nb: lcm/sgm_uniform@4 = LCM\nc: auto = Hyper-SD\nd: auto = Lightning\n"
        "e: ddim/ddim_uniform@8 cfg 7 = DDIM at 8\ne: dpmpp_2m/karras@25 cfg 7 = DPM++ at 25",
    )  # fmt: skip
    g.add("SaveImage", 3, wide=760, images=sheet[0], filename_prefix="pcm/systems")
    g.add("PreviewAny", 3, title="Likeness to the last column", wide=760, source=sheet[1])
    note(g, "PCM beside LCM, Hyper-SD, Lightning, DDIM and DPM++", [
        "**columns**. `auto` samples a LoRA as its authors do: Load PCM LoRA knows them. `sampler/scheduler@steps` "
        "takes a stock sampler.",
        "**models**. A TCD or LCM LoRA, or the MODEL of an SDXL-Turbo checkpoint, goes on model_f, with a line "
        "`f: auto` or `f: euler_ancestral/sgm_uniform@1`.",
        "**seeds** 2 makes two rows. Columns that look alike on every seed are the consistent ones.",
    ], "All LoRAs share one base model in memory.")  # fmt: skip


def fast_hunyuan(g: Graph) -> None:
    model = g.add("UNETLoader", 0, unet_name=FAST_HUNYUAN)
    clip = g.add("DualCLIPLoader", 0, clip_name1=CLIP_L, clip_name2=LLAVA, type="hunyuan_video")
    vae = g.add("VAELoader", 0, vae_name=HUNYUAN_VAE)
    texts = prompts(g, 1, clip[0], "a red fox runs through deep snow, the camera follows", "")
    latent = g.add("EmptyHunyuanLatentVideo", 1, wide=340, width=848, height=480, length=49)
    video(g, 2, model[0], texts, latent[0], vae[0], "hunyuan", preset="FastHunyuan")
    note(g, "HunyuanVideo in six steps (FastHunyuan)", [
        "**preset** FastHunyuan: six steps, shift 17, embedded guidance 6, cfg 1. The checkpoint has the distilled "
        "weights merged in, so there is no LoRA that sets these.",
        "**length** is a multiple of 4 plus 1. 125 frames of 1280 x 720 is what it was trained for.",
        "**embedded_guidance** (advanced) above 6 makes faster motion.",
    ])  # fmt: skip


def wan_two_experts(g: Graph) -> None:
    experts = []
    for weights, lora, name in ((WAN_HIGH, WAN_LORA_HIGH, "high noise"), (WAN_LOW, WAN_LORA_LOW, "low noise")):
        model = g.add("UNETLoader", 0, title=f"Expert for {name}", unet_name=weights)
        experts.append(load_lora(g, 1, model[0], lora, f"LoRA for {name}"))
        report(g, 1, experts[-1])
    clip = g.add("CLIPLoader", 0, clip_name=UMT5, type="wan")
    vae = g.add("VAELoader", 0, vae_name=WAN_VAE)
    texts = prompts(g, 2, clip[0], "a red fox runs through deep snow, the camera follows", "static, blurry")
    latent = g.add("EmptyHunyuanLatentVideo", 2, title="Empty video latent", width=640, height=640, length=81)
    video(g, 3, experts[0][0], texts, latent[0], vae[0], "wan", second_model=experts[1][0])
    note(g, "Wan 2.2 with two experts, four steps", [
        "**second_model** is the low noise expert, with its own LoRA. Both get the same shift.",
        "**boundary** 875 is moved to the nearest phase edge; the report says where the experts change.",
        "**length** is a multiple of 4 plus 1. 81 frames is five seconds at 16 per second.",
    ])  # fmt: skip


def animatediff_style(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SD15)
    model = load_lora(g, 1, base[0], SD15_SMALL)
    texts = prompts(g, 1, base[1])
    latent = g.add("EmptyLatentImage", 0, title="16 frames", width=512, height=512, batch_size=16)
    video(g, 2, model[0], texts, latent[0], base[2], "animatediff", frame_noise="mixed", frame_correlation=0.5)
    note(g, "AnimateDiff-style video", [
        "**Motion module**. ComfyUI has none of its own: put the loader of AnimateDiff-Evolved between the checkpoint "
        "and Load PCM LoRA. Without it the frames are independent images.",
        "**batch_size** counts the frames.",
        "**frame_noise, frame_correlation** (advanced): how much of the noise the frames share. 0 is independent.",
    ], "Motion modules for the linear beta schedule do not fit a LoRA that was trained with SD's own; the report "
       "says so.")  # fmt: skip


def distil_your_own(g: Graph) -> None:
    base = g.add("CheckpointLoaderSimple", 0, ckpt_name=SD15)
    folder = g.add("LoadImageTextDataSetFromFolder", 0, folder="my_pictures")
    empty = g.add("CLIPTextEncode", 1, title="Empty text", wide=340, clip=base[1], text="")
    data = g.add("MakeTrainingDataset", 1, images=folder[0], vae=base[2], clip=base[1], texts=folder[1])
    trained = g.add(
        "PCMDistillLora", 2, wide=380, model=base[0], latents=data[0], positive=data[1], negative=empty[0], steps=1000
    )
    g.add("PCMSaveLora", 3, lora=trained[0], prefix="pcm/my_lora")
    g.add("LossGraphNode", 3, loss=trained[1], filename_prefix="pcm/loss")
    note(g, "Distil your own LoRA", [
        "**folder**. Put pictures of 512 x 512 and a `.txt` with the caption of each into a folder in `input`. "
        "Pick it. A few hundred will do to begin with: the teacher is the model itself.",
        "**phases** is the number of steps you will sample in.",
        "**steps, batch_size**. 1000 steps show whether it works; the authors train for 5000 and more at batch 160.",
    ], "Cancel at any time: what was trained so far is saved. Load PCM LoRA finds the file after a refresh (R) and "
       "configures itself.")  # fmt: skip


# File stem, which is also the displayed title, and the function that builds the graph.
WORKFLOWS: dict[str, Callable[[Graph], None]] = {
    "SD1.5 text to image": sd15_text_to_image,
    "SDXL text to image": sdxl_text_to_image,
    "SDXL image to image": sdxl_image_to_image,
    "SDXL inpaint": sdxl_inpaint,
    "SDXL ControlNet and second pass": sdxl_controlnet,
    "SD3 text to image": sd3_text_to_image,
    "HunyuanVideo text to video": fast_hunyuan,
    "Wan 2.2 text to video": wan_two_experts,
    "AnimateDiff-style video": animatediff_style,
    "SDXL with other LoRA loaders": other_loaders,
    "Building blocks": building_blocks,
    "Compare steps": compare_steps,
    "Compare systems": compare_systems,
    "Distil your own": distil_your_own,
}
