"""What every sampler of a workflow will run: model, steps, cfg, sampler, noise levels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .files import FewStepFile
from .graph import ACTIVE, Graph, Node
from .model_path import model_path
from .values import UNKNOWN, Value, first_number, source_node, value_of

# SAMPLER nodes that stand for one sampler.
_SAMPLER_NODES = {
    "SamplerLCM": "lcm", "SamplerEulerAncestral": "euler_ancestral", "SamplerDPMPP_SDE": "dpmpp_sde",
    "SamplerEulerAncestralCFGPP": "euler_ancestral_cfg_pp", "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde",
    "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde", "SamplerDPMPP_2S_Ancestral": "dpmpp_2s_ancestral",
    "SamplerER_SDE": "er_sde", "SamplerSASolver": "sa_solver", "SamplerPCM": "pcm", "SamplerLMS": "lms",
    "SamplerEulerCFGpp": "euler_cfg_pp",
}  # fmt: skip
# SIGMAS nodes that hand on a part of what they get.
SPLITTERS = ("SplitSigmas", "SplitSigmasDenoise", "SetFirstSigma", "ExtendIntermediateSigmas")
_KEEPS_COUNT = re.compile(r"multiply|detail.?daemon|rescale", re.IGNORECASE)
_DEEPEST = 20
OURS = ("PCMSampler", "PCMVideoSampler")
_STEPS = ("steps", "num_steps", "sample_steps")
_CFGS = ("cfg", "cfg_high_noise")
_SCHEDULERS = ("scheduler", "scheduler_name")
_SAMPLERS = ("sampler_name", "sampler")


@dataclass(frozen=True, kw_only=True)
class Sigmas:
    """Where the noise levels of a run come from.

    Attributes:
        kind: ``scheduler`` by name, ``list`` written out, ``ours`` as the file wants them, else ``unknown``.
        node: that holds the widgets.
        levels: of a written list, with the final 0.
        whole: False where only a part of them is run.
        models: the nodes the scheduler's own model comes from.
        splits: nodes that cut it, the last first.
    """

    kind: str = "unknown"
    node: Node | None = None
    scheduler: Value = UNKNOWN
    steps: Value = UNKNOWN
    denoise: Value = UNKNOWN
    levels: tuple[float, ...] = ()
    whole: bool = True
    models: tuple[Node, ...] = ()
    splits: tuple[Node, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One sampler and what reaches it.

    Attributes:
        models: nodes the model comes from, the nearest first; ``files`` the active few-step files among them.
        second: the same for the low-noise model of a sampler that takes both experts; ``second_input`` takes it.
        start, end: steps of KSamplerAdvanced; unknown for every other node.
    """

    node: Node
    model_input: str
    models: tuple[Node, ...]
    files: tuple[FewStepFile, ...]
    sigmas: Sigmas
    cfg: Value = UNKNOWN
    sampler: Value = UNKNOWN
    start: Value = UNKNOWN
    end: Value = UNKNOWN
    model_node: str = ""
    second_input: str = ""
    second: tuple[FewStepFile, ...] = ()
    second_models: tuple[Node, ...] = field(default=())

    @property
    def ours(self) -> bool:
        """Whether our sampler runs it, which asks the file for what its widgets leave open."""
        return self.node.type in OURS


def sampler_runs(graph: Graph, files: list[FewStepFile]) -> list[Run]:
    """Every active sampler whose model passes a few-step file, in the order of the nodes."""
    by_node: dict[str, list[FewStepFile]] = {}
    for file in files:
        if file.active and not file.mixed:
            by_node.setdefault(file.node.id, []).append(file)
    runs = [run for node in graph.nodes.values() for run in _of_node(graph, node, by_node)]
    return [run for run in runs if run.files or run.second]


def _of_node(graph: Graph, node: Node, by_node: dict[str, list[FewStepFile]]) -> Iterator[Run]:
    if node.mode != ACTIVE or node.subgraph:
        return
    if node.type == "SamplerCustomAdvanced":
        run = _custom_advanced(graph, node)
    elif node.type in OURS:
        run = _ours(graph, node)
    elif "sigmas" in node.inputs and "sampler" in node.inputs and "model" in node.inputs:
        run = _custom(graph, node)
    elif _is_sampler(node):
        run = _stock(graph, node)
    else:
        return
    models = model_path(graph, graph.nodes[run.model_node or node.id], run.model_input)
    second = model_path(graph, node, run.second_input) if run.second_input else []
    yield replace(
        run,
        models=tuple(models),
        files=_files_on(models, by_node),
        second=_files_on(second, by_node),
        second_models=tuple(second),
    )


def _files_on(models: list[Node], by_node: dict[str, list[FewStepFile]]) -> tuple[FewStepFile, ...]:
    return tuple(file for node in models for file in by_node.get(node.id, ()))


def _is_sampler(node: Node) -> bool:
    """A node with a model, steps and cfg that no model leaves, whatever pack it is of."""
    names = node.values.keys() | node.inputs.keys()
    if not node.model_inputs() or not names & set(_STEPS) or not names & set(_CFGS) or "GUIDER" in node.outputs:
        return False
    return "SIGMAS" not in node.outputs and bool(names & {*_SCHEDULERS, *_SAMPLERS})


def _model_input(node: Node) -> str:
    names = node.model_inputs()
    high = [name for name in names if "high" in name.lower()]
    return "model" if "model" in names or not names else (high or names)[0]


def _low_input(node: Node) -> str:
    """The low-noise expert's input of a sampler that takes both."""
    names = node.model_inputs()
    low = [name for name in names if "low" in name.lower()]
    return low[0] if low and any("high" in name.lower() for name in names) else ""


def _stock(graph: Graph, node: Node) -> Run:
    sigmas = Sigmas(
        kind="scheduler",
        node=node,
        scheduler=first_number(graph, node, _SCHEDULERS),
        steps=first_number(graph, node, _STEPS),
        denoise=value_of(graph, node, "denoise"),
        whole=node.type == "KSampler" or "start_at_step" not in node.values,
    )
    return Run(
        node=node,
        model_input=_model_input(node),
        second_input=_low_input(node),
        models=(),
        files=(),
        sigmas=sigmas,
        cfg=first_number(graph, node, _CFGS),
        sampler=first_number(graph, node, _SAMPLERS),
        start=value_of(graph, node, "start_at_step"),
        end=value_of(graph, node, "end_at_step"),
    )


def _ours(graph: Graph, node: Node) -> Run:
    steps = value_of(graph, node, "steps")
    sigmas = Sigmas(kind="ours", node=node, steps=steps, denoise=value_of(graph, node, "denoise"))
    cfg = value_of(graph, node, "cfg")
    second = "second_model" if node.type == "PCMVideoSampler" else ""
    return Run(node=node, model_input="model", second_input=second, models=(), files=(), sigmas=sigmas, cfg=cfg)


def _custom(graph: Graph, node: Node) -> Run:
    return Run(
        node=node,
        model_input="model",
        models=(),
        files=(),
        sigmas=_sigmas(graph, node),
        cfg=value_of(graph, node, "cfg"),
        sampler=_sampler(graph, node),
    )


def _custom_advanced(graph: Graph, node: Node) -> Run:
    guider = source_node(graph, node, "guider") or node
    cfg = UNKNOWN
    if guider.type == "BasicGuider":
        cfg = Value(1.0, True)
    elif guider.type in ("CFGGuider", "PCMGuider", "LTXVDualCFGGuider"):
        cfg = first_number(graph, guider, ("cfg", "video_cfg"))
    return Run(
        node=node,
        model_input=_model_input(guider),
        model_node=guider.id,
        models=(),
        files=(),
        sigmas=_sigmas(graph, node),
        cfg=cfg,
        sampler=_sampler(graph, node),
    )


def _sampler(graph: Graph, node: Node) -> Value:
    """The sampler of a custom one; nodes that change how the model is called inside it (Detail Daemon) are passed."""
    chosen = source_node(graph, node, "sampler")
    for _ in range(_DEEPEST):
        inner = source_node(graph, chosen, "sampler") if chosen is not None else None
        if inner is None:
            break
        chosen = inner
    if chosen is None:
        return UNKNOWN
    if chosen.type == "KSamplerSelect":
        return value_of(graph, chosen, "sampler_name")
    name = _SAMPLER_NODES.get(chosen.type)
    if name == "euler_ancestral" and value_of(graph, chosen, "eta").number == 0:
        name = "euler"
    return Value(name, name is not None, because="" if name else chosen.name)


def _sigmas(graph: Graph, node: Node, depth: int = 0) -> Sigmas:
    made = source_node(graph, node, "sigmas")
    if made is None or depth > _DEEPEST:
        return Sigmas()
    if made.type in SPLITTERS:
        inner = _sigmas(graph, made, depth + 1)
        return replace(inner, whole=False, splits=(made, *inner.splits))
    if "sigmas" in made.inputs:  # changed in a way that nobody here knows, but as many of them
        inner = _sigmas(graph, made, depth + 1) if _KEEPS_COUNT.search(made.type) else Sigmas()
        return replace(inner, kind="unknown", node=made if inner.node is None else inner.node, whole=False)
    if made.type == "ManualSigmas":
        text = value_of(graph, made, "sigmas").text
        return Sigmas(kind="list", node=made, levels=_numbers(text))
    kind, scheduler = "unknown", value_of(graph, made, "scheduler")
    if made.type == "BasicScheduler":
        kind = "scheduler"
    elif made.type == "PCMPhaseScheduler":
        kind = "ours"
    elif made.type in ("KarrasScheduler", "ExponentialScheduler", "PolyexponentialScheduler"):
        scheduler = Value(made.type.removesuffix("Scheduler").lower(), True)
    return Sigmas(
        kind=kind,
        node=made,
        scheduler=scheduler,
        steps=first_number(graph, made, _STEPS),
        denoise=value_of(graph, made, "denoise"),
        models=tuple(model_path(graph, made, "model")),
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in re.findall(r"[-+]?(?:\d*\.\d+|\d+\.?)(?:[eE][-+]?\d+)?", text)[:1000])
    except ValueError:
        return ()
