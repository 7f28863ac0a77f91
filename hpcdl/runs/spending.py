"""What a run has cost: the time its jobs held their nodes, as the files of the run folder tell it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import Attempt
from hpcdl.telemetry import RunEvent, read


def node_hours(folder: RunFolder, attempts: Iterable[Attempt], now: float) -> float | None:
    """Node-hours of all attempts together; None if nothing is known of any.

    An attempt lasts from the start of its script to its end. Where the script left no word of its end, it
    lasts to the last thing that it or a rank wrote.

    Args:
        folder: the run.
        attempts: of it.
        now: Unix time, until which an attempt lasts that still runs.
    """
    spans = [(attempt.number, _span(folder, attempt, now)) for attempt in attempts if not attempt.given_up]
    known = [span * store.resolved(folder, number).layout.nodes for number, span in spans if span is not None]
    return sum(known) / 3600 if known else None


def _span(folder: RunFolder, attempt: Attempt, now: float) -> float | None:
    """Seconds that the script of an attempt ran; None if it never began."""
    begin = _began(folder, attempt.number)
    if begin is None:
        return None
    end = written(folder.job_exit(attempt.number))
    if end is None and not attempt.state.over:
        end = now
    return max(0.0, (end or _last_sign(folder, attempt.number, begin)) - begin)


def _began(folder: RunFolder, number: int) -> float | None:
    begin = written(folder.start(number))
    if begin is not None:
        return begin
    told = (event for event in read(folder.engine_events, RunEvent) if event.attempt == number)
    return next((event.time for event in told), None)


def _last_sign(folder: RunFolder, number: int, begin: float) -> float:
    places = (folder.logs(number), folder.exits(number), folder.heartbeats(number))
    times = (written(path) for place in places for path in place.glob("*"))
    return max((time for time in times if time is not None), default=begin)


def written(path: Path) -> float | None:
    """When a file was last written, or a link made; None if it is not there."""
    with suppress(OSError):
        return path.lstat().st_mtime
    return None
