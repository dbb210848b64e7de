"""Steps, cfg, sampler and strength of one run against what its file wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import PCMError
from ..guidance import guidance_entries
from ..profiles import PCMProfile
from .files import FewStepFile
from .finding import Finding, Level, Mend, set_value
from .graph import Graph, Node, Place
from .host_names import FIRST_ORDER, sampler_kind
from .runs import Run
from .sources import source_of
from .values import value_of


def finding(
    run: Run,
    file: FewStepFile,
    rule: str,
    level: Level,
    *,
    node: Node | None = None,
    mends: tuple[Mend, ...] = (),
    facts: Mapping[str, object] | None = None,
) -> Finding:
    """A finding about a run, at its sampler if no node is given; what nobody verified is doubtful at most."""
    node = node or run.node
    return Finding(
        rule=rule,
        level="doubtful" if level == "wrong" and not file.profile.verified else level,
        node=node.id,
        title=node.name,
        file=file.title,
        facts={"family": file.profile.method, "file": file.title, **(facts or {})},
        why=source_of(file),
        mends=mends,
    )


def wanted_steps(profile: PCMProfile) -> tuple[int, int, int]:
    """(fewest, usual, most) steps that a file is made for."""
    usual = profile.steps
    if profile.phases or profile.sigmas or profile.timesteps or profile.levels or profile.sampling_class == "single":
        return usual, usual, usual
    if profile.sampling_class in ("renoised", "ancestral"):
        return max(1, usual // 2), usual, max(2 * usual, 4)
    return usual, usual, usual


def judge_split(graph: Graph, run: Run, file: FewStepFile) -> Iterator[Finding]:
    """SplitSigmas behind the last step, which leaves nothing for the second sampler."""
    low, usual, most = wanted_steps(file.profile)
    steps = run.sigmas.steps.count or 0
    for node in run.sigmas.splits if low <= steps <= most else ():
        value = value_of(graph, node, "step")
        if node.type == "SplitSigmas" and value.count is not None and value.count >= steps > 1:
            mends = set_value(value, Place(node.id, "step"), max(usual // 2, 1))
            facts = {"have": value.count, "steps": steps}
            yield finding(run, file, "split", "wrong", node=node, facts=facts, mends=mends)


def split_mends(graph: Graph, run: Run, profile: PCMProfile) -> Iterator[Mend]:
    """A split counts steps: where the file wants other steps, it goes to the same part of them."""
    have, want = run.sigmas.steps.count, profile.steps
    low, _, most = wanted_steps(profile)
    for node in run.sigmas.splits if have is not None and not low <= have <= most else ():
        value = value_of(graph, node, "step")
        if node.type == "SplitSigmas" and value.count is not None and have:
            at = min(max(round(value.count * want / have), 1), max(want - 1, 1))
            yield from set_value(value, Place(node.id, "step"), at)


def judge_steps(graph: Graph, run: Run, file: FewStepFile) -> Iterator[Finding]:
    """More or fewer steps than the file is made for."""
    steps = run.sigmas.steps.count
    if not steps or (run.sigmas.kind == "list"):
        return
    low, usual, most = wanted_steps(file.profile)
    denoise = run.sigmas.denoise.number
    part = denoise is not None and denoise < 1
    if (part and steps <= most) or low <= steps <= most:
        return
    exact = low == most and file.profile.sampling_class != "fixed"
    level: Level = "wrong" if exact or steps > 2 * most or steps < low else "doubtful"
    node = run.sigmas.node or run.node
    mends = set_value(run.sigmas.steps, Place(node.id, "steps"), 0 if run.sigmas.kind == "ours" else usual)
    mends += tuple(split_mends(graph, run, file.profile))
    yield finding(run, file, "steps", level, node=node, facts={"have": steps, "want": usual}, mends=mends)


def judge_cfg(run: Run, file: FewStepFile) -> Iterator[Finding]:
    """Guidance outside the file's range."""
    low, high = file.profile.cfg_range
    low, high = min(low, file.profile.cfg), max(high, file.profile.cfg)
    have = _cfg(run)
    if have is None or any("CFGOverride" in node.type for node in run.models):
        return
    if low * 0.999 <= have <= high * 1.001:
        return
    level: Level = "wrong" if have > 1.5 * high or have < 1 else "doubtful"
    wanted = "auto" if run.ours else file.profile.cfg
    place = Place(run.node.id, "cfg")  # where the value does not say its own
    if run.cfg.place is None and run.model_node not in ("", run.node.id):
        place = Place(run.model_node, "cfg")
    facts = {"have": f"{have:g}", "low": f"{low:g}", "high": f"{high:g}", "want": f"{file.profile.cfg:g}"}
    mends = set_value(run.cfg, place, wanted) if run.cfg.known else ()
    rule = "cfg_range" if low != high else "cfg"
    yield finding(run, file, rule, level, mends=mends, facts=facts)


def _cfg(run: Run) -> float | None:
    if not run.cfg.known:
        return None
    if run.cfg.text:
        try:
            values = [float(entry) for entry in guidance_entries(run.cfg.text)]
        except (PCMError, ValueError):
            return None
        return max(values, default=None)
    return run.cfg.number


def judge_sampler(run: Run, file: FewStepFile) -> Iterator[Finding]:
    """A sampler of another class than the file was distilled for."""
    name = run.sampler.text
    profile = file.profile
    if not name or name == "pcm" or profile.sampling_class in ("single", "unsupported") or run.sigmas.steps.count == 1:
        return
    kind = sampler_kind(name)
    wanted = wanted_kind(profile)
    level = _sampler_level(kind, wanted, name, profile)
    if level is None:
        return
    use = {"fixed": "euler", "renoised": "lcm", "ancestral": "euler_ancestral"}[wanted]
    # A SAMPLER node that stands for one sampler has no widget to set.
    mends = set_value(run.sampler, Place(run.node.id, "sampler_name"), use) if run.sampler.place else ()
    yield finding(run, file, f"sampler_{wanted}", level, facts={"have": name, "want": use}, mends=mends)


def wanted_kind(profile: PCMProfile) -> str:
    """The kind of sampler a file was distilled for."""
    if profile.ancestral or (profile.gamma or 0) > 0:
        return "ancestral"
    return "renoised" if profile.determinism == 0 else "fixed"


def _sampler_level(kind: str, wanted: str, name: str, profile: PCMProfile) -> Level | None:
    if not kind or kind == wanted:
        higher = wanted == "fixed" and profile.sampling_class == "phased" and name not in FIRST_ORDER
        return "doubtful" if kind and higher else None
    if wanted == "fixed":
        return "wrong" if profile.sampling_class == "phased" else "doubtful"
    if wanted == "renoised":
        return "wrong" if kind == "fixed" else "doubtful"
    return "doubtful"


def judge_strength(run: Run, file: FewStepFile) -> Iterator[Finding]:
    """A LoRA stronger or weaker than its file is made for."""
    have, want = file.strength.number, file.wanted_strength
    if file.kind != "lora" or have is None:
        return
    if file.profile.strength_no_alpha and not file.ours and 0.1 <= have <= 1.6:
        return  # the name does not say whether the file has alpha keys
    ratio = have / want
    if 0.5 <= ratio <= 1.7:
        return
    level: Level = "doubtful" if 0.3 <= ratio <= 3.05 else "wrong"
    mends = set_value(file.strength, Place(file.node.id, "strength_model"), want)
    facts = {"have": f"{have:g}", "want": f"{want:g}"}
    yield finding(run, file, "strength", level, node=file.node, mends=mends, facts=facts)
