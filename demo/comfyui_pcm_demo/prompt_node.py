"""Demo Prompt and Demo Video Prompt: turn a typed prompt of the demo world into CONDITIONING."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from comfy_api.latest import ComfyExtension, io


def load_world(module_name: str = "world") -> ModuleType:
    """A module of ``demo/``, found beside the real path of this pack, which is linked into ``custom_nodes``."""
    name = f"{__name__}.{module_name}"
    if name not in sys.modules:
        path = Path(__file__).resolve().parent.parent / f"{module_name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"Cannot load {path}. Link demo/comfyui_pcm_demo into custom_nodes; do not copy it.")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look up their module by name
        spec.loader.exec_module(module)
    return sys.modules[name]


class PCMDemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMDemoPrompt",
            display_name="Demo Prompt",
            category="PCM/demo",
            description='Conditioning for the demo model, which knows sentences like "a red circle on blue".',
            inputs=[
                io.String.Input(
                    "text",
                    default="a red circle on blue",
                    tooltip="A colour (red, green, blue, yellow, purple, orange) and a shape (circle, square, "
                    "triangle, cross) on a background (white, black, gray, blue, green, pink). Empty: unconditional.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="Three tokens and their pooled mean, for the demo model only.")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        world = load_world()
        context, pooled = world.embed([world.parse_prompt(text)])
        return io.NodeOutput([[context, {"pooled_output": pooled}]])


class PCMDemoVideoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMDemoVideoPrompt",
            display_name="Demo Video Prompt",
            category="PCM/demo",
            description='Conditioning for the demo video model, which knows sentences like "a red circle moving left".',
            inputs=[
                io.String.Input(
                    "text",
                    default="a red circle moving left",
                    tooltip="A colour (red, green, blue, yellow, purple, orange), a shape (circle, square, triangle) "
                    "and where it goes (left, right, up, down, still). Empty: unconditional.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="Three tokens, for the demo video model only.")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        load_world()  # imported by video_world
        world = load_world("video_world")
        return io.NodeOutput([[world.embed_video([world.parse_video_prompt(text)]), {}]])


class DemoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [PCMDemoPrompt, PCMDemoVideoPrompt]
