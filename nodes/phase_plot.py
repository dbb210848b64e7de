"""PCM Phase Plot: draw the schedule before sampling it."""

# pyright: reportIncompatibleMethodOverride=false
# The host declares execute(**kwargs); a node names its inputs.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..pcm_core.errors import PCMError
from ..pcm_core.guidance import parse_guidance
from ..pcm_core.plan import Plan
from ..pcm_core.sigma_table import SigmaTable
from . import host, inputs
from .drawing.pen import THEMES, Point
from .drawing.phase_chart import Band, Lane, PhaseChart, draw_chart
from .sampling.plan import AUTO, levels_of, log, make_plan
from .validation import checked

_STOCK = ("simple", "normal")


@dataclass(frozen=True)
class _Path:
    """The model's sigmas by progress: 0 is pure noise, 1 is timestep 0."""

    table: SigmaTable

    def progress(self, sigma: float) -> float:
        return 1 - self.table.index(sigma) / (len(self.table) - 1)

    def timestep(self, sigma: float) -> int:
        return round(self.table.timestep(sigma))

    def points(self, sigmas: list[float]) -> tuple[Point, ...]:
        return tuple((self.progress(sigma), sigma) for sigma in sigmas)


def chart_of_model(model: Any, sigmas: Tensor | None, cfg: str, denoise: float, **settings: Any) -> PhaseChart:
    """The model's phases, with the steps of its own plan or those of ``sigmas``.

    Raises:
        PCMError: as ``make_plan`` and ``levels_of``.
    """
    plan = make_plan(model, cfg=cfg, denoise=denoise, **settings)
    log("PCM Phase Plot", *plan.notes)
    own = sigmas is None
    levels = levels_of(plan.sigmas if own else sigmas)
    path = _Path(plan.table)
    starts = [0.0, *(path.progress(top) for top in plan.phase_tops[1:])]
    asked = len(plan.whole if own else levels) - 1
    share = denoise if own else 1.0
    lanes = [Lane("PCM" if own else "SIGMAS", tuple(path.progress(sigma) for sigma in levels[:-1]))]
    if levels and share >= 0.01:  # the host makes a schedule of steps / denoise sigmas
        stock = {name: host.stock_sigmas(model, name, asked, share)[:-1].tolist() for name in _STOCK}
        lanes += [Lane(name, tuple(map(path.progress, values))) for name, values in stock.items()]
    late = bool(levels) and levels[0] < path.table.top * (1 - 1e-5)
    entered = f"enters at t = {path.timestep(levels[0])}" if late else ""
    return PhaseChart(
        title=_title(len(levels), plan.phases),
        subtitle=_subtitle(model, plan, levels, own),
        curve=path.points([*path.table.sigmas[:: -path.table.scale]]),
        steps=path.points(levels[:-1]),
        labels=tuple(str(path.timestep(sigma)) for sigma in levels[:-1]),
        end=(path.progress(levels[-1]), levels[-1]) if levels else None,
        bands=_bands(starts, plan.cfg),
        entry=path.progress(levels[0]) if late else None,
        entry_note=entered + (f" (denoise {denoise:g})" if own else ""),
        lanes=tuple(lanes),
        logarithmic=not path.table.flow,
        axis="progress from pure noise to image (share of timesteps)",
    )


def chart_of_sigmas(sigmas: Tensor, phases: int, cfg: str) -> PhaseChart:
    """Sigmas alone: they carry no timesteps, so progress counts steps; every step is a phase unless ``phases`` is set.

    Raises:
        PCMError: if the sigmas do not descend, or ``cfg`` does not fit the phases.
    """
    levels = levels_of(sigmas)
    steps = max(len(levels) - 1, 0)
    if phases > steps:
        raise PCMError(f"phases is {phases} and there are {steps} steps.", "at most one phase per step.", "Lower it.")
    count = phases or max(steps, 1)
    starts = [-(-k * steps // count) / max(steps, 1) for k in range(count)]
    values = () if cfg.strip().lower() in (AUTO, "") else parse_guidance(cfg, count)
    points = tuple((i / max(steps, 1), sigma) for i, sigma in enumerate(levels))
    return PhaseChart(
        title=_title(len(levels), count),
        subtitle="sigmas of another node; connect a model to see timesteps and its own phases",
        curve=(),
        steps=points[:-1],
        labels=tuple(f"{sigma:.3g}" for sigma in levels[:-1]),
        end=points[-1] if points else None,
        bands=_bands(starts, values),
        entry=None,
        entry_note="",
        lanes=(),
        logarithmic=bool(levels) and levels[0] > 1,
        axis="share of the steps",
    )


def _bands(starts: list[float], cfg: tuple[float, ...]) -> tuple[Band, ...]:
    notes = [f"cfg {value:g}" for value in cfg] or [""] * len(starts)
    spans = zip(starts, [*starts[1:], 1.0], notes, strict=True)
    return tuple(Band(start, end, f"phase {i}", str(i), note) for i, (start, end, note) in enumerate(spans, 1))


def _title(levels: int, phases: int) -> str:
    steps = max(levels - 1, 0)
    return f"{steps} step{'s' * (steps != 1)} over {phases} phase{'s' * (phases != 1)}"


def _subtitle(model: Any, plan: Plan, levels: list[float], own: bool) -> str:
    profile = host.profile_of(model)
    source = f"{profile.method} {profile.base_model}".strip() if profile and profile.known else "no PCM LoRA"
    if not own:
        spacing = "sigmas of another node"
    elif plan.schedule is None:
        spacing = "the LoRA's own list of sigmas"
    elif plan.schedule.spacing == "trailing":
        spacing = "trailing"
    else:
        spacing = f"{plan.schedule.spacing} on {plan.schedule.grid} points"
    end = f"ends at sigma {levels[-1]:.3g}" if levels else "denoise 0 returns the latent"
    return f"{source}; {spacing}; {end}"


class PCMPhasePlot(io.ComfyNode):
    @classmethod
    @inputs.optional_after("")
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PCMPhasePlot",
            display_name="PCM Phase Plot",
            category="PCM/analysis",
            description="Draws the schedule before you sample it: sigma against progress, phases as bands with their "
            "cfg, the evaluated timesteps, the start for denoise, and the stock schedules at the same step count.",
            search_aliases=["phased consistency", "pcm", "plot sigmas", "sigma curve", "schedule preview", "timesteps"],
            inputs=[
                io.Model.Input("model", optional=True, tooltip="Gives the sigma curve, the phases and the timesteps."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Draws these steps instead of the settings below."),
                inputs.steps(),
                inputs.phases(),
                inputs.cfg(),
                inputs.denoise(),
                inputs.spacing(),
                inputs.terminal(),
                inputs.grid(),
                io.Combo.Input("theme", options=list(THEMES), default="dark", tooltip="Colours of the plot."),
                io.Int.Input("width", default=1024, min=480, max=4096, step=8, tooltip="In pixels."),
                io.Int.Input("height", default=640, min=360, max=4096, step=8, tooltip="In pixels."),
            ],
            outputs=[io.Image.Output(tooltip="The plot.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        phases: int,
        cfg: str,
        theme: Any,
        width: int,
        height: int,
        model: Any = None,
        sigmas: Tensor | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        if model is not None:
            chart = chart_of_model(model, sigmas, cfg, phases=phases, **settings)
        elif sigmas is not None:
            chart = chart_of_sigmas(sigmas, phases, cfg)
        else:
            raise PCMError("Nothing is connected.", "a model, sigmas, or both.", "Connect the model you sample with.")
        return io.NodeOutput(draw_chart(chart, width, height, theme))
