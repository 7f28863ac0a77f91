"""The plan: every decomposition judged, the best ones with their estimates, the rest counted by reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hpcdl.errors import HpcdlError, InfeasibleError
from hpcdl.planner import memory, offload, rank
from hpcdl.planner.case import Case
from hpcdl.planner.cautions import cautions
from hpcdl.planner.engines import HPCDL, Engine
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.layout import check_precision, find_partition, spread
from hpcdl.planner.rank import Candidate, Pool
from hpcdl.planner.space import Bools, Candidates, Space, lawful, search_space, smallest
from hpcdl.planner.without import Without, related, savings
from hpcdl.sites.profile import Profile, default_profile
from hpcdl.sites.site import Site
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Layout
from hpcdl.units import GIB

TOP = 20
"""Candidates that a plan keeps."""

_NO_MEMORY = "memory"
_NEIGHBOURS = 33  # device counts that are tried on either side when nothing fits


@dataclass(frozen=True)
class Plan:
    """What the planner found. ``infeasible`` says why an explicit decomposition cannot run."""

    experiment: str
    site: str
    gpus: int
    layout: Layout
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
    warnings: tuple[str, ...] = ()  # settings of the best that do not save what they are there to save

    @property
    def best(self) -> Candidate:
        """The fastest candidate."""
        return self.candidates[0]

    def to_json(self, top: int = TOP) -> dict[str, Any]:
        """The object that ``hpcdl plan --json`` prints."""
        names = ("experiment", "site", "gpus", "evaluated", "feasible", "refused", "search_seconds")
        document = {name: getattr(self, name) for name in names}
        return {
            **document,
            "candidates": [candidate.to_json() for candidate in self.candidates[:top]],
            "without": {name: one.to_json() for name, one in self.without.items()},
            "warnings": list(self.warnings),
        }


def plan(
    experiment: Experiment,
    site: Site,
    gpus: int,
    profile: Profile | None = None,
    engine: Engine = HPCDL,
) -> Plan:
    """Search, or judge the decomposition that the experiment gives.

    Args:
        experiment: what is trained.
        site: where.
        gpus: devices in all, one rank each. They lie as ``resources`` says, else on the fewest nodes.
        profile: what devices reach of their peaks; by default the shipped one of their kind.
        engine: what is to run it.

    Raises:
        InfeasibleError: ``parallelism: auto`` and no decomposition fits, with the reasons counted.
        UsageError: no such queue, or a precision the device lacks.
    """
    started = time.perf_counter()
    case = build_case(experiment, site, _default_layout(experiment, site, gpus), profile)
    case = replace(case, engine=engine)
    ask = _Ask(experiment, site, case, started)
    if isinstance(experiment.parallelism, Decomposition):
        return _judge(ask, experiment.parallelism)
    space = search_space(ask.gpus, experiment.shape, experiment.training.global_batch, engine)
    judged = offload.variants(case, space.candidates)
    if not judged.fitting.any():
        raise _nothing_fits(ask, space, judged)
    return _ranked(ask, space, judged)


def build_case(experiment: Experiment, site: Site, layout: Layout, profile: Profile | None = None) -> Case:
    """What the cost model needs to know, with the precision checked."""
    node = site.nodes[find_partition(experiment.resources.queue, site)[1].node]
    check_precision(experiment.training.precision, node)
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
            layout=self.case.layout,
            budget_gib=memory.budget(self.case) / GIB,
            search_seconds=time.perf_counter() - self.started,
            **found,
        )

    def works_on(self, gpus: int) -> bool:
        """Whether anything fits on ``gpus`` devices of the same kind."""
        try:
            layout = _default_layout(self.experiment, self.site, gpus)
        except HpcdlError:
            return False
        case = replace(self.case, layout=layout)
        leanest = smallest(gpus, case.model, case.training.global_batch, case.engine)
        return bool(offload.variants(case, leanest).fitting.any())


def _default_layout(experiment: Experiment, site: Site, gpus: int) -> Layout:
    asked = experiment.resources
    if asked.gpus == gpus:
        return spread(asked, site)
    return spread(asked.model_copy(update=dict(gpus=gpus, nodes=None)), site)


def _ranked(ask: _Ask, space: Space, judged: offload.Judged) -> Plan:
    fitting = Pool(ask.case, judged.candidates.take(judged.fitting))
    seconds = step_tree(ask.case, fitting.candidates).value
    ordered = rank.order(fitting.candidates, seconds)
    choices = dict(rank.rivals(fitting.candidates, ordered))
    count = min(TOP, len(ordered))
    picked = fitting.pick(ordered, [*range(count), *choices.values()])
    best = picked[0].decomposition
    misfits = len(judged.need) - len(fitting)
    return ask.answer(
        evaluated=len(judged.need) + sum(space.refused.values()),
        feasible=len(fitting),
        refused={**space.refused, _NO_MEMORY: misfits} if misfits else space.refused,
        candidates=picked[:count],
        rivals=dict(zip(choices, picked[count:], strict=True)),
        nearest_misfit=_leanest(ask.case, judged, judged.candidates.plain & ~judged.fitting),
        without=savings(ask.case, best, space.candidates),
        warnings=cautions(ask.case, best),
    )


def _leanest(case: Case, judged: offload.Judged, which: Bools) -> Candidate | None:
    """Of some, the one that comes closest to the memory there is."""
    places = np.flatnonzero(which)
    if not len(places):
        return None
    least = places[np.argmin(judged.need[places])]
    return Pool(case, judged.candidates).pick(np.array([least]), [0])[0]


def _judge(ask: _Ask, d: Decomposition) -> Plan:
    """The plan that holds exactly ``d``, whether it can run or not."""
    case = ask.case
    reasons = _objections(case, d)
    (estimated,) = Pool(case, Candidates.of(d)).pick(np.array([0]), [0])
    if not memory.fits(case, Candidates.of(d))[0]:
        reasons[_NO_MEMORY] = "\n".join([_too_big(case, estimated), *_offload_helps(case, d)])
    candidate = replace(estimated, decomposition=d, notes=(*reasons.values(), *estimated.notes))
    return ask.answer(
        evaluated=1,
        feasible=0 if reasons else 1,
        refused=dict.fromkeys(list(reasons)[:1], 1),
        candidates=(candidate,),
        infeasible="\n".join(reasons.values()) or None,
        without={} if set(reasons) - {_NO_MEMORY} else savings(case, d, _related(case, d)),
        warnings=cautions(case, d),
    )


def _related(case: Case, d: Decomposition) -> Candidates:
    """What differs from ``d`` in data and pipeline alone."""
    candidates = search_space(d.ranks, case.model, case.training.global_batch, case.engine).candidates
    same = related(d, candidates)
    return same.take(lawful(same, case.model, case.training.global_batch, case.engine))


def _objections(case: Case, d: Decomposition) -> dict[str, str]:
    model, batch = case.model, case.training.global_batch
    broken = violations(d, model, batch, case.engine.rules)
    reasons = {name: f"parallelism: {words}" for name, words in broken.items()}
    if d.ranks == case.layout.ranks:
        return reasons
    product = f"data {d.data} × pipeline {d.pipeline} × x {d.x} × y {d.y} × z {d.z} = {d.ranks} ranks"
    return {"ranks": f"parallelism: {product}, but the job has {case.layout.ranks} devices", **reasons}


def _too_big(case: Case, candidate: Candidate) -> str:
    device, host = memory.budget(case) / GIB, memory.host_budget(case) / GIB
    if candidate.memory_gib <= device and not case.one_memory:
        return (
            f"{candidate.decomposition} keeps {candidate.host_memory_gib:.1f} GiB a rank in host memory, but "
            f"{host:.1f} GiB of it are there after a margin of {memory.MARGIN:.0%}"
        )
    term, gib = max(candidate.memory_breakdown.items(), key=lambda item: item[1])
    beside = f" and {candidate.host_memory_gib:.1f} GiB of the same memory" if case.one_memory else ""
    return (
        f"{candidate.decomposition} needs {candidate.memory_gib:.1f} GiB a rank, most of it {term} "
        f"({gib:.1f} GiB){beside * (candidate.host_memory_gib > 0)}, but {device:.1f} GiB are there after a "
        f"margin of {memory.MARGIN:.0%}"
    )


def _offload_helps(case: Case, d: Decomposition) -> Iterator[str]:
    """Which offload would make ``d`` fit, as advice; nothing where none does."""
    if case.one_memory:
        return
    for level in ("optimizer", "parameters"):
        lighter = d.model_copy(update={"offload": level})
        if memory.fits(case, Candidates.of(lighter))[0]:
            (found,) = Pool(case, Candidates.of(lighter)).pick(np.array([0]), [0])
            yield (
                f"with parallelism.offload: {level} it needs {found.memory_gib:.1f} GiB a rank and "
                f"{found.host_memory_gib:.1f} GiB of host memory, and fits"
            )
            return


def _nothing_fits(ask: _Ask, space: Space, judged: offload.Judged) -> InfeasibleError:
    misfits = len(judged.need)
    refused = {**space.refused, **({_NO_MEMORY: misfits} if misfits else {})}
    dominant = max(refused, key=lambda name: refused[name])
    counts = ", ".join(f"{name} {count}" for name, count in refused.items())
    message = (
        f"none of {sum(refused.values())} decompositions of {ask.experiment.name} over {ask.gpus} devices of "
        f"{ask.site.name} can run; most are refused by {dominant} ({counts})"
    )
    plain = judged.candidates.plain
    for those in (plain, ~plain):
        leanest = _leanest(ask.case, judged, those)
        if leanest:
            held = rank.offloaded(leanest.decomposition)
            words = "" if held == "none" else f" with offload {held}"
            message += f"\nthe leanest{words}, {_too_big(ask.case, leanest)}"
    near = ", ".join(map(str, _feasible_counts(ask)))
    sizes = f"the nearest device counts that work: {near}" if near else "no device count near this one works"
    return InfeasibleError(message, f"{sizes}; or change training.global_batch or the model")


def _feasible_counts(ask: _Ask) -> list[int]:
    """The nearest number of devices below and above for which something fits."""
    below = [*range(ask.gpus - 1, max(0, ask.gpus - _NEIGHBOURS), -1)]
    above = [*range(ask.gpus + 1, ask.gpus + _NEIGHBOURS), *(ask.gpus << shift for shift in range(1, 8))]
    nearest = (next(filter(ask.works_on, side), None) for side in (below, sorted(above)))
    return [count for count in nearest if count]
