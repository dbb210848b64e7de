"""Sample every row with every column, and measure how similar the results are."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...pcm_core.errors import PCMError, one_line
from ...pcm_core.metrics import cosine, mean, psnr, ssim
from ...pcm_core.sampling import is_finite
from .. import host
from ..drawing import contact_sheet
from .columns import Column, check_label
from .function import sample_planned
from .guidance import phase_guider
from .plan import AUTO, log, make_plan, mistakes


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt and a seed, which are sampled in every column."""

    positive: Any
    seed: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result: latents of the whole batch, and its images [B or B * frames, H, W, C] on the CPU."""

    latent: Tensor
    pictures: Tensor

    def item(self, index: int, batch: int) -> Tensor:
        """The image of a batch item; of a clip its middle frame."""
        frames = len(self.pictures) // batch
        return self.pictures[index * frames + frames // 2]


def fill_in(columns: tuple[Column, ...], models: dict[str, Any]) -> tuple[Column, ...]:
    """Check that the named models are connected, and add a column for each connected model that is not named.

    Raises:
        PCMError: if a column names a model that is not connected.
    """
    for column in columns:
        if column.model not in models:
            raise PCMError(
                f'columns names model {column.model}, and nothing is connected to "model_{column.model}".',
                f"one of {', '.join(models)}.",
                "Connect it, or change the letter; a is the first model.",
            )
    named = {column.model for column in columns}
    return columns + tuple(Column(model=letter, steps=0) for letter in models if letter not in named)


def make_rows(positives: Sequence[Any], seed: int, seeds: int, labels: str) -> list[Row]:
    """Every prompt with every seed, labelled by the lines of ``labels`` if there are any.

    Raises:
        PCMError: if a line is too long.
    """
    names = [check_label(line.strip()) for line in labels.splitlines() if line.strip()]
    rows: list[Row] = []
    for index, positive in enumerate(positives):
        for offset in range(seeds):
            name = names[index] if index < len(names) else f"prompt {index + 1}" if len(positives) > 1 else ""
            parts = [name] if name else []
            parts += [f"seed {seed + offset}"] if seeds > 1 or not name else []
            rows.append(Row(positive=positive, seed=seed + offset, name="\n".join(parts)))
    return rows


class Sampling:
    """One prepared column: the plan or the stock sigmas, and how to sample a row with them.

    ``name`` is the name in the log.
    """

    def __init__(
        self, column: Column, model: Any, latent: host.Latent, denoise: float = 1.0, name: str = "PCM Compare"
    ) -> None:
        self.column, self.model = column, model
        if column.sampler:
            self.plan = None
            self.sampler, self.sigmas = host.stock_sampling(
                model, column.sampler, column.scheduler, column.steps, denoise
            )
        else:
            cfg = AUTO if column.cfg is None else column.cfg
            self.plan = make_plan(model, latent, steps=column.steps, cfg=cfg, denoise=denoise)
            log(name, *self.plan.notes, *mistakes(self.plan))
            self.sampler, self.sigmas = host.ksampler(sample_planned, r=self.plan.r), self.plan.sigmas

    def guider(self, positive: Any, negative: Any) -> Any:
        if self.plan is not None:
            return phase_guider(self.model, positive, negative, self.plan)
        guider = host.CFGGuider(self.model)
        guider.set_conds(positive, negative)
        guider.set_cfg(float(self.cfg))
        return guider

    @property
    def steps(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    @property
    def cfg(self) -> str:
        """The column's cfg, else the LoRA's own; 1 for stock samplers."""
        if self.column.cfg is not None:
            return f"{self.column.cfg:g}"
        if self.plan is None:
            return "1"
        profile = host.profile_of(self.model)
        return AUTO if profile is None else f"{profile.cfg:g}"

    @property
    def detail(self) -> str:
        """The details that are not in the title: scheduler, steps that ran if they differ, and cfg."""
        ran = f"{self.steps} run, " if self.column.label or self.steps != self.column.steps else ""
        return f"{self.column.scheduler + ', ' if self.column.scheduler else ''}{ran}cfg {self.cfg}"


def sample_all(
    samplings: Sequence[Sampling], rows: Sequence[Row], negative: Any, latent: host.Latent, vae: Any
) -> list[list[Cell]]:
    """Cells by row, then column; sampled column by column, so that each model is loaded once."""
    by_column: list[list[Cell]] = []
    for sampling in samplings:
        cells: list[Cell] = []
        for row in rows:
            guider = sampling.guider(row.positive, negative)
            result, _ = host.sample(guider, sampling.sampler, sampling.sigmas, latent, seed=row.seed)
            samples = host.parts(result["samples"])[0]
            _refuse_broken(sampling, samples)
            pictures = vae.decode(samples)
            cells.append(Cell(latent=samples.cpu(), pictures=pictures.reshape(-1, *pictures.shape[-3:]).cpu()))
        by_column.append(cells)
    return [list(cells) for cells in zip(*by_column, strict=True)]


def _refuse_broken(sampling: Sampling, samples: Tensor) -> None:
    """Refuse NaN and infinity from stock samplers, which do not check; our own sampler names the step."""
    if not is_finite(samples):
        raise PCMError(
            f'Column "{sampling.column.title}" came out as NaN or infinity after {sampling.steps} steps.',
            "finite values.",
            "Lower its cfg or the LoRA strength, or run the model in a wider dtype (bf16 or fp32).",
        )


def figures(cells: list[list[Cell]], clip_vision: Any) -> dict[str, list[float]]:
    """Similarity of each column to the last, by measure, averaged over the rows."""

    def against_last(measure: Callable[[Any, Any], float], values: list[list[Any]]) -> list[float]:
        return [mean([measure(row[column], row[-1]) for row in values]) for column in range(len(values[0]))]

    found: dict[str, list[float]] = {}
    pictures = [[cell.pictures for cell in row] for row in cells]
    if clip_vision is not None:
        embeddings = [[clip_vision.encode_image(picture)["image_embeds"] for picture in row] for row in pictures]
        found["CLIP cosine"] = against_last(cosine, embeddings)
    found["latent cosine"] = against_last(cosine, [[cell.latent for cell in row] for row in cells])
    found["PSNR dB"] = against_last(psnr, pictures)
    found["SSIM"] = against_last(ssim, pictures)
    return found


def report(samplings: Sequence[Sampling], found: dict[str, list[float]], rows: int) -> str:
    """The figures as a text table."""
    head = ["column", "steps", "cfg", *found]
    lines = [
        [f"{s.column.title} ({s.column.scheduler})" if s.column.scheduler else s.column.title, str(s.steps), s.cfg,
         *(f"{values[index]:.4f}" for values in found.values())]
        for index, s in enumerate(samplings)
    ]  # fmt: skip
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    table = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in [head, *lines]]
    opening = f"Likeness to the last column, mean of {rows} {'row' if rows == 1 else 'rows'}"
    return "\n".join([opening, *(one_line(line.rstrip()) for line in table)])


def sheet(
    samplings: Sequence[Sampling],
    rows: Sequence[Row],
    cells: list[list[Cell]],
    found: dict[str, list[float]],
    size: int,
) -> Tensor:
    """The contact sheet; each item of a batch has its own row."""
    name, likeness = next(iter(found.items()))
    headings = [
        contact_sheet.Heading(title=s.column.title, detail=s.detail, figure=f"{name} {value:.3f}", bar=value)
        for s, value in zip(samplings, likeness, strict=True)
    ]
    batch = len(cells[0][0].latent)
    pictures = [[one.item(index, batch) for one in row] for row in cells for index in range(batch)]
    names = [f"{row.name} #{index + 1}" if batch > 1 else row.name for row in rows for index in range(batch)]
    return contact_sheet.draw(pictures, headings, names, size)
