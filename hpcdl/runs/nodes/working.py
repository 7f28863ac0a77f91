"""What the ranks of a run did of late, from their step records and heartbeats; no file is read whole."""

from __future__ import annotations

from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.nodes.stragglers import Work
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import StepRecord, read_heartbeat, read_tail

_OWN = ("compute", "optimizer")  # the rest of a step is waiting, or common to all
_TAIL_BYTES = 32 * 1024  # of each rank's file: some fifty steps


def works(folder: RunFolder) -> list[Work]:
    """What each rank did in its last steps, in the newest attempt that trained.

    Nothing is known of a program of the user's own.
    """
    numbers = range(store.current(folder).number, 0, -1)
    attempt = next((number for number in numbers if folder.heartbeats(number).is_dir()), 0)
    run = store.resolved(folder, attempt or None)
    if not attempt or not isinstance(run, ResolvedRun):
        return []
    return [work for rank in range(run.decomposition.ranks) if (work := _work(folder, attempt, run, rank))]


def _work(folder: RunFolder, attempt: int, run: ResolvedRun, rank: int) -> Work | None:
    sign = read_heartbeat(folder.heartbeat(attempt, rank))
    seconds = _seconds(folder, attempt, rank)
    stage = run.decomposition.coordinate(rank).pipeline
    return Work(rank, sign.host, stage, seconds) if sign and seconds else None


def _seconds(folder: RunFolder, attempt: int, rank: int) -> dict[int, float]:
    """Of the rank's own work, by step."""
    newest = read_tail(folder.rank_metrics(rank), StepRecord, _TAIL_BYTES)
    return {
        record.step: sum(record.seconds.get(category, 0.0) for category in _OWN)
        for record in newest
        if record.attempt == attempt
    }
