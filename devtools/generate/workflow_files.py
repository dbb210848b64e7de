"""The released files that the shipped workflows name."""

from __future__ import annotations

from .workflow_builder import Model

_HF = "https://huggingface.co"
_PCM = f"{_HF}/wangfuyun/PCM_Weights/resolve/main"
_WAN = f"{_HF}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
_HUNYUAN = f"{_HF}/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files"


def _file(directory: str, url: str) -> Model:
    return Model(name=url.rsplit("/", 1)[1], directory=directory, url=url)


SD15 = _file(
    "checkpoints",
    f"{_HF}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
)
SDXL = _file("checkpoints", f"{_HF}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors")
SD3 = _file(
    "checkpoints",
    f"{_HF}/stabilityai/stable-diffusion-3-medium/resolve/main/sd3_medium_incl_clips_t5xxlfp8.safetensors",
)
CANNY = _file(
    "controlnet",
    f"{_HF}/stabilityai/control-lora/resolve/main/control-LoRAs-rank128/control-lora-canny-rank128.safetensors",
)
SD15_SMALL = _file("loras", f"{_PCM}/sd15/pcm_sd15_smallcfg_4step_converted.safetensors")
SD15_NORMAL = _file("loras", f"{_PCM}/sd15/pcm_sd15_normalcfg_4step_converted.safetensors")
SDXL_SMALL = _file("loras", f"{_PCM}/sdxl/pcm_sdxl_smallcfg_4step_converted.safetensors")
SDXL_NORMAL = _file("loras", f"{_PCM}/sdxl/pcm_sdxl_normalcfg_8step_converted.safetensors")
SDXL_LCM_LIKE = _file("loras", f"{_PCM}/sdxl/pcm_sdxl_lcmlike_lora_converted.safetensors")
SDXL_LIGHTNING = _file("loras", f"{_HF}/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step_lora.safetensors")
SDXL_HYPER = _file("loras", f"{_HF}/ByteDance/Hyper-SD/resolve/main/Hyper-SDXL-4steps-lora.safetensors")
SD3_LORA = _file("loras", f"{_PCM}/sd3/pcm_deterministic_4step_shift3.safetensors")
FAST_HUNYUAN = _file(
    "diffusion_models",
    f"{_HF}/Kijai/HunyuanVideo_comfy/resolve/main/hunyuan_video_FastVideo_720_fp8_e4m3fn.safetensors",
)
HUNYUAN_VAE = _file("vae", f"{_HUNYUAN}/vae/hunyuan_video_vae_bf16.safetensors")
LLAVA = _file("text_encoders", f"{_HUNYUAN}/text_encoders/llava_llama3_fp8_scaled.safetensors")
CLIP_L = _file("text_encoders", f"{_HF}/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors")
WAN_HIGH = _file("diffusion_models", f"{_WAN}/diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors")
WAN_LOW = _file("diffusion_models", f"{_WAN}/diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors")
WAN_LORA_HIGH = _file("loras", f"{_WAN}/loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors")
WAN_LORA_LOW = _file("loras", f"{_WAN}/loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors")
WAN_VAE = _file("vae", f"{_WAN}/vae/wan_2.1_vae.safetensors")
UMT5 = _file(
    "text_encoders",
    f"{_HF}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
)


def all_models() -> list[Model]:
    """Every file that a workflow names."""
    return sorted((m for m in globals().values() if isinstance(m, Model)), key=lambda model: model.name)
