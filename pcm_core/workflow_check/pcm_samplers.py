"""Our nodes in the place of a sampler: PCM Sampler for a whole one, or our sigmas and jump inside a custom one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import PCMError
from ..plan import plan
from ..profiles import method_choices, profile_of_method
from .bars import numbers
from .exchange import NoExchangeError
from .files import FewStepFile
from .finding import Mend, Remove, Replace, SetWidget
from .graph import MODEL_TYPES, Graph, Node, Port
from .judge_run import split_mends, wanted_kind, wanted_steps
from .runs import SPLITTERS, Run
from .schedules import ClosedForm, furthest
from .values import source_node, value_of

VIDEO = (
    "wan", "hunyuan-video", "hunyuan-video-1.5", "hunyuan-video-1.5-sr", "minimax-h3", "mochi", "ltxv", "ltx-2",
)  # fmt: skip
_LATENTS = {
    "KSampler": ("LATENT",), "KSamplerAdvanced": ("LATENT",), "SamplerCustom": ("LATENT", "LATENT"),
    "SamplerCustomAdvanced": ("LATENT", "LATENT"),
}  # fmt: skip
# What an API prompt says of an output: the name of the input it goes to.
_CONSUMED = {
    "samples": "LATENT", "latent_image": "LATENT", "latent": "LATENT", "model": "MODEL", "positive": "CONDITIONING",
    "negative": "CONDITIONING", "vae": "VAE",
}  # fmt: skip
_MOST_OUTPUTS = 100
_SAME = 1e-3  # relative difference of a noise level that was rounded
_LINKS = ("model", "positive", "negative", "latent_image", "noise", "guider", "sampler", "sigmas")
Values = list[tuple[str, Any]]
Inputs = list[tuple[str, str, str]]


def name_of(graph: Graph, node: str) -> str:
    """What people see above a node."""
    return graph.nodes[node].name if node in graph.nodes else node


def scope(node: str) -> str:
    """The subgraph a node lies in."""
    return node.rpartition(":")[0]


def sampler_steps(graph: Graph, run: Run, file: FewStepFile) -> list[Mend]:
    """How our nodes come to sample a run.

    Raises:
        NoExchangeError: where they cannot.
    """
    if run.ours:
        return []
    if run.start.known or run.end.known:
        return [whole(graph, run, file, _part(run, file)), Remove(run.node.id)]
    if run.node.type in ("SamplerCustom", "SamplerCustomAdvanced"):
        return _custom(graph, run, file)
    return [whole(graph, run, file), Remove(run.node.id)]


def _part(run: Run, file: FewStepFile) -> Values:
    """The part of a schedule that KSamplerAdvanced samples, if it is no whole one."""
    values, steps = run.node.values, run.sigmas.steps.count
    start, end = run.start.count or 0, run.end.count
    added = values.get("add_noise") not in ("disable", False)
    leftover = values.get("return_with_leftover_noise") in ("enable", True)
    ends_early = end is not None and steps is not None and end < steps
    if not start and not ends_early and added:
        return []
    low, _, most = wanted_steps(file.profile)
    if steps is None or not low <= steps <= most:
        family, want = file.profile.method, file.profile.steps
        raise NoExchangeError(
            "part", node=run.node.name, start=start, end=steps if end is None else min(end, steps or end),
            have=steps or "?", family=family, want=want,
        )  # fmt: skip
    ended: Values = [("end_step", end)] if ends_early else []
    return [("add_noise", added), ("start_step", start), *ended, ("return_with_leftover_noise", leftover)]


def whole(
    graph: Graph, run: Run, file: FewStepFile, part: Values | None = None, *, entry: Values | None = None
) -> Replace:  # fmt: skip
    """PCM Sampler, or PCM Video Sampler, in the place of one sampler; of a part of its steps only PCM Sampler."""
    node, words = run.node, graph.nodes[run.model_node or run.node.id]
    kind = "PCMVideoSampler" if file.profile.base_model in VIDEO and not part else "PCMSampler"
    values, inputs = _kept(graph, run, file)
    if _source_type(graph, node, "noise") == "DisableNoise" or node.values.get("add_noise") is False:
        kind, part = "PCMSampler", [("add_noise", False)]
    negative = "negative" if words.type != "BasicGuider" else "conditioning"
    positive = "positive" if words.type != "BasicGuider" else "conditioning"
    _check_guider(words, file)
    inputs += [("model", words.id, run.model_input), ("positive", words.id, positive)]
    inputs += [("negative", words.id, negative), ("latent_image", node.id, "latent_image")]
    for _, old, _ in inputs:
        if scope(old) != scope(node.id):
            raise NoExchangeError("subgraphs", node=node.name, other=name_of(graph, old))
    outputs, through = _outputs(graph, run, kind)
    return Replace(
        at=node.id, type=kind, values=(*values, *(part or ()), *(entry or ())), inputs=tuple(inputs),
        outputs=outputs, through=through,
    )  # fmt: skip


def _check_guider(words: Node, file: FewStepFile) -> None:
    """BasicGuider is cfg 1, which not every file is made for."""
    low, high = file.profile.cfg_range
    if words.type == "BasicGuider" and not low <= 1 <= high:
        raise NoExchangeError("no_negative", node=words.name, family=file.profile.method, cfg=f"{file.profile.cfg:g}")


def _kept(graph: Graph, run: Run, file: FewStepFile) -> tuple[Values, Inputs]:
    """Seed and denoise, and whatever of steps and cfg the file can be sampled with: by link where one feeds them."""
    values: Values = []
    inputs: Inputs = []
    for place, name, wanted in _widgets(graph, run):
        entry = place.inputs.get(name)
        value = value_of(graph, place, name)
        if entry is not None and entry.link is not None and scope(place.id) == scope(run.node.id):
            inputs.append((wanted, place.id, name))
        elif value.number is not None and (wanted == "seed" or value.number < 1):
            values.append((wanted, value.count if wanted == "seed" else value.number))
    return values + _settings(run, file), inputs


def _settings(run: Run, file: FewStepFile) -> Values:
    """Steps and cfg that the file can be sampled with, where they are not its usual ones."""
    profile, found = file.profile, Values()
    low, usual, most = wanted_steps(profile)
    steps, cfg = run.sigmas.steps.count, run.cfg.number
    if steps is not None and low <= steps <= most and steps != usual:
        found.append(("steps", steps))
    if cfg is not None and profile.cfg_range[0] <= cfg <= profile.cfg_range[1] and cfg != profile.cfg:
        found.append(("cfg", f"{cfg:g}"))
    return found


def _widgets(graph: Graph, run: Run) -> Iterator[tuple[Node, str, str]]:
    """(node, widget, widget of our sampler) of what stays as it is."""
    source = graph.source(run.node.id, "noise")
    seeded = graph.nodes[source.node] if isinstance(source, Port) else run.node
    for name in ("seed", "noise_seed"):
        if name in seeded.values or name in seeded.inputs:
            yield seeded, name, "seed"
            break
    made = run.sigmas.node or run.node
    if "denoise" in made.values or "denoise" in made.inputs:
        yield made, "denoise", "denoise"


def _outputs(graph: Graph, run: Run, kind: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What our sampler feeds instead, and what goes around it.

    Raises:
        NoExchangeError: if the sampler has a use that ours has not.
    """
    node = run.node
    kinds = list(node.outputs if any(node.outputs) else _LATENTS.get(node.type, ()))
    used: dict[int, str] = {}
    for target, name in graph.consumers().get(node.id, []):
        source = graph.source(target, name)
        if isinstance(source, Port) and 0 <= source.slot < _MOST_OUTPUTS:
            used.setdefault(source.slot, _CONSUMED.get(name, ""))
    extra = [name for name, entry in node.inputs.items() if entry.link is not None and _is_extra(name, entry.type)]
    extra += [run.second_input] if run.second_input else []
    outputs: list[tuple[str, int, int]] = []
    through: list[tuple[str, int, str]] = []
    ways = _ways(run)
    kinds += [""] * max(0, max(used, default=0) + 1 - len(kinds))
    kinds = [kind or used.get(slot, "") for slot, kind in enumerate(kinds)]
    latents = [slot for slot, kind in enumerate(kinds) if kind == "LATENT"]
    for slot in sorted(used):
        name = kinds[slot]
        if slot in latents:
            outputs.append((node.id, slot, 0 if kind == "PCMVideoSampler" else min(latents.index(slot), 1)))
        elif ways.get(name):
            through.append((node.id, slot, ways[name].pop(0)))
        else:
            extra.append(name or f"output {slot + 1}")
    if extra or "latent_image" not in node.inputs:
        raise NoExchangeError("more_than_a_sampler", node=node.name, what=", ".join(extra) or "no latent_image")
    return tuple(outputs), tuple(through)


def _ways(run: Run) -> dict[str, list[str]]:
    linked = [name for name, entry in run.node.inputs.items() if entry.link is not None]
    words = [name for name in ("positive", "negative") if name in linked]
    vae = [name for name in linked if run.node.inputs[name].type == "VAE"]
    return {"MODEL": [run.model_input], "CONDITIONING": words, "VAE": vae}


def _is_extra(name: str, kind: str) -> bool:
    """A connected input that is neither a link of a sampler nor a number."""
    if name in _LINKS or kind in (*MODEL_TYPES, "VAE", "INT", "FLOAT", "COMBO", "STRING", "BOOLEAN", "*", ""):
        return False
    return True


def _source_type(graph: Graph, node: Node, name: str) -> str:
    source = graph.source(node.id, name)
    return graph.nodes[source.node].type if isinstance(source, Port) else ""


def _custom(graph: Graph, run: Run, file: FewStepFile) -> list[Mend]:
    """A whole schedule becomes PCM Sampler; else our sigmas and our jump go where the stock ones are."""
    words = graph.nodes[run.model_node or run.node.id]
    splits, made = _sigma_way(graph, run)
    sampler, wrapped = _sampler_way(graph, run)
    simple = words.type in ("SamplerCustom", "CFGGuider", "BasicGuider") and not splits and not wrapped
    entry = _entry(run, file)
    if simple and entry is not None:
        parts = [sampler, made, words if words is not run.node else None, source_node(graph, run.node, "noise")]
        try:
            made_ours = whole(graph, run, file, entry=entry)
            return [made_ours, *(Remove(part.id) for part in (run.node, *parts) if part is not None)]
        except NoExchangeError as no:
            if no.reason.key != "subgraphs":
                raise
    _check_guider(words, file)
    return [
        *_guided(graph, run, file, words),
        *_jumping(graph, run, file, sampler),
        *_scheduled(graph, run, file, made),
    ]


def _entry(run: Run, file: FewStepFile) -> Values | None:
    """How our sampler comes to a written list: by the file's own, by a method that has it, or by a denoise.

    ``None`` where none of them gives the same noise levels.
    """
    levels, profile = run.sigmas.levels, file.profile
    table = ClosedForm().table(profile.base_model, profile.shift)
    if run.sigmas.kind != "list" or table is None or len(levels) < 2 or levels[0] >= table.top * 0.995:
        return []
    for choice in method_choices():
        other = profile_of_method(choice)
        if other.base_model == profile.base_model and furthest(levels, other.sigmas or ()) < _SAME:
            return [("method", choice)]
    denoise = round((table.index(levels[0]) + 1) / len(table), 4)
    try:
        entered = plan(profile, table, denoise=denoise).sigmas
    except PCMError:
        return None
    return [("denoise", denoise)] if furthest(levels, numbers(entered)) < _SAME else None


def _sigma_way(graph: Graph, run: Run) -> tuple[list[Node], Node | None]:
    """The nodes that cut the schedule, and the one that makes it."""
    splits: list[Node] = []
    node = source_node(graph, run.node, "sigmas")
    while node is not None and len(splits) < 20:
        if "sigmas" not in node.inputs:
            break
        if node.type not in SPLITTERS:
            raise NoExchangeError("sigmas", node=node.name)
        splits.append(node)
        node = source_node(graph, node, "sigmas")
    return splits, node


def _sampler_way(graph: Graph, run: Run) -> tuple[Node | None, bool]:
    """The innermost SAMPLER node, and whether others wrap it."""
    node, wrapped = source_node(graph, run.node, "sampler"), 0
    while node is not None and wrapped < 20:
        inner = source_node(graph, node, "sampler")
        if inner is None:
            break
        node, wrapped = inner, wrapped + 1
    return node, wrapped > 0


def _guided(graph: Graph, run: Run, file: FewStepFile, words: Node) -> list[Mend]:
    """PCM Guider for CFGGuider, which knows the file's cfg; another guider stays."""
    if words.type == "SamplerCustom":
        value = run.cfg.number
        low, high = file.profile.cfg_range
        fits = value is None or low <= value <= high
        return [] if fits else [SetWidget(words.id, "cfg", file.profile.cfg)]
    if words.type != "CFGGuider":
        return []
    cfg = [(name, value) for name, value in _settings(run, file) if name == "cfg"]
    links = tuple((name, words.id, name) for name in ("model", "positive", "negative"))
    step = Replace(at=words.id, type="PCMGuider", values=tuple(cfg), inputs=links, outputs=((words.id, 0, 0),))
    return [step, Remove(words.id)]


def _jumping(graph: Graph, run: Run, file: FewStepFile, sampler: Node | None) -> list[Mend]:
    """SamplerPCM, which reads noise and steps of the file from the model."""
    if sampler is None or sampler.type == "SamplerPCM":
        return []
    profile = file.profile
    values: Values = []
    told = file.kind == "lora" or _is_guided(graph, run)  # else nothing on the model says how the file is sampled
    if not told and profile.ancestral:
        return [SetWidget(sampler.id, "sampler_name", "euler_ancestral")] if sampler.type == "KSamplerSelect" else []
    if not told and wanted_kind(profile) != "fixed":
        values = [("gamma", profile.gamma)] if profile.gamma else [("determinism", profile.determinism)]
    return [
        Replace(at=sampler.id, type="SamplerPCM", values=tuple(values), outputs=((sampler.id, 0, 0),)),
        Remove(sampler.id),
    ]


def _is_guided(graph: Graph, run: Run) -> bool:
    return graph.nodes[run.model_node or run.node.id].type == "CFGGuider"


def _scheduled(graph: Graph, run: Run, file: FewStepFile, made: Node | None) -> list[Mend]:
    """PCM Phase Scheduler with the model of the sampler; a written list stays, it says where it enters."""
    if made is None or made.type in ("PCMPhaseScheduler", "ManualSigmas"):
        return []
    words = run.model_node or run.node.id
    source = (words, run.model_input) if scope(words) == scope(made.id) else (made.id, "model")
    if source[1] not in graph.nodes[source[0]].inputs:
        raise NoExchangeError("subgraphs", node=made.name, other=name_of(graph, words))
    values = [entry for entry in _settings(run, file) if entry[0] == "steps"]
    denoise = value_of(graph, made, "denoise").number
    values += [("denoise", denoise)] if denoise is not None and denoise < 1 else []
    step = Replace(
        at=made.id, type="PCMPhaseScheduler", values=tuple(values), inputs=(("model", source[0], source[1]),),
        outputs=((made.id, 0, 0),),
    )  # fmt: skip
    return [step, Remove(made.id), *split_mends(graph, run, file.profile)]
