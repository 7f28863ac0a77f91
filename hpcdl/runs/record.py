"""The state of a run: the fold of its events and of what its ranks left behind. Pure.

Three witnesses are heard, in this order: the scheduler while it knows the job, the exit record of
the batch script, and the exit records of the ranks. A job that is gone from the queue has not
thereby succeeded: without a record it is *lost*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from signal import SIGKILL, SIGTERM, Signals

from hpcdl.errors import PeerLostError
from hpcdl.telemetry import ExitRecord, RunEvent

# A job may not be visible yet in the first moments after it was accepted.
SUBMISSION_GRACE_S = 10.0


class RunState(Enum):
    """Where a run stands. Values that a scheduler can report are spelled as its backend reports them."""

    PREPARED = "prepared"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    NODE_FAILED = "node failed"
    OUT_OF_MEMORY = "out of memory"
    PREEMPTED = "preempted"
    REFUSED = "refused"  # the scheduler did not take it
    LOST = "lost"  # nobody knows how it ended
    UNKNOWN = "unknown"  # the scheduler uses a word we do not know

    @property
    def over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self not in (RunState.PREPARED, RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN)

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than by finishing its steps or by the user's wish."""
        return self.over and self not in (RunState.COMPLETED, RunState.CANCELLED)


@dataclass(frozen=True)
class Attempt:
    """One scheduler job of a run."""

    number: int
    job_id: str | None = None
    state: RunState = RunState.PREPARED
    exit_code: int | None = None
    reason: str = ""
    submitted: float = 0.0  # Unix time
    cancel_requested: bool = False


@dataclass(frozen=True)
class Sighting:
    """What the scheduler said of a job: the part of its report that a run keeps."""

    state: RunState
    words: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What an attempt left in its folder."""

    script_exit: int | None = None  # exit code of job.sh, if it came to its end
    ranks: Sequence[ExitRecord] = ()
    expected_ranks: int = 0


def attempts(events: Iterable[RunEvent]) -> list[Attempt]:
    """The attempts of a run, oldest first, from its launcher events."""
    found: dict[int, Attempt] = {}
    for event in events:
        if event.attempt:
            before = found.get(event.attempt, Attempt(event.attempt))
            found[event.attempt] = _after(before, event)
    return [found[number] for number in sorted(found)]


def _after(attempt: Attempt, event: RunEvent) -> Attempt:
    detail = event.detail
    if event.kind == "submitted":
        return replace(attempt, job_id=detail["job_id"], state=RunState.QUEUED, submitted=event.time)
    if event.kind == "refused":
        return replace(attempt, state=RunState.REFUSED, reason=detail.get("reason", ""))
    if event.kind == "cancel requested":
        return replace(attempt, cancel_requested=True)
    if event.kind == "observed":
        return replace(
            attempt,
            state=RunState(detail["state"]),
            exit_code=detail.get("exit_code"),
            reason=detail.get("reason", ""),
        )
    return attempt


def verdict(attempt: Attempt, sighting: Sighting | None, evidence: Evidence, now: float) -> Attempt:
    """The attempt as it stands after hearing every witness.

    Args:
        attempt: what is known from the events.
        sighting: what the scheduler says now; None if it does not know the job.
        evidence: what lies in the folder, read *after* the scheduler was asked.
        now: Unix time.
    """
    if sighting is not None and sighting.state is RunState.UNKNOWN and evidence.script_exit is not None:
        sighting = None  # a scheduler that cannot tell does not outweigh the script's own record
    if sighting is not None and not sighting.state.over:
        return replace(attempt, state=sighting.state, reason=sighting.words)
    if sighting is None and evidence.script_exit is None:
        if now - attempt.submitted < SUBMISSION_GRACE_S:
            return attempt
        return _vanished(attempt)
    state, code = _ended(attempt, sighting, evidence)
    failure = first_failure(evidence)
    if failure is not None and state is RunState.FAILED:
        code = failure.exit_code
    return replace(attempt, state=state, exit_code=code, reason=_reason(state, sighting, failure))


def _vanished(attempt: Attempt) -> Attempt:
    if attempt.cancel_requested:
        return replace(attempt, state=RunState.CANCELLED, reason="cancelled; it left no exit record")
    return replace(
        attempt,
        state=RunState.LOST,
        reason="the scheduler no longer knows the job and it left no exit record",
    )


def _ended(attempt: Attempt, sighting: Sighting | None, evidence: Evidence) -> tuple[RunState, int | None]:
    if sighting is not None and sighting.state is not RunState.COMPLETED:
        return sighting.state, sighting.exit_code
    code = (
        evidence.script_exit if evidence.script_exit is not None else (sighting and sighting.exit_code) or 0
    )
    if code == 0:
        return RunState.COMPLETED, 0
    return (RunState.CANCELLED if attempt.cancel_requested else RunState.FAILED), code


def _reason(state: RunState, sighting: Sighting | None, failure: ExitRecord | None) -> str:
    if state is RunState.COMPLETED:
        return ""
    if failure is not None and state is RunState.FAILED:
        return f"rank {failure.rank} on {failure.host}: {describe(failure)}"
    return sighting.words if sighting is not None else ""


def first_failure(evidence: Evidence) -> ExitRecord | None:
    """The rank that failed first in time: the culprit.

    Ranks that were told to end (SIGTERM) or that lost a peer followed somebody. If only such records
    exist, a rank that left none was killed before it could write one, and is named instead.
    """
    own = [record for record in evidence.ranks if record.exit_code != 0 and not _followed(record)]
    if own:
        return min(own, key=lambda record: record.time)
    if not any(record.exit_code for record in evidence.ranks):
        return None
    present = {record.rank for record in evidence.ranks}
    missing = sorted(set(range(evidence.expected_ranks)) - present)
    if not missing:
        return None
    time = min(record.time for record in evidence.ranks)
    reason = "left no exit record; it was killed, e.g. for want of memory"
    return ExitRecord(missing[0], "unknown host", time, 128 + SIGKILL, SIGKILL, None, reason)


def _followed(record: ExitRecord) -> bool:
    """Whether a rank only ended because another had."""
    return record.signal == SIGTERM or record.exception == PeerLostError.__name__


def describe(record: ExitRecord) -> str:
    """Why a rank ended, in one line."""
    if record.exception:
        return f"{record.exception}: {record.reason}" if record.reason else record.exception
    if record.reason:
        return record.reason
    if record.signal:
        return f"killed by {Signals(record.signal).name}"
    return f"exit code {record.exit_code}"
