"""PCM Compare: one seed, several ways to sample, side by side, with figures for how alike they are."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..pcm_core.errors import PCMError
from . import host, inputs
from .sampling.columns import parse_columns
from .sampling.comparison import Sampling, figures, fill_in, make_rows, report, sample_all, sheet
from .validation import checked

_MODELS = "bcdefgh"


class PCMCompare(io.ComfyNode):
    @classmethod
    @inputs.optional_after("seed")
    def define_schema(cls) -> io.Schema:
        more_models = io.Autogrow.TemplateNames(
            io.Model.Input("model", tooltip="Another model, with its own LoRA or none."),
            names=[f"model_{letter}" for letter in _MODELS],
            min=0,
        )
        more_prompts = io.Autogrow.TemplateNames(
            io.Conditioning.Input("positive", tooltip="Another prompt: more rows."),
            names=[f"positive_{number}" for number in range(2, 9)],
            min=0,
        )
        return io.Schema(
            node_id="PCMCompare",
            display_name="PCM Compare",
            category="PCM/analysis",
            description="Samples the same noise in several ways and shows the images side by side: step counts, "
            "models, stock samplers. Measures how similar each column is to the last: the PCM paper's consistency.",
            search_aliases=[
                "phased consistency",
                "pcm",
                "xy plot",
                "grid",
                "compare steps",
                "consistency",
                "side by side",
            ],
            inputs=[
                inputs.model(),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. Not used at cfg 1."),
                io.Latent.Input("latent_image", tooltip="The latent that every column starts from."),
                io.Vae.Input("vae", tooltip="The VAE that decodes the results."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise, the same in every column.",
                ),
                io.Int.Input("seeds", default=1, min=1, max=16, tooltip="Rows per prompt: seed, seed + 1, ..."),
                io.String.Input(
                    "columns",
                    default="1, 2, 4, 8",
                    multiline=True,
                    tooltip='Step counts, "auto", or "sampler/scheduler@steps", separated by commas or line breaks. '
                    'Optional: "b:" in front for model b, "cfg 7" or "= label" after it: '
                    '"4, b: euler/simple@25 cfg 7 = teacher".',
                ),
                inputs.denoise(),
                io.Int.Input(
                    "cell_size",
                    default=384,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Longer side of an image on the sheet, in pixels.",
                ),
                io.String.Input(
                    "row_labels",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Labels of the prompts, one per line.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Adds the cosine similarity of image embeddings: the paper's measure of consistency.",
                ),
                io.Autogrow.Input(
                    "models",
                    template=more_models,
                    optional=True,
                    tooltip="More models, b to h. A model that no column names gets its own column.",
                ),
                io.Autogrow.Input(
                    "prompts", template=more_prompts, optional=True, tooltip="More prompts. Each adds rows."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The labelled sheet."),
                io.String.Output(display_name="figures", tooltip="Similarity of each column to the last, as a table."),
            ],
        )

    @classmethod
    def validate_inputs(cls, columns: Any = None, models: Any = None, prompts: Any = None) -> bool | str:
        """Inputs that grow always come; taking ``**kwargs`` would switch the host's own checks off.

        ``columns`` is None where it is linked, and a list where the host has refused it already.
        """
        try:
            parse_columns(columns if isinstance(columns, str) else "auto")
        except PCMError as error:
            return str(error)
        return True

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: host.Latent,
        vae: Any,
        seed: int,
        seeds: int,
        columns: str,
        denoise: float,
        cell_size: int,
        row_labels: str = "",
        clip_vision: Any = None,
        models: io.Autogrow.Type | None = None,
        prompts: io.Autogrow.Type | None = None,
    ) -> io.NodeOutput:
        by_letter = {"a": model, **{name[-1]: other for name, other in (models or {}).items() if other is not None}}
        positives = [positive, *(other for other in (prompts or {}).values() if other is not None)]
        samplings = [
            Sampling(column, by_letter[column.model], latent_image, denoise)
            for column in fill_in(parse_columns(columns), by_letter)
        ]
        rows = make_rows(positives, seed, seeds, row_labels)
        cells = sample_all(samplings, rows, negative, latent_image, vae)
        found = figures(cells, clip_vision)
        text = report(samplings, found, len(rows))
        logging.info("PCM Compare: %s", text)
        return io.NodeOutput(sheet(samplings, rows, cells, found, cell_size), text)
