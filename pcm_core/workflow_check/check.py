"""The check itself: from a workflow to a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .files import FewStepFile, Lookup, few_step_files
from .finding import LEVELS, Finding, Level
from .graph import Graph
from .judge_graph import judge_experts, judge_extra, judge_halves, judge_unused, judge_video_experts, pairs
from .judge_levels import judge_levels, judge_shift
from .judge_run import finding, judge_cfg, judge_sampler, judge_split, judge_steps, judge_strength
from .notes import Note
from .read import read_workflow
from .runs import Run, sampler_runs
from .schedules import ClosedForm, Schedules

_MOST_FINDINGS = 500


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a workflow does with its few-step files.

    Attributes:
        files: every few-step file, those switched off too.
        runs: every sampler that one reaches.
        findings: the worst first.
        skipped: what could not be judged.
    """

    files: tuple[FewStepFile, ...] = ()
    runs: tuple[Run, ...] = ()
    findings: tuple[Finding, ...] = ()
    skipped: tuple[Note, ...] = field(default=())

    @property
    def wrong(self) -> bool:
        """Whether anything is wrong, not only doubtful."""
        return any(found.level == "wrong" for found in self.findings)


def check(data: Any, schedules: Schedules | None = None) -> Report:
    """Check a workflow.

    Args:
        data: its JSON, UI or API form.
        schedules: what knows schedulers and base models; default what is known without ComfyUI.

    Raises:
        PCMError: if it is no workflow.
    """
    return check_graph(read_workflow(data), schedules or ClosedForm())


def check_graph(graph: Graph, schedules: Schedules, lookup: Lookup | None = None) -> Report:
    """Check a workflow that was read already; ``lookup`` as in ``few_step_files``."""
    files = few_step_files(graph, lookup)
    if not files:
        return Report(skipped=tuple(graph.notes))
    runs = sampler_runs(graph, files)
    skipped = list(graph.notes)
    found = list(judge_unused(graph, files, runs))
    roles: dict[str, tuple[Run, str]] = {}
    for first, second in pairs(graph, runs):
        found += judge_halves(first, second)
        roles |= {first.node.id: (second, "high"), second.node.id: (first, "low")}
    for run in runs:
        kept, extra = judge_extra(run)
        found += extra
        partner, role = roles.get(run.node.id, (None, ""))
        found += judge_video_experts(graph, run) if run.second_models else judge_experts(graph, run, partner, role)
        found += _judge(graph, run, kept, schedules, skipped)
        skipped += _computed(run, kept)
    order = {level: index for index, level in enumerate(LEVELS)}
    unique = {(f.rule, f.node, f.file, f.mends): f for f in found}
    ordered = sorted(unique.values(), key=lambda f: order[f.level])
    return Report(
        files=tuple(files),
        runs=tuple(runs),
        findings=tuple(ordered[:_MOST_FINDINGS]),
        skipped=tuple(dict.fromkeys(skipped)),
    )


def _judge(graph: Graph, run: Run, file: FewStepFile, schedules: Schedules, skipped: list[Note]) -> list[Finding]:
    if file.profile.sampling_class == "unsupported":
        # Nodes of its authors' own are what it needs; of those nothing is known here.
        level: Level = "wrong" if run.ours else "doubtful"
        known = run.ours or run.sampler.text
        return [finding(run, file, "unsupported", level, facts={"note": file.profile.note})] if known else []
    loaded = [other for other in run.files if other is not file] if file.settings else []
    return [
        *(found for other in (file, *loaded) for found in judge_strength(run, other)),
        *judge_steps(graph, run, file),
        *judge_split(graph, run, file),
        *judge_cfg(run, file),
        *judge_sampler(run, file),
        *judge_shift(graph, run, file),
        *judge_levels(graph, run, file, schedules, skipped),
    ]


def _computed(run: Run, file: FewStepFile) -> Iterator[Note]:
    """What no finding can be about, because another node computes it."""
    asked = {
        "steps": run.sigmas.steps, "cfg": run.cfg, "sampler": run.sampler, "scheduler": run.sigmas.scheduler,
        "strength": file.strength,
    }  # fmt: skip
    for name, value in asked.items():
        if not value.known and value.because:
            node = file.node if name == "strength" else run.node
            yield Note.of("computed", name=name, node=node.name, id=node.id, by=value.because)


@cache
def messages() -> Mapping[str, Mapping[str, tuple[str, str]]]:
    """What is said of each rule, by language: what the node does, what the file wants."""
    return json.loads(Path(__file__).with_name("messages.json").read_text(encoding="utf-8"))


def sentences(found: Finding, language: str = "en") -> tuple[str, str]:
    """What the node does and what the file wants, in a language (English where there is no other)."""
    texts = messages()[found.rule]
    does, wants = texts.get(language, texts["en"])
    facts = {name: str(value) for name, value in found.facts.items()}
    return does.format_map(facts), wants.format_map(facts)
