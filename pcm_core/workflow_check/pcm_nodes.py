"""The other mend: our loader and sampler in the place of the stock ones, with the same links, prompts and seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..video import expert_edge
from .check import Report
from .exchange import Exchange, NoExchangeError
from .files import FewStepFile
from .finding import Bypass, Mend, Remove, Replace, SetWidget
from .graph import Graph
from .judge_graph import pairs, split_of
from .judge_levels import shifts_on
from .judge_run import wanted_steps
from .pcm_loaders import loader_steps
from .pcm_samplers import VIDEO, Values, name_of, sampler_steps, scope, whole
from .runs import Run
from .schedules import Schedules, wanted_levels

_PARTS = ("SamplerPCM", "PCMPhaseScheduler", "PCMGuider")
_BOUNDARY = 875  # the default of PCM Video Sampler


def spoken_for(run: Run) -> tuple[FewStepFile, ...]:
    """The files that say how a run is sampled: PCM Settings alone where there is one, which stays with its loaders."""
    return (*_speaking(run.files), *_speaking(run.second))


def _speaking(files: Sequence[FewStepFile]) -> tuple[FewStepFile, ...]:
    return tuple(file for file in files if file.settings) or tuple(files)


def _count(files: Sequence[FewStepFile]) -> int:
    return len({file.place for file in _speaking(files)})


class Exchanges:
    """What "Use PCM nodes" would do in one workflow."""

    def __init__(self, graph: Graph, report: Report, schedules: Schedules) -> None:
        self.graph, self.runs, self.schedules = graph, report.runs, schedules
        self.findings = report.findings
        self.pairs = pairs(graph, report.runs)
        self.partners = {run.node.id: pair for pair in self.pairs for run in pair}
        self.order = {run.node.id: index for index, run in enumerate(self.runs)}
        self.groups: dict[str, list[Run]] = {}
        self.counts = {run.node.id: max(map(_count, (run.files, run.second))) for run in self.runs}
        self.by_file: dict[str, list[Run]] = {}
        for run in report.runs:
            for file in {other.node.id for other in (*run.files, *run.second)}:
                self.by_file.setdefault(file, []).append(run)

    def of(self, file: FewStepFile) -> Exchange:
        """What it would do for a file, and for whatever shares a sampler with it."""
        try:
            return Exchange(steps=tuple(self._steps(file)))
        except NoExchangeError as no:
            return Exchange(reason=no.reason)

    def _steps(self, file: FewStepFile) -> list[Mend]:
        """The steps for a file, and for every file whose sampler shares a part with its own."""
        nodes = [file.node.id]
        while True:
            sampled = self._sampled(nodes)
            if not sampled:
                raise NoExchangeError("unused", file=file.title)
            steps = self._changes(sampled, file)
            sharing = self._sharing(steps, sampled, file)
            if not sharing:
                return self._in_order(steps, sampled)
            nodes += sharing

    def _changes(self, sampled: Sequence[Run], file: FewStepFile) -> list[Mend]:
        steps: list[Mend] = []
        for run in sampled:
            if self.counts[run.node.id] > 1:
                raise NoExchangeError("two_files", count=self.counts[run.node.id])
            for other in spoken_for(run):
                if other.profile.sampling_class == "unsupported":
                    raise NoExchangeError("unsupported", family=other.profile.method)
                steps += loader_steps(self.graph, run, other)
        steps += self._sampler_steps(sampled)
        if not steps:
            raise NoExchangeError("ours" if any(run.ours for run in sampled) else "nothing", file=file.title)
        ours = {run.node.id for run in sampled if run.ours}
        settings = [mend for found in self.findings if found.node in ours for mend in found.mends]
        return [*steps, *settings, *self._shift_nodes(sampled)]

    def _sampled(self, nodes: Sequence[str]) -> list[Run]:
        """The runs of the files in these nodes, of their partners, and of the files on those."""
        found = {run.node.id: run for node in nodes for run in self._together(node)}
        return sorted(found.values(), key=lambda run: self.order[run.node.id])

    def _together(self, node: str) -> list[Run]:
        """The runs that a file's node belongs to, with every run that shares a file or a schedule with one of them."""
        if node not in self.groups:
            found: dict[str, Run] = {}
            waiting, seen = [node], {node}
            while waiting:
                for run in self.by_file.get(waiting.pop(), []):
                    new = [other for other in (run, *self.partners.get(run.node.id, ())) if other.node.id not in found]
                    found |= {other.node.id: other for other in new}
                    more = {file.node.id for other in new for file in (*other.files, *other.second)} - seen
                    seen |= more
                    waiting += more
            runs = list(found.values())
            self.groups |= {entry: runs for entry in seen}
        return self.groups[node]

    def _sampler_steps(self, sampled: Sequence[Run]) -> Iterator[Mend]:
        done: set[str] = set()
        for first, second in self.pairs:
            if first in sampled and not (first.ours or second.ours):
                done |= {first.node.id, second.node.id}
                yield from self._pair(first, second)
                yield from (Remove(first.node.id), Remove(second.node.id))
        for run in sampled:
            if run.node.id not in done and not run.ours:
                yield from sampler_steps(self.graph, run, spoken_for(run)[0])

    def _pair(self, first: Run, second: Run) -> Iterator[Mend]:
        """Two experts become PCM Video Sampler; two parts of one schedule otherwise two PCM Samplers."""
        one, two, file = first.node, second.node, spoken_for(first)[0]
        split = split_of(first, second, file.profile.steps)
        words = [self.graph.source(node.id, name) for name in ("positive", "negative") for node in (one, two)]
        apart = {node.id for node in first.models}.isdisjoint(node.id for node in second.models)
        together = words[0] == words[1] and words[2] == words[3] and scope(one.id) == scope(two.id)
        low, usual, most = wanted_steps(file.profile)
        steps = first.sigmas.steps.count
        count = steps if steps is not None and low <= steps <= most else usual
        if file.profile.base_model in VIDEO and apart and together and count > 1:
            step = whole(self.graph, first, file)
            values = (*step.values, *self._boundary(file, count, split))
            inputs = (*step.inputs, ("second_model", two.id, second.model_input))
            yield Replace(at=one.id, type=step.type, values=values, inputs=inputs, outputs=((two.id, 0, 0),))
            return
        part: Values = [("add_noise", True), ("end_step", split), ("return_with_leftover_noise", True)]
        yield whole(self.graph, first, file, part)
        yield whole(self.graph, second, spoken_for(second)[0], [("add_noise", False), ("start_step", split)])

    def _boundary(self, file: FewStepFile, steps: int, split: int) -> Values:
        """The boundary that gives the first expert as many steps as before; none where the usual one does."""
        table = self.schedules.table(file.profile.base_model, file.profile.shift)
        levels = wanted_levels(file.profile, table, steps) if table is not None else None
        if table is None or levels is None or not 0 < split < len(levels) - 1:
            return []
        usual, _ = expert_edge(levels, _BOUNDARY, table)
        return [] if usual == levels[split] else [("boundary", round(1000 * levels[split]))]

    def _shift_nodes(self, runs: Iterable[Run]) -> Iterator[Mend]:
        """A ModelSampling node goes before the file's own shift in our nodes: one that says another is taken out."""
        for run in runs:
            want = spoken_for(run)[0].profile.shift
            for shift in shifts_on(self.graph, run.models, run.files):
                same = want is not None and shift.number is not None and abs(shift.number / want - 1) <= 0.005
                if want is not None and not same and not shift.node.type.startswith("PCM"):
                    yield Bypass(shift.node.id)

    def _in_order(self, steps: Sequence[Mend], sampled: Sequence[Run]) -> list[Mend]:
        """Each change of a stored node once, and what goes at the end, unless something still needs it."""
        kept: dict[tuple[str, str, str], Mend] = {}
        for step in steps:
            node = step.at if isinstance(step, Replace) else step.node
            widget = step.widget if isinstance(step, SetWidget) else ""
            kept.setdefault((type(step).__name__, self.graph.nodes[node].stored, widget), step)
        replaced = {step.at for step in kept.values() if isinstance(step, Replace)}
        going = {step.node for step in steps if isinstance(step, Remove)}
        while needed := {node for node in going - replaced - self._samplers(sampled) if self._feeds(node) - going}:
            going -= needed
        changes = [step for step in kept.values() if not isinstance(step, Remove)]
        return [*changes, *(Remove(node) for node in going_in_order(kept.values(), going))]

    def _samplers(self, sampled: Sequence[Run]) -> set[str]:
        return {run.node.id for run in sampled}

    def _feeds(self, node: str) -> set[str]:
        return {target for target, _ in self.graph.consumers().get(node, [])}

    def _sharing(self, steps: Sequence[Mend], sampled: Sequence[Run], file: FewStepFile) -> list[str]:
        """Loaders of other few-step files whose samplers use a part that is exchanged.

        Raises:
            NoExchangeError: if a sampler without such a file uses one.
        """
        known = {run.node.id: run for run in self.runs}
        parts = [step.at for step in steps if isinstance(step, Replace) and step.type in _PARTS]
        ours, found = self._samplers(sampled), list[str]()
        for part in parts:
            for target in self._served(part) - ours:
                if target not in known:
                    node, other = name_of(self.graph, part), name_of(self.graph, target)
                    raise NoExchangeError("shared", node=node, other=other, file=file.title)
                found += [entry.node.id for entry in (*known[target].files, *known[target].second)]
        return found

    def _served(self, part: str) -> set[str]:
        """The active samplers that a part of a custom sampler serves."""
        waiting, seen, found = [part], set[str](), set[str]()
        while waiting:
            for target in self._feeds(waiting.pop()) - seen:
                seen.add(target)
                if "latent_image" not in self.graph.nodes[target].inputs:
                    waiting.append(target)
                elif self.graph.nodes[target].mode == 0:
                    found.add(target)
        return found


def going_in_order(steps: Iterable[Mend], going: set[str]) -> list[str]:
    """The nodes to remove, each once, in the order they were named."""
    return list(dict.fromkeys(step.node for step in steps if isinstance(step, Remove) and step.node in going))
