"""When each attempt of a run waited, ran and ended. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.reports.columns import Columns
from hpcdl.runs.reports.recorded import Recorded
from hpcdl.telemetry import RunEvent


@dataclass(frozen=True)
class Span:
    """One attempt in time; all times are Unix times, None where they are not known, or not yet.

    Args:
        attempt: as it ended, or stands.
        submitted: to the scheduler.
        began: first seen running.
        ended: its script or last rank ended, or it was first seen to be over, or the next one began.
        first: its first step that was not repeated later; None if there is none.
        last: likewise its last.
    """

    attempt: Attempt
    submitted: float | None
    began: float | None
    ended: float | None
    first: int | None = None
    last: int | None = None


def spans(found: Recorded) -> list[Span]:
    """The attempts of a run, oldest first; none lasts into the next."""
    began = [_began(found, attempt) for attempt in found.history]
    return [_span(found, *each) for each in zip_longest(found.history, began, began[1:])]


def _span(found: Recorded, attempt: Attempt, began: float | None, after: float | None) -> Span:
    submitted = [event.time for event in _launched(found, attempt) if event.kind == "submitted"]
    known = [time for time in (_ended(found, attempt), after) if time is not None]
    ended = max(min(known), began or 0.0) if known and attempt.state.over else None
    steps = _steps(found.columns, attempt.number, began, ended)
    first, last = (found.columns.step[steps[0]], found.columns.step[steps[-1]]) if steps else (None, None)
    return Span(attempt, min(submitted, default=None), began, ended, first, last)


def _launched(found: Recorded, attempt: Attempt) -> list[RunEvent]:
    return [event for event in found.launcher if event.attempt == attempt.number]


def _began(found: Recorded, attempt: Attempt) -> float | None:
    engine = [event for event in found.engine if event.attempt == attempt.number]
    began = first_running(_launched(found, attempt), engine)
    return min(_exits(found, attempt), default=None) if began is None else began


def _ended(found: Recorded, attempt: Attempt) -> float | None:
    """When its script ended, or its last rank; where none left word, when somebody saw that it was over.

    The script's first: it is by the clock by which the script began, and that of a node may be another.
    """
    over = {state.value for state in RunState if state.over}
    return (
        found.ends.get(attempt.number)
        or max(_exits(found, attempt), default=None)
        or min(_seen(_launched(found, attempt), over), default=None)
    )


def _exits(found: Recorded, attempt: Attempt) -> list[float]:
    return [record.time for record in found.exits.get(attempt.number, ())]


def _steps(columns: Columns, number: int, began: float | None, ended: float | None) -> range:
    """Places of the steps of an attempt; of records that do not name theirs, those of its time."""
    named = range(bisect_left(columns.attempt, number), bisect_right(columns.attempt, number))
    if named or began is None:
        return named
    times, unnamed = columns.numbers["time"], bisect_right(columns.attempt, 0)
    last = unnamed if ended is None else bisect_right(times, ended, hi=unnamed)
    return range(bisect_left(times, began, hi=unnamed), last)


def first_running(launcher: Iterable[RunEvent], engine: Iterable[RunEvent]) -> float | None:
    """When an attempt is first known to have run, from the events of that attempt alone.

    The clocks of a compute node and of a login node may be minutes apart: what the engine told counts only
    where neither the start of the script nor a look at its job is known.
    """
    seen = list(launcher)
    started = [event.time for event in seen if event.kind == "started"]
    looked = [*started, *_seen(seen, {RunState.RUNNING.value})]
    return min(looked or [event.time for event in engine], default=None)


def _seen(events: Iterable[RunEvent], states: set[str]) -> list[float]:
    return [each.time for each in events if each.kind == "observed" and each.detail.get("state") in states]
