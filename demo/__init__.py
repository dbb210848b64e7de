"""The demo world: a procedural picture language, a tiny teacher that ComfyUI loads, and PCM LoRAs for it."""
