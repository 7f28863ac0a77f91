"""The state of a run: the fold of its events and of what its ranks left behind. Pure.

Three witnesses are heard, in this order: the scheduler while it knows the job, the exit record of
the batch script, and the exit records of the ranks. A job that is gone from the queue has not
thereby succeeded: without a record it is *lost*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from signal import SIGTERM
from typing import Any

from hpcdl.run_folder import BY_HAND, NOBODY
from hpcdl.runs.blame import Evidence, describe, first_failure
from hpcdl.runs.lives import Life, lives, withheld
from hpcdl.telemetry import ExitRecord, RunEvent

# A job may not be visible yet in the first moments after it was accepted.
SUBMISSION_GRACE_S = 10.0

_ENDINGS = {"ok": "complete", "failed": "fail", "any": "end"}


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
    REQUEUED = "requeued"  # the scheduler runs the job again, which is another attempt
    PAUSED = "paused"  # it was asked to stop, and saved itself before
    REFUSED = "refused"  # the scheduler did not take it
    LOST = "lost"  # nobody knows how it ended
    UNKNOWN = "unknown"  # the scheduler uses a word we do not know

    @property
    def over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self not in (RunState.PREPARED, RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN)

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than by finishing its steps, or by stopping because it was asked to."""
        return self.over and self not in (
            RunState.COMPLETED,
            RunState.PAUSED,
            RunState.CANCELLED,
            RunState.REQUEUED,
        )


@dataclass(frozen=True)
class Attempt:
    """One scheduler job of a run."""

    number: int
    job_id: str | None = None
    state: RunState = RunState.PREPARED
    exit_code: int | None = None
    reason: str = ""
    submitted: float = 0.0  # Unix time; until it is, when the scheduler was asked to take it
    cancel_requested: bool = False
    expected_start: str = ""  # local time, as the scheduler estimated it at submission
    after: tuple[str, ...] = ()  # runs that were not over when it was submitted
    ending: str = "ok"  # and how they must end: ok, failed or any
    again: bool = False  # its job is that of an earlier attempt, and was run again
    claimed_by: str = ""  # who was to submit it
    job_name: str = ""  # under which the scheduler was asked to take it; empty: it was not asked
    element: int | None = None  # its index in the array that was submitted
    place: str = ""  # the run folder, as its script knows it
    given_up: bool = False  # no job of it will run, even if one comes in
    by_start: bool = False  # its job is known by what its script left at its start, and by nothing else

    @property
    def by_hand(self) -> bool:
        """Whether somebody has started its script, so that no scheduler knows of it, and it may still run."""
        return self.job_id is None and self.state is RunState.RUNNING

    @property
    def wait(self) -> str:
        """What it waits for, or waited for, in words; empty where it is nothing."""
        return f"for {', '.join(self.after)} to {_ENDINGS[self.ending]}" if self.after else ""


@dataclass(frozen=True)
class Sighting:
    """What the scheduler said of a job: the part of its report that a run keeps."""

    state: RunState
    words: str = ""
    exit_code: int | None = None
    past: bool = False  # whether accounting alone still knows the job


def attempts(events: Iterable[RunEvent]) -> list[Attempt]:
    """The attempts of a run, oldest first, from its launcher events and the links in its folder."""
    noted = list(events)
    claims = {event.attempt: event.detail["by"] for event in noted if event.kind == "claimed"}
    starts = {event.attempt: event.detail["job_id"] for event in noted if event.kind == "started"}
    again, taken = lives(claims, starts), withheld(claims, starts)
    found: dict[int, Attempt] = {}
    for event in noted:
        if event.attempt and not (event.kind == "started" and event.attempt in taken):
            before = found.get(event.attempt, Attempt(event.attempt))
            found[event.attempt] = _after(before, event)
    for number in taken & found.keys():
        found[number] = _withheld(found[number], starts[number])
    for number, life in again.items():
        _live_again(found, number, life)
    return [found[number] for number in sorted(found)]


def _withheld(attempt: Attempt, by: str) -> Attempt:
    """An attempt whose job ends when its turn comes, as another job was run again before."""
    if attempt.state.over:
        return replace(attempt, given_up=True)
    reason = f"job {by} was run again before; its own job runs nothing when its turn comes"
    return replace(attempt, given_up=True, state=RunState.CANCELLED, reason=reason)


def up_to(newest: Attempt, history: Iterable[Attempt]) -> list[Attempt]:
    """The attempts of a run up to its newest as it was just seen, of which ``history`` may know less."""
    if not newest.number:
        return []
    return [*(each for each in history if each.number < newest.number), newest]


def _live_again(found: dict[int, Attempt], number: int, life: Life) -> None:
    """What follows for an attempt that is another life of a job, and for the life before it."""
    job_id = found[life.first].job_id or life.job_id
    found[number] = replace(found[number], job_id=job_id, again=True, by_start=False)
    former = found[life.before]
    if not former.state.over or former.state is RunState.LOST:
        found[life.before] = replace(former, job_id=job_id, state=RunState.REQUEUED, reason="")


def _after(attempt: Attempt, event: RunEvent) -> Attempt:
    detail = event.detail
    if event.kind in ("claimed", "submitting", "broken off", "started"):
        return _on_its_way(attempt, event)
    if event.kind == "submitted":
        return replace(
            attempt,
            job_id=detail["job_id"],
            state=RunState.QUEUED,
            reason="",
            submitted=event.time,
            after=tuple(detail.get("after", attempt.after)),
            ending=detail.get("ending", attempt.ending),
            expected_start=detail.get("expected_start", ""),
        )
    if event.kind == "requeued":
        return replace(attempt, job_id=detail["job_id"], state=RunState.RUNNING, submitted=event.time)
    if event.kind == "refused":
        return replace(attempt, state=RunState.REFUSED, reason=detail.get("reason", ""))
    if event.kind == "cancel requested":
        return replace(attempt, cancel_requested=True)
    if event.kind == "cancel refused":
        return replace(attempt, cancel_requested=False)
    if event.kind == "observed":
        return _observed(attempt, detail)
    return attempt


def _observed(attempt: Attempt, detail: dict[str, Any]) -> Attempt:
    """As it was seen, perhaps by a later version of hpcdl, in a word that this one does not know."""
    word, reason = detail["state"], detail.get("reason", "")
    try:
        state = RunState(word)
    except ValueError:
        state, reason = RunState.UNKNOWN, f"seen as {word!r}, which this version of hpcdl does not know"
    if attempt.state.over and attempt.state is not RunState.LOST and not state.over:
        return attempt  # that was asked before the end was seen, and noted after
    return replace(attempt, state=state, exit_code=detail.get("exit_code"), reason=reason)


def _on_its_way(attempt: Attempt, event: RunEvent) -> Attempt:
    """An attempt between its claim and the scheduler's answer; or of which a job tells by running."""
    detail = event.detail
    if event.kind == "claimed":
        return replace(attempt, claimed_by=detail["by"])
    if event.kind == "submitting":
        return replace(
            attempt,
            job_name=detail.get("job_name", ""),
            element=detail.get("element"),
            place=detail.get("place", ""),
            submitted=event.time,
            after=tuple(detail.get("after", ())),
            ending=detail.get("ending", "ok"),
        )
    if event.kind == "broken off":
        return replace(attempt, claimed_by="", reason=detail.get("reason", ""))
    return _begun(attempt, detail["job_id"], event.time)


def _begun(attempt: Attempt, by: str, when: float) -> Attempt:
    """An attempt that a script has begun, or that none will."""
    if by == NOBODY:
        return replace(attempt, given_up=True)
    if attempt.job_id is not None:
        return attempt
    running = replace(attempt, state=RunState.RUNNING, submitted=when)
    if by.startswith(BY_HAND):
        return replace(running, reason=f"its script was started by hand: {by}")
    return replace(running, job_id=by, by_start=True)


def verdict(attempt: Attempt, sighting: Sighting | None, evidence: Evidence, now: float) -> Attempt:
    """The attempt as it stands after hearing every witness.

    Args:
        attempt: what is known from the events.
        sighting: what the scheduler says now; None if it does not know the job.
        evidence: what lies in the folder, read *after* the scheduler was asked.
        now: Unix time.
    """
    if sighting is not None and _is_outweighed(sighting, attempt, evidence):
        sighting = None
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
    if state is RunState.PAUSED:
        reason = f"its time was nearly over: {_left(evidence)}"
    else:
        reason = _reason(state, sighting, failure)
    return replace(attempt, state=state, exit_code=code, reason=reason)


def _is_outweighed(sighting: Sighting, attempt: Attempt, evidence: Evidence) -> bool:
    """Whether a scheduler cannot tell, and the script's own record or somebody's wish that it end does."""
    told = evidence.script_exit is not None or (sighting.past and attempt.cancel_requested)
    return told and sighting.state is RunState.UNKNOWN


def former(attempt: Attempt, evidence: Evidence) -> Attempt:
    """An attempt whose job the scheduler runs again, with what is known of why it ended."""
    code = evidence.script_exit
    if evidence.paused is not None:
        why = f"it stopped after step {evidence.paused}, saved"
    elif code is None:
        why = "it left no exit record: killed, or its node was lost"
    elif any(record.signal == SIGTERM for record in evidence.ranks) or code == 128 + SIGTERM:
        why = "it was told to end (SIGTERM)"
    else:
        why = f"its script ended with exit code {code}"
    reason = f"the scheduler ran its job again; {why}"
    return replace(attempt, state=RunState.REQUEUED, exit_code=code, reason=reason)


def _left(evidence: Evidence) -> str:
    if evidence.paused is None:
        return f"it was sent {evidence.warned}, and ended well"
    return f"it stopped after step {evidence.paused}, saved"


def _vanished(attempt: Attempt) -> Attempt:
    if attempt.cancel_requested:
        return replace(attempt, state=RunState.CANCELLED, reason="cancelled; it left no exit record")
    return replace(
        attempt,
        state=RunState.LOST,
        reason="the scheduler no longer knows the job and it left no exit record"
        + (f"; it waited {attempt.wait}" if attempt.after else ""),
    )


def _ended(attempt: Attempt, sighting: Sighting | None, evidence: Evidence) -> tuple[RunState, int | None]:
    if sighting is not None and sighting.state is not RunState.COMPLETED:
        return sighting.state, sighting.exit_code
    code = (
        evidence.script_exit if evidence.script_exit is not None else (sighting and sighting.exit_code) or 0
    )
    if code == 0:
        early = evidence.paused is not None or evidence.warned is not None
        return RunState.PAUSED if early else RunState.COMPLETED, 0
    return (RunState.CANCELLED if attempt.cancel_requested else RunState.FAILED), code


def _reason(state: RunState, sighting: Sighting | None, failure: ExitRecord | None) -> str:
    if state is RunState.COMPLETED:
        return ""
    if failure is not None and state is RunState.FAILED:
        return f"rank {failure.rank} on {failure.host}: {describe(failure)}"
    return sighting.words if sighting is not None else ""
