"""Carrying a run on from one job to the next: by its own script, by whoever watches, by hand.

docs/design/016-who-goes-on.md gives the reasons.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from hpcdl.errors import ClaimedError, NoAnswerError, SchedulerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.chains.deciding import GoOn, Stop
from hpcdl.runs.chains.links import outlook
from hpcdl.runs.failures.diagnosis import diagnose
from hpcdl.runs.record import Attempt, RunState, Sighting, verdict
from hpcdl.workflow.claiming import next_attempt, who
from hpcdl.workflow.jobs.ending import end
from hpcdl.workflow.jobs.submitting import hand_over, last_tried
from hpcdl.workflow.states import following
from hpcdl.workflow.states.asking import Outside, pause
from hpcdl.workflow.states.following import Snapshot, refresh, site_of, snapshot
from hpcdl.workflow.studies.preparing import job, render, write_attempt

_WORLD = Outside()

Ended = Literal["well", "badly", "at-limit"]
"""How a script ended that asks for the next attempt: with 0, with another code, or told at its limit."""

_OWN_FINDINGS = ("hang", "bad node")
"""Causes that the engine itself finds. A job that somebody cancels may look like any other failure."""


@dataclass(frozen=True)
class Step:
    """What came of carrying a run on.

    Args:
        decision: why there is another attempt, or none.
        attempt: the number of the one that was submitted.
        job_id: its job; None if nothing was submitted here.
        other: why nothing was, although the run goes on: somebody else is at it.
    """

    decision: GoOn | Stop
    attempt: int = 0
    job_id: str | None = None
    other: str = ""


def advance(folder: RunFolder) -> Step:
    """Submit the next attempt of a run if there is to be one now; anybody may try at any time.

    Raises:
        UsageError: the run folder cannot be written.
        SchedulerError: it does not answer, or refuses the job.
    """
    (attempt,) = refresh([folder], fresh=True)
    return advance_seen(folder, attempt)


def advance_seen(folder: RunFolder, attempt: Attempt) -> Step:
    """The same of a run whose newest attempt was asked about just now.

    Raises:
        UsageError: the run folder cannot be written.
        SchedulerError: it refuses the job.
    """
    broken_off = attempt.state is RunState.PREPARED and attempt.number > 1
    if not attempt.state.over and not broken_off:
        return Step(Stop(f"it is {attempt.state.value}"))
    return _carry_on(folder, attempt)


def advance_from_job(folder: RunFolder, number: int, ended: Ended) -> Step:
    """The same from the script of an attempt, at its end, when the scheduler still calls its job running.

    Args:
        folder: the run.
        number: which attempt the script is.
        ended: how.

    Raises:
        UsageError: another attempt is newer, or the run folder cannot be written.
        SchedulerError: the scheduler refuses the job, or does not answer.
    """
    before = store.current(folder)
    if before.number != number:
        raise UsageError(
            f"{folder.path.name}: attempt {number} is not the newest any more, which is {before.number}"
        )
    evidence = store.evidence(folder, number, store.resolved(folder, number).layout.ranks)
    sighting = None
    if ended == "at-limit" and not before.cancel_requested:
        sighting = Sighting(RunState.TIMEOUT, "told to end as its walltime was over")
    after = verdict(before, sighting, evidence, time.time())
    if ended == "badly" and not _is_own_finding(folder, after):
        return Step(Stop("its job failed, and only who watches can tell whether somebody cancelled it"))
    store.note_change(folder, before, after)
    return _carry_on(folder, after)


def _is_own_finding(folder: RunFolder, attempt: Attempt) -> bool:
    cause = diagnose(folder, attempt).cause
    return cause is not None and cause.kind in _OWN_FINDINGS


def _carry_on(folder: RunFolder, attempt: Attempt) -> Step:
    decision = outlook(folder, attempt)
    if isinstance(decision, Stop):
        _note_end(folder, attempt, decision)
        return Step(decision)
    work = job(folder, store.resolved(folder), site_of(folder), attempt.number + 1)
    script = render(work)  # nothing is claimed that cannot be submitted
    try:
        number = next_attempt(folder, attempt)
    except ClaimedError as error:
        return Step(decision, other=error.message)
    write_attempt(work, script)
    called_off = Stop("somebody wanted it to stop")
    if _is_called_off(folder, number):  # since the decision
        store.note(folder, "broken off", number, reason=called_off.why)
        return Step(called_off)
    (job_id,) = hand_over([folder], number)
    if _is_called_off(folder, number):  # by somebody who could not see this job yet
        end(job_id, [(folder, number)], site_of(folder))
        return Step(called_off)
    return Step(decision, number, job_id)


def _is_called_off(folder: RunFolder, number: int) -> bool:
    """Whether somebody cancelled what came before an attempt."""
    before = last_tried(folder, number)
    return before is not None and before.cancel_requested


def _note_end(folder: RunFolder, attempt: Attempt, decision: Stop) -> None:
    """Keep why a chain ended before its steps were done; once, and where that may be written."""
    if attempt.state in (RunState.COMPLETED, RunState.CANCELLED):
        return
    noted = [event for event in store.events(folder) if event.kind == "chain ended"]
    if not any(event.attempt == attempt.number for event in noted):
        with suppress(UsageError):  # somebody else's run, or a full disk, of which the end itself may tell
            store.note(folder, "chain ended", attempt.number, reason=decision.why)


def is_completed(folder: RunFolder) -> bool:
    """Whether a run has completed its steps, from what lies in its folder alone."""
    attempt = store.current(folder)
    ranks = store.resolved(folder, attempt.number).layout.ranks
    evidence = store.evidence(folder, attempt.number, ranks)
    if evidence.script_exit is not None and not attempt.state.over:
        attempt = verdict(attempt, None, evidence, time.time())
    return attempt.state is RunState.COMPLETED


def watch(folder: RunFolder) -> Iterator[Snapshot]:
    """Snapshots until the run is over and does not go on; the next attempt is submitted where nobody did.

    Raises:
        SchedulerError: the scheduler refuses the next attempt.
    """
    for attempt in attempts_of(folder):
        yield snapshot(folder, attempt)


def attempts_of(folder: RunFolder, interval_s: float = 0.5, outside: Outside = _WORLD) -> Iterator[Attempt]:
    """The newest attempt again and again: as ``watch``, without reading the steps of the run.

    Where it goes on, and its folder cannot be written here, the last one says so.

    Raises:
        SchedulerError: the scheduler refuses the next attempt.
    """
    while True:
        last = None
        for attempt in following.attempts_of(folder, interval_s, outside):
            last = attempt
            yield attempt
        if last is None or last.state is RunState.COMPLETED:
            return
        if store.current(folder).number > last.number:
            continue
        if last.number == 1 and not last.state.over:
            raise _never_came(folder, last.number)
        try:
            step = _carry_on(folder, last)
        except NoAnswerError:  # whether there is a job is asked from here on
            outside.sleep(pause(site_of(folder), 0))
            continue
        except UsageError as error:
            yield _left_to_others(last, error.message)
            return
        if isinstance(step.decision, Stop):
            return
        if step.other:  # whoever is at it is watched from here on
            outside.sleep(interval_s)


def _left_to_others(attempt: Attempt, why: str) -> Attempt:
    """An attempt after which the run goes on, with why the next one was not submitted here."""
    told = f"it goes on, but not from here: {why}"
    return replace(attempt, reason="; ".join(filter(None, (attempt.reason, told))))


def _never_came(folder: RunFolder, number: int) -> SchedulerError:
    return SchedulerError(
        f"{folder.path.name}: attempt {number} was claimed by {who(folder, number)}, but nothing came of it",
        f"hpcdl status {folder.path.name} looks for it; hpcdl resume submits it if it is not there",
    )
