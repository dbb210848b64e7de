"""PCM Save Image: a PNG whose parameters other programs read, for what Save Image can only write as JSON."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from .host.saved import save_pictures
from .sampling.record import with_prompts
from .validation import checked


class PCMSaveImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMSaveImage",
            display_name="PCM Save Image",
            category="PCM/image",
            description="Saves images with what ran as their parameters, the way A1111 writes it: LoRA managers, "
            "Civitai and prompt readers find steps, cfg, seed and LoRAs. The workflow is in the file too.",
            search_aliases=["phased consistency", "pcm", "save image", "metadata", "parameters", "a1111", "civitai",
                            "infotext", "lora manager"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The images to save."),
                io.String.Input("info", force_input=True, tooltip="What ran: the output info of PCM Sampler."),
                io.String.Input("filename_prefix", default="ComfyUI",
                                tooltip="Folder and beginning of the file name in the output folder, as in Save "
                                "Image."),
                io.String.Input("positive_text", force_input=True, optional=True,
                                tooltip="The prompt as text, to be written before the parameters."),
                io.String.Input("negative_text", force_input=True, optional=True,
                                tooltip="The negative prompt as text."),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, images: Tensor, info: str, filename_prefix: str, positive_text: str | None = None,
        negative_text: str | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        parameters = with_prompts(info, positive_text or "", negative_text or "")
        saved = save_pictures(images, filename_prefix, parameters, cls.hidden)
        return io.NodeOutput(
            ui=ui.SavedImages([ui.SavedResult(name, folder, io.FolderType.output) for name, folder in saved])
        )
