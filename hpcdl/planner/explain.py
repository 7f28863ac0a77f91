"""Why this decomposition: its terms, what its rivals lose by, and what was refused. Plain lines of text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.planner import memory
from hpcdl.planner.estimate import FORMULAS
from hpcdl.planner.plan import Plan
from hpcdl.planner.rank import Candidate, Pool, offloaded
from hpcdl.planner.remedies import remedies
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import AXES, ENGINE_RULES, RULES, Decomposition
from hpcdl.spec.job import Overlap
from hpcdl.units import GIB, format_bytes, format_seconds

_SHOWN = 0.005  # terms and differences below this share of a step are left out
# The rules' messages less the places for values: here they stand for many candidates at once.
_CONDITIONS = {rule.name: re.sub(r" ?\{[^}]*\}", "", rule.message) for rule in (*RULES, *ENGINE_RULES)}


def explain(plan: Plan, rank: int = 1) -> list[str]:
    """The candidate of ``rank`` taken apart, then the best's rivals and the refusals.

    Raises:
        UsageError: the plan holds no such rank.
    """
    candidate = chosen(plan, rank)
    lines = [_headline(candidate), "", *_time(candidate), *_without_overlap(plan, candidate)]
    lines += ["", *_memory(candidate, plan.budget_gib), _stages(plan, candidate)]
    if candidate.memory_gib > plan.budget_gib:
        lines += ["", *_remedies(plan, candidate)]
    if plan.without:
        lines += ["", *_without(plan)]
    if plan.rivals:
        lines += ["", "the best against the fastest that differs in", *_rivals(plan)]
    if plan.refused:
        lines += ["", _counts(plan), *_refusals(plan)]
    return [*lines, "", *candidate.notes]


def explanation(plan: Plan, rank: int = 1) -> dict[str, Any]:
    """What ``explain`` tells, as plain values under documented names.

    Raises:
        UsageError: the plan holds no such rank.
    """
    peaks = memory.by_stage(plan.case, chosen(plan, rank).decomposition)
    stages = [{"stage": peak.stage, "moment": peak.moment, "gib": peak.bytes / GIB} for peak in peaks]
    rivals = {name: _against(plan.best, rival) for name, rival in plan.rivals.items()}
    candidate = chosen(plan, rank)
    refused = {reason: {"count": count, "why": _why(plan, reason)} for reason, count in plan.refused.items()}
    misfit = _misfit(plan)
    found = remedies(plan.case, misfit.decomposition) if misfit else ()
    changes = [{"change": remedy.change, "need": remedy.need, "fits": remedy.suffices} for remedy in found]
    return {
        "rank": rank,
        "stages": stages,
        "rivals": rivals,
        "overlap_off": _against(candidate, _nothing_beside(plan, candidate)),
        "refused": refused,
        "nearest_misfit": misfit and misfit.to_json(),
        "remedies": changes,
    }


def _against(best: Candidate, rival: Candidate) -> dict[str, Any]:
    """How much slower ``rival`` is, and by which terms."""
    differences = {term: seconds - best.breakdown[term] for term, seconds in rival.breakdown.items()}
    slower = rival.step_seconds / best.step_seconds - 1
    return {"candidate": rival.to_json(), "slower": slower, "differences": differences}


def chosen(plan: Plan, rank: int) -> Candidate:
    """The candidate of ``rank``.

    Raises:
        UsageError: the plan holds no such rank.
    """
    if not 1 <= rank <= len(plan.candidates):
        raise UsageError(f"rank {rank} is not in this plan, which holds 1 to {len(plan.candidates)}")
    return plan.candidates[rank - 1]


def described(d: Decomposition) -> str:
    """A decomposition in words: degrees, microbatch, recomputation, and what else is not as by default."""
    every = f" every {d.recompute_every}" if d.recompute_every > 1 else ""
    seldom = {
        f"ZeRO-{d.zero}": d.zero > 0,
        "sequence parallel": d.sequence_parallel,
        f"{d.interleave} chunks a rank": d.interleave > 1,
        "weight gradients deferred": d.defer_weights,
        f"{d.in_flight} in flight": d.in_flight,
        f"order {d.order}": d.order != Decomposition().order,
        f"offload {offloaded(d)}": offloaded(d) != "none",
    }
    parts = (f"microbatch {d.microbatch}", f"recompute {d.recompute}{every}")
    return ", ".join([str(d), *parts, *(words for words, chosen in seldom.items() if chosen)])


def _headline(candidate: Candidate) -> str:
    return (
        f"rank {candidate.rank}: {described(candidate.decomposition)}: "
        f"{format_seconds(candidate.step_seconds)} a step, {candidate.mfu:.1%} of peak"
    )


def _time(candidate: Candidate) -> Iterator[str]:
    for name, seconds in candidate.breakdown.items():
        share = seconds / candidate.step_seconds
        if share >= _SHOWN:
            yield f"  {format_seconds(seconds):>12}  {share:6.1%}  {name}: {FORMULAS[name]}"


def _memory(candidate: Candidate, budget_gib: float) -> Iterator[str]:
    needed, allowed = format_bytes(candidate.memory_gib * GIB), format_bytes(budget_gib * GIB)
    yield f"  {needed} of the {allowed} that a rank may use"
    for name, gib in candidate.memory_breakdown.items():
        if gib >= _SHOWN * candidate.memory_gib:
            share = gib / candidate.memory_gib
            yield f"  {format_bytes(gib * GIB):>12}  {share:6.1%}  {name}: {FORMULAS[name]}"
    if candidate.host_memory_gib:
        name = "host memory"
        yield f"  {format_bytes(candidate.host_memory_gib * GIB):>12}  besides  {name}: {FORMULAS[name]}"


def _stages(plan: Plan, candidate: Candidate) -> str:
    peaks = memory.by_stage(plan.case, candidate.decomposition)
    if len(peaks) == 1:
        return f"  its fullest moment: {peaks[0].moment}"
    each = (f"{peak.stage} {format_bytes(peak.bytes)} ({peak.moment})" for peak in peaks)
    return f"  fullest moment by stage: {', '.join(each)}"


def _remedies(plan: Plan, candidate: Candidate) -> Iterator[str]:
    """Every single change that would make a candidate fit, smallest first."""
    fitting = [remedy for remedy in remedies(plan.case, candidate.decomposition) if remedy.suffices]
    yield "it would fit with one of" if fitting else "no single change would make it fit"
    for remedy in fitting:
        yield f"  {remedy.need:6.1%} of what a rank may use: {remedy}"


def _without(plan: Plan) -> Iterator[str]:
    """What offload and pruning made possible."""
    for name, left in plan.without.items():
        does = "would fit" if left.fits else "would not fit"
        yield (
            f"without {name} the best {does}: {format_bytes(left.same.memory_gib * GIB)} a rank of "
            f"{format_bytes(plan.budget_gib * GIB)}"
        )
        if left.shallowest is None:
            yield "  no pipeline with the same x, y, z and microbatch would fit"
        else:
            yield f"  the shortest pipeline that fits otherwise alike: {_compared(plan, left.shallowest)}"
        if left.fastest:
            yield f"  the fastest that fits: {_compared(plan, left.fastest)}"


def _compared(plan: Plan, other: Candidate) -> str:
    change = other.step_seconds / plan.best.step_seconds - 1
    way = "slower" if change >= 0 else "faster"
    seconds = format_seconds(other.step_seconds)
    return f"{described(other.decomposition)}: {seconds} a step, {abs(change):.1%} {way}"


def _rivals(plan: Plan) -> Iterator[str]:
    for name, rival in plan.rivals.items():
        d = rival.decomposition
        own = f", {name} {getattr(d, name)}" if name not in AXES else ""
        slower = rival.step_seconds / plan.best.step_seconds - 1
        why = _difference(plan.best, rival) or "no term differs by much"
        yield f"  {name}: {d}{own} is {slower:.1%} slower: {why}"


def _without_overlap(plan: Plan, candidate: Candidate) -> Iterator[str]:
    """What running collectives beside computing is worth, where it changes anything."""
    off = _nothing_beside(plan, candidate)
    why = _difference(candidate, off)
    if why:
        slower = off.step_seconds / candidate.step_seconds - 1
        way = "slower" if slower >= 0 else "faster"
        yield f"  with communication.overlap switched off it is {abs(slower):.1%} {way}: {why}"


def _nothing_beside(plan: Plan, candidate: Candidate) -> Candidate:
    """The same decomposition with nothing beside computing."""
    off = Overlap(**dict.fromkeys(Overlap.model_fields, False))
    alone = Pool(replace(plan.case, overlap=off), Candidates.of(candidate.decomposition))
    return alone.pick(np.array([0]), [0])[0]


def _difference(best: Candidate, rival: Candidate) -> str:
    """The terms that changed most, largest first."""
    changes = {name: seconds - best.breakdown[name] for name, seconds in rival.breakdown.items()}
    ordered = sorted(changes.items(), key=lambda item: -abs(item[1]))
    shown = [item for item in ordered[:3] if abs(item[1]) >= _SHOWN * best.step_seconds]
    return ", ".join(
        f"{name} {'+' if change > 0 else '-'}{format_seconds(abs(change))}" for name, change in shown
    )


def _counts(plan: Plan) -> str:
    slower = f"; {plan.slower} more are slower, whether they fit or not" if plan.slower else ""
    return f"{plan.feasible} of {plan.evaluated} can run{slower}; refused"


def _refusals(plan: Plan) -> Iterator[str]:
    for reason, count in plan.refused.items():
        yield f"  {count:8}  {reason}: {_why(plan, reason)}"


def _why(plan: Plan, reason: str) -> str:
    return _CONDITIONS[reason] if reason in _CONDITIONS else _lack(plan)


def _misfit(plan: Plan) -> Candidate | None:
    """Of what does not fit, the leanest."""
    return plan.best if plan.infeasible and plan.best.memory_gib > plan.budget_gib else plan.nearest_misfit


def _lack(plan: Plan) -> str:
    """What the leanest of those that need too much memory spends it on."""
    misfit = _misfit(plan)
    if misfit is None:
        return "more than a rank's memory holds"
    term, gib = max(misfit.memory_breakdown.items(), key=lambda item: item[1])
    return (
        f"the leanest, {misfit.decomposition}, needs {misfit.memory_gib:.2f} of {plan.budget_gib:.2f} GiB, "
        f"most of it {term} ({gib:.1f} GiB); {_way_out(plan, misfit)}"
    )


def _way_out(plan: Plan, misfit: Candidate) -> str:
    """The smallest single change that would make it fit."""
    found = remedies(plan.case, misfit.decomposition)
    smallest = next((remedy for remedy in found if remedy.suffices), None)
    return f"it would fit with {smallest}" if smallest else "no single change would make it fit"
