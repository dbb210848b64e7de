"""Distill PCM LoRA and Save PCM LoRA: make your own, inside ComfyUI."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..pcm_core.phases import MAX_COUNT
from .host import lora as host_lora
from .inputs import DTYPES, NONE
from .validation import checked

if TYPE_CHECKING:
    from .training.session import Outcome

_ALIASES = ["phased consistency", "pcm", "distill", "distillation", "train lora", "few step", "consistency"]
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")


class PCMDistillLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMDistillLora",
            display_name="Distill PCM LoRA",
            category="PCM/training",
            description="Trains a LoRA that lets this model sample in as many steps as the LoRA has phases. The model "
            "is its own teacher: one copy in memory. Cancel at any time: the LoRA trained so far is saved.",
            search_aliases=_ALIASES,
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The teacher, without a few-step LoRA. It does not change."),
                io.Latent.Input("latents", optional=True, tooltip="Encoded images or clips from the dataset nodes: a "
                                "list, a batch or both, of any sizes. Without them the model generates its own from "
                                "positive."),
                io.Conditioning.Input("positive", tooltip="One caption per latent, or one for all."),
                io.Conditioning.Input("negative", optional=True, tooltip="The empty caption, for the teacher's "
                                      "guidance and for dropped captions."),
                io.Int.Input("phases", default=4, min=1, max=MAX_COUNT,
                             tooltip="Phases, and so sampling steps, of the LoRA. 2 to 8 is usual."),
                io.Int.Input("steps", default=1000, min=1, max=1_000_000,
                             tooltip="Optimizer steps. Each costs about four evaluations of the model."),
                io.Int.Input("batch_size", default=4, min=1, max=1024, tooltip="Latents per evaluation."),
                io.Int.Input("grad_accumulation", default=1, min=1, max=1024, advanced=True,
                             tooltip="Batches per optimizer step."),
                io.Float.Input("learning_rate", default=1e-4, min=1e-8, max=1.0, step=1e-8,
                               tooltip="Peak learning rate: a short warm-up before it, a cosine after it. 1e-4 for "
                               "large models and few steps; 5e-6 in the paper, for thousands of steps at batch 160."),
                io.Int.Input("rank", default=32, min=1, max=512, tooltip="Rank of the LoRA. 64 in the paper."),
                io.Float.Input("cfg_min", default=4.0, min=0.01, max=100.0, step=0.1,
                               tooltip="Lowest guidance of the teacher, ComfyUI's cfg. Set both to 1 to distil without "
                               "guidance: the LoRA can then be sampled with cfg, and needs 4 phases or more."),
                io.Float.Input("cfg_max", default=6.0, min=0.01, max=100.0, step=0.1,
                               tooltip="Highest guidance of the teacher. It is drawn for every sample."),
                io.Float.Input("caption_dropout", default=0.0, min=0.0, max=0.99, step=0.01, advanced=True,
                               tooltip="Fraction of captions replaced by the negative. Use 0.1 with both cfg at 1."),
                io.Float.Input("adversarial", default=0.0, min=0.0, max=10.0, step=0.01, advanced=True,
                               tooltip="Weight of the adversarial consistency loss; 0.1 in the paper, 0 for none. "
                               "Costs two more evaluations per step."),
                io.Combo.Input("loss", options=["huber", "l2"], default="huber", advanced=True,
                               tooltip="Pseudo-Huber (official) or squared error."),
                io.Float.Input("ema", default=0.0, min=0.0, max=0.9999, step=0.0001, advanced=True,
                               tooltip="Decay of the moving average of the LoRA, which is then the result. 0: none."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="Seed of all random draws: the same seed trains the same LoRA."),
                io.Combo.Input("existing_lora", options=[NONE, *host_lora.lora_names()], default=NONE, advanced=True,
                               tooltip="Continue training this LoRA, with the same rank and targets."),
                io.String.Input("targets", default="", advanced=True,
                                tooltip="Parts of module names, separated by commas. Empty: every matrix."),
                io.Int.Input("solver_grid", default=0, min=0, max=1000, advanced=True,
                             tooltip="Number of points of the teacher's solver grid; must divide 1000. 0: the grid "
                             "whose phase edges are the timesteps that will be sampled."),
                io.Boolean.Input("gradient_checkpointing", default=False, advanced=True,
                                 tooltip="Less memory, about a third more time."),
                io.Combo.Input("compute", options=["model", "bf16"], default="model", advanced=True,
                               tooltip="model: the dtype of the loaded model. bf16: autocast. The LoRA is trained in "
                               "fp32 in both cases."),
                io.Int.Input("preview_every", default=100, min=0, max=1_000_000,
                             tooltip="Steps between preview grids. 0: none."),
                io.Combo.Input("fit_memory", options=["auto", "off", "stream"], default="auto", optional=True,
                               advanced=True, tooltip="auto: gradient checkpointing if the run does not fit, then "
                               "streaming of the weights. stream: the model may be larger than the device. off: only "
                               "the settings above. The memory plan is shown before the first step."),
                *(io.Int.Input(name, default=default, min=1, max=16384, optional=True, advanced=True,
                               tooltip=f"{what} of the training images that the model generates without latents.")
                  for name, default, what in (("width", 512, "Width"), ("height", 512, "Height"),
                                              ("length", 1, "Frames"))),
                io.Combo.Input("stage", options=["consistency", "matching", "both"], default="consistency",
                               optional=True, tooltip="consistency: the phased consistency loss. matching: continues "
                               "from existing_lora and matches its images to the teacher's; it uses the captions, not "
                               "the latents. both: one after the other."),
                io.Float.Input("matching_cfg", default=6.0, min=0.01, max=100.0, step=0.1, optional=True,
                               advanced=True, tooltip="Guidance of the matching stage, a little above the teacher's "
                               "own. Higher values give sharper but less varied images."),
                io.Int.Input("matching_steps", default=450, min=1, max=1_000_000, optional=True, advanced=True,
                             tooltip="Updates of the matching stage, after the same number (at most 600) of short "
                             "warm-up updates. Each costs about three updates of the consistency stage."),
                io.Combo.Input("adapter_dtype", options=["fp32", "bf16"], default="fp32", optional=True, advanced=True,
                               tooltip="fp32: the LoRA in training is on the device, 16 bytes per weight. bf16: a "
                               "rounded copy is, 2 bytes per weight; the fp32 values and the optimizer are in main "
                               "memory. The saved LoRA is fp32 in both cases."),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="The LoRA, for Save PCM LoRA or Load LoRA Model."),
                LossMap.Output(display_name="loss_map", tooltip="The loss of every step."),
                io.Int.Output(display_name="steps", tooltip="Number of trained steps."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, existing_lora: list[str | None], **_: Any) -> tuple[str, int, int] | None:
        # None: it comes by a link, whose value the host adds by itself.
        return None if existing_lora[0] in (None, NONE) else host_lora.file_state(existing_lora[0])

    @classmethod
    @checked
    def execute(cls, positive: list[Any], latents: list[Any] | None = None, negative: list[Any] | None = None,
                **settings: list[Any]) -> io.NodeOutput:  # fmt: skip
        from .training.from_widgets import distil  # the host starts without the trainer

        outcome = distil(positive, latents, negative, {name: value[0] for name, value in settings.items()})
        assert outcome.lora is not None
        logging.info("Distill PCM LoRA: %d steps, loss %.5g", len(outcome.losses), outcome.losses[-1])
        return io.NodeOutput(outcome.lora, {"loss": outcome.losses}, len(outcome.losses), ui=_show(cls, outcome))


def _show(cls: type[io.ComfyNode], outcome: Outcome) -> ui.PreviewImage:
    return ui.PreviewImage(_image(outcome.picture), cls=cls)


def _image(picture: Image.Image | None) -> torch.Tensor:
    assert picture is not None
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


class PCMSaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMSaveLora",
            display_name="Save PCM LoRA",
            category="PCM/training",
            description="Writes a distilled LoRA and its settings to output/loras, where Load PCM LoRA finds it and "
            "reads its settings.",
            search_aliases=[*_ALIASES, "save lora", "export lora"],
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="From Distill PCM LoRA. LoRAs of other trainers are saved without "
                                "settings."),
                io.String.Input("prefix", default="pcm/lora",
                                tooltip="Folder and beginning of the file name in output/loras."),
                io.Combo.Input("dtype", options=list(DTYPES), default="fp32", advanced=True,
                               tooltip="fp32 keeps full precision; fp16 halves the file size."),
            ],
            outputs=[
                io.Combo.Output(display_name="lora_name", tooltip="The file name, for Load PCM LoRA in the same "
                                                                  "graph."),
            ],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(cls, lora: dict[str, torch.Tensor], prefix: str, dtype: str) -> io.NodeOutput:
        from ..pcm_core.distill.file import write_lora
        from .host.training import new_lora_path

        path, name = new_lora_path(prefix)
        metadata = getattr(lora, "metadata", {})
        if not metadata:
            logging.warning("Save PCM LoRA: %s comes from another trainer; its settings are not known.", name)
        write_lora(path, lora, metadata or {"format": "pt"}, DTYPES[dtype])
        logging.info("Save PCM LoRA: wrote %s", name)
        return io.NodeOutput(name, ui=ui.PreviewText(f"loras/{name}"))
