"""The plan: every decomposition judged, the best ones with their estimates, the rest counted by reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hpcdl.planner import memory, rank
from hpcdl.planner.advice import Sizes, default_layout, nearest, nothing_fits, too_big, what_helps
from hpcdl.planner.case import Case
from hpcdl.planner.cautions import cautions
from hpcdl.planner.engines import HPCDL, Engine
from hpcdl.planner.layout import check_precision, find_partition
from hpcdl.planner.limits import check_sizes
from hpcdl.planner.rank import Candidate, Pool
from hpcdl.planner.search import Search, Watch
from hpcdl.planner.space import Candidates
from hpcdl.planner.without import Without, savings
from hpcdl.sites.profile import Profile, default_profile
from hpcdl.sites.site import Site
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Layout
from hpcdl.units import GIB

TOP = 20
"""Candidates that a plan keeps."""

_NO_MEMORY = "memory"


@dataclass(frozen=True)
class Plan:
    """What the planner found. ``infeasible`` says why an explicit decomposition cannot run."""

    experiment: str
    site: str
    gpus: int
    case: Case  # what was asked, as the cost model sees it
    evaluated: int
    feasible: int
    refused: dict[str, int]
    search_seconds: float
    candidates: tuple[Candidate, ...]
    budget_gib: float  # a rank's memory less the margin
    rivals: dict[str, Candidate] = field(default_factory=dict)  # choice → the fastest that differs in it
    nearest_misfit: Candidate | None = None  # of those that do not fit, the one that needs least
    infeasible: str | None = None
    without: dict[str, Without] = field(default_factory=dict)  # what would be left without saving memory
    warnings: tuple[str, ...] = ()  # settings of the best that save nothing, and what is not certain
    slower: int = 0  # decompositions that were not judged, as they cannot be among those shown
    interrupted: bool = False  # this is the best of what was looked at before somebody pressed Ctrl-C

    @property
    def layout(self) -> Layout:
        """Where the ranks lie."""
        return self.case.layout

    @property
    def best(self) -> Candidate:
        """The fastest candidate."""
        return self.candidates[0]

    def to_json(self, top: int = TOP) -> dict[str, Any]:
        """The object that ``hpcdl plan --json`` prints."""
        names = (
            "experiment", "site", "gpus", "evaluated", "feasible", "slower", "refused", "search_seconds",
            "interrupted",
        )  # fmt: skip
        document = {name: getattr(self, name) for name in names}
        return {
            **document,
            "engine": self.case.engine.name,
            "candidates": [candidate.to_json() for candidate in self.candidates[:top]],
            "without": {name: one.to_json() for name, one in self.without.items()},
            "warnings": list(self.warnings),
        }


def plan(  # noqa: PLR0913, PLR0917 - what is asked, and how it is to be answered
    experiment: Experiment,
    site: Site,
    gpus: int,
    profile: Profile | None = None,
    engine: Engine = HPCDL,
    watch: Watch | None = None,
) -> Plan:
    """Search, or judge the decomposition that the experiment gives.

    Args:
        experiment: what is trained.
        site: where.
        gpus: devices in all, one rank each. They lie as ``resources`` says, else on the fewest nodes.
        profile: what devices reach of their peaks; by default the shipped one of their kind.
        engine: what is to run it.
        watch: told during a search how many parts of how many are done. With it Ctrl-C ends only the search,
            and the plan is of what was found.

    Raises:
        InfeasibleError: ``parallelism: auto`` and no decomposition fits, with the reasons counted.
        UsageError: no such queue, a precision the device lacks, or a number beyond all machines.
    """
    started = time.perf_counter()
    check_sizes(experiment, gpus)
    case = build_case(experiment, site, default_layout(experiment, site, gpus), profile)
    case = replace(case, engine=engine)
    ask = _Ask(experiment, site, case, started)
    if isinstance(experiment.parallelism, Decomposition):
        return _judge(ask, experiment.parallelism)
    return _ranked(ask, _searched(case, ask, watch))


def _searched(case: Case, ask: _Ask, watch: Watch | None) -> Search:
    """The whole space, with activations on the host where nothing fits otherwise.

    Raises:
        InfeasibleError: nothing fits even so.
        KeyboardInterrupt: nothing was found yet when it was stopped.
    """
    search = Search.through(case, TOP, watch=watch)
    if not (len(search.leaders) or search.interrupted or case.one_memory):
        first, search = search, Search.through(case, TOP, activations=True, watch=watch)
        search.add_misfits(first)
    if not len(search.leaders):
        if search.interrupted:
            raise KeyboardInterrupt
        raise nothing_fits(
            ask.sizes, search.refused, [one for _, one in sorted(search.leanest.items(), reverse=True)]
        )
    return search


def estimate(
    experiment: Experiment,
    site: Site,
    decomposition: Decomposition,
    profile: Profile | None = None,
    engine: Engine = HPCDL,
) -> Candidate:
    """Judge one decomposition on as many devices as it has ranks, whatever ``parallelism`` says.

    Args:
        experiment: what is trained.
        site: where.
        decomposition: how it is spread over ranks.
        profile: as of ``plan``.
        engine: what is to run it.

    Returns:
        Its estimate, also if it cannot run; then ``refusals`` says why.

    Raises:
        InfeasibleError, SiteError: the site cannot place so many ranks.
        UsageError: no such queue, or a precision the device lacks.
    """
    asked = experiment.model_copy(update={"parallelism": decomposition})
    return plan(asked, site, decomposition.ranks, profile, engine).best


def build_case(experiment: Experiment, site: Site, layout: Layout, profile: Profile | None = None) -> Case:
    """What the cost model needs to know, with the precision checked."""
    queue = experiment.resources.queue
    node = site.nodes[find_partition(queue, site)[1].node]
    check_precision(experiment.training.precision, queue, site)
    profile = profile or default_profile(node.device)
    overlap = experiment.communication.overlap
    return Case(experiment.shape, experiment.training, node, site.network, layout, profile, overlap=overlap)


@dataclass(frozen=True)
class _Ask:
    """What was asked, and when."""

    experiment: Experiment
    site: Site
    case: Case
    started: float

    @property
    def gpus(self) -> int:
        """Ranks in all."""
        return self.case.layout.ranks

    def answer(self, **found: Any) -> Plan:
        """A plan with what was asked filled in."""
        return Plan(
            experiment=self.experiment.name,
            site=self.site.name,
            gpus=self.gpus,
            case=self.case,
            budget_gib=memory.budget(self.case) / GIB,
            search_seconds=time.perf_counter() - self.started,
            **found,
        )

    @property
    def sizes(self) -> Sizes:
        """Other numbers of devices."""
        return Sizes(self.experiment, self.site, self.case)


def _ranked(ask: _Ask, search: Search) -> Plan:
    leaders = search.leaders
    ordered = np.arange(len(leaders))
    choices = dict(rank.rivals(leaders.candidates, ordered))
    count = min(TOP, len(leaders))
    fitting = Pool(ask.case, leaders.candidates)
    picked = fitting.pick(ordered, [*range(count), *choices.values()], leaders.driven)
    best = picked[0].decomposition
    closest = search.leanest.get(True)
    return ask.answer(
        evaluated=search.fitting + sum(search.refused.values()) + search.slower,
        feasible=search.fitting,
        slower=search.slower,
        refused=search.refused,
        candidates=picked[:count],
        rivals=dict(zip(choices, picked[count:], strict=True)),
        nearest_misfit=closest and _undriven(ask.case, closest.candidates),
        without={} if search.interrupted else savings(ask.case, best),  # searches once more
        warnings=(*cautions(ask.case, best), *_doubts(search)),
        interrupted=search.interrupted,
    )


def _undriven(case: Case, one: Candidates) -> Candidate:
    return Pool(case, one).pick(np.array([0]), [0], drive=np.zeros(1, dtype=np.bool_))[0]


def _doubts(search: Search) -> Iterator[str]:
    """What is not certain of the best."""
    if len(search.doubtful):
        gain = search.leaders.seconds[0] / search.doubtful.min() - 1
        yield f"{len(search.doubtful)} long pipelines were not simulated; none is more than {gain:.1%} faster"
    if search.interrupted:
        yield f"stopped after {search.done} of {search.space.parts} parts of the search: the best so far"


def _judge(ask: _Ask, d: Decomposition) -> Plan:
    """The plan that holds exactly ``d``, whether it can run or not."""
    case = ask.case
    reasons = _objections(case, d)
    (estimated,) = Pool(case, Candidates.of(d)).pick(np.array([0]), [0])
    if not memory.fits(case, Candidates.of(d))[0]:
        reasons[_NO_MEMORY] = "\n".join([too_big(case, estimated), *what_helps(case, d)])
    refusals = tuple(reasons.values())
    candidate = replace(estimated, decomposition=d, notes=(*refusals, *estimated.notes), refusals=refusals)
    return ask.answer(
        evaluated=1,
        feasible=0 if reasons else 1,
        refused=dict.fromkeys(list(reasons)[:1], 1),
        candidates=(candidate,),
        infeasible="\n".join(reasons.values()) or None,
        without={} if set(reasons) - {_NO_MEMORY} else savings(case, d, alike_only=True),
        warnings=cautions(case, d),
    )


def _objections(case: Case, d: Decomposition) -> dict[str, str]:
    model, batch = case.model, case.training.global_batch
    broken = violations(d, model, batch, case.engine.rules)
    reasons = {
        name: f"parallelism: {words}{nearest(name, d, model, batch)}" for name, words in broken.items()
    }
    if d.ranks == case.layout.ranks:
        return reasons
    product = f"data {d.data} × pipeline {d.pipeline} × x {d.x} × y {d.y} × z {d.z} = {d.ranks} ranks"
    return {"ranks": f"parallelism: {product}, but the job has {case.layout.ranks} devices", **reasons}
