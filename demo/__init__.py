"""The demo world: procedural images with prompts, a tiny teacher that ComfyUI loads, and PCM LoRAs for it."""
