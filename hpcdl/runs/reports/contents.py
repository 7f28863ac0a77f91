"""What a report shows of a run, as plain values: numbers, words and curves. Pure; others draw it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from hpcdl.runs.blame import describe
from hpcdl.runs.reports.recorded import RankAccount, Recorded
from hpcdl.runs.reports.thinning import curve
from hpcdl.runs.reports.timeline import Span, spans
from hpcdl.spec.command import CommandRun
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import RunEvent
from hpcdl.units import GIB, said

CURVES = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens/s",
    "step_seconds": "seconds a step",
}
"""What is drawn over steps, by column, with its title."""

_RANKS = 64  # that are drawn; of more, the slowest and some between
_EVENTS = 200
# What a plan estimates and what a rank measures, brought together. What is not named is communication.
_PLANNED = {
    "compute": (
        "forward", "backward", "recompute", "host launches", "embedding", "head and loss",
        "overlapped compute", "host copies", "gradient compression", "shared cores",
    ),
    "optimizer": ("optimizer", "offloaded update", "expansion"),
    "idle and messages": ("pipeline bubble", "pipeline messages"),
    "other": ("step overhead",),
}  # fmt: skip
_MEASURED = {
    "compute": "compute",
    "optimizer": "optimizer",
    "idle": "idle and messages",
    "p2p": "idle and messages",
    "other": "other",
}
_COLLECTIVES = "collectives"


def view(found: Recorded, now: float) -> dict[str, Any]:
    """One run, ready to be drawn.

    Args:
        found: the run.
        now: Unix time, for what is still going on.
    """
    run = found.run
    return {
        "run": found.name,
        "name": run.experiment.name,
        "state": found.attempt.state.value,
        "reason": found.attempt.reason,
        "site": run.site,
        "what": what(found),
        "ranks": run.layout.ranks,
        "nodes": run.layout.nodes,
        "versions": run.versions,
        "experiment": found.experiment,
        "failure": _failure(found),
        "numbers": numbers(found),
        "curves": _curves(found),
        "accounts": [asdict(each) for each in _drawn(found.ranks)],
        "plan": _against_plan(found),
        "attempts": [_attempt(span) for span in spans(found)],
        "now": now,
        "events": [_event(each) for each in found.engine if each.kind != "evaluated"][-_EVENTS:],
    }


def what(found: Recorded) -> str:
    """What runs, in words."""
    if isinstance(found.run, ResolvedRun):
        return str(found.run.decomposition)
    return str(found.run.experiment.command) if isinstance(found.run, CommandRun) else ""


def numbers(found: Recorded) -> dict[str, Any]:
    """The figures of a run, by name; None where nothing is known, words for what is not finite.

    What a step usually takes is that of the shape which the run has now, as the plan is. Of a program of the
    user's own no step is known.
    """
    columns, steps = found.columns, found.run.experiment.steps
    planned = found.planned or {}
    begin = bisect_left(columns.attempt, found.since)

    def usual(name: str) -> float | None:
        return _warm(columns.numbers[name][begin:])

    def counted(value: float) -> float | None:
        return None if steps is None else value

    return {
        "step": counted(columns.step[-1] if columns.step else 0),
        "steps": steps,
        "tokens": counted(sum(columns.numbers["tokens"])),
        "first_loss": said(columns.numbers["loss"][0]) if columns.step else None,
        "last_loss": said(columns.numbers["loss"][-1]) if columns.step else None,
        "validation_loss": said(columns.validation[max(columns.validation)]) if columns.validation else None,
        "tokens_per_second": usual("tokens_per_second"),
        "step_seconds": usual("step_seconds"),
        "planned_step_seconds": planned.get("step_seconds"),
        "mfu": usual("mfu"),
        "planned_mfu": planned.get("mfu"),
        "memory_gib": _fullest(found.ranks),
        "planned_memory_gib": planned.get("memory_gib"),
        "training_seconds": counted(sum(columns.numbers["step_seconds"])),
        "node_hours": found.node_hours,
        "attempts": len(found.history),
    }


def _warm(values: Sequence[float]) -> float | None:
    """The median but for the first step, which warms up; None where no step has a number."""
    known = [value for value in (values[1:] or values) if math.isfinite(value)]
    return median(known) if known else None


def _fullest(ranks: Sequence[RankAccount]) -> float | None:
    known = [each.memory_peak for each in ranks if each.memory_peak is not None]
    return max(known) / GIB if known else None


def _curves(found: Recorded) -> dict[str, Any]:
    columns = found.columns
    drawn = {name: curve(columns.step, columns.numbers[name]) for name in CURVES}
    evaluated = sorted(columns.validation)
    drawn["validation_loss"] = curve(evaluated, [columns.validation[step] for step in evaluated])
    return drawn


def _drawn(ranks: Sequence[RankAccount]) -> list[RankAccount]:
    """Few enough ranks to be seen: some that are spread evenly, and the slowest."""
    if len(ranks) <= _RANKS:
        return list(ranks)
    slowest = sorted(ranks, key=lambda each: -sum(each.seconds.values()))[: _RANKS // 4]
    spread = [ranks[place * len(ranks) // (_RANKS - len(slowest))] for place in range(_RANKS - len(slowest))]
    return sorted({each.rank: each for each in [*slowest, *spread]}.values(), key=lambda each: each.rank)


def _against_plan(found: Recorded) -> list[dict[str, Any]]:
    """What a step was planned to take and takes, term by term; empty where either is not known."""
    accounts = [each.seconds for each in found.ranks if each.seconds]
    if not accounts or not found.planned:
        return []
    planned = _summed(found.planned.get("breakdown", {}), _category_of_term)
    measured: dict[str, float] = defaultdict(float)
    for name in {name for each in accounts for name in each}:
        measured[_MEASURED.get(name, _COLLECTIVES)] += fmean(each.get(name, 0.0) for each in accounts)
    return [
        {"term": term, "planned": planned.get(term, 0.0), "measured": measured.get(term, 0.0)}
        for term in ("compute", _COLLECTIVES, "idle and messages", "optimizer", "other")
    ]


def _summed(terms: Mapping[str, float], category: Any) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for term, seconds in terms.items():
        totals[category(term)] += seconds
    return totals


def _category_of_term(term: str) -> str:
    return next((category for category, terms in _PLANNED.items() if term in terms), _COLLECTIVES)


def _failure(found: Recorded) -> dict[str, Any] | None:
    diagnosis = found.diagnosis
    if diagnosis.culprit is None and diagnosis.cause is None:
        return None
    first = diagnosis.culprit
    return {
        "who": f"rank {first.rank} on {first.host}: {describe(first)}" if first else "",
        "cause": diagnosis.cause.words if diagnosis.cause else "",
        "advice": diagnosis.cause.advice if diagnosis.cause else "",
        "lines": list(diagnosis.endings[0].lines[-30:]) if diagnosis.endings else [],
    }


def _attempt(span: Span) -> dict[str, Any]:
    attempt = span.attempt
    return {
        "number": attempt.number,
        "job_id": attempt.job_id,
        "state": attempt.state.value,
        "reason": attempt.reason,
        "exit_code": attempt.exit_code,
        "submitted": span.submitted,
        "began": span.began,
        "ended": span.ended,
        "first_step": span.first,
        "last_step": span.last,
    }


def _event(event: RunEvent) -> dict[str, Any]:
    told = ", ".join(f"{name} {value}" for name, value in event.detail.items())
    return {"time": event.time, "attempt": event.attempt, "kind": event.kind, "told": told[:300]}
