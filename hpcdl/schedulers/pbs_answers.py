"""What qstat's answers mean: the state of a job by its letter, substate and Exit_status.

Recorded on OpenPBS (main branch of 2026-04, and the client of release 22.05.11); the negative codes are
those of src/include/job.h of openpbs/openpbs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from signal import Signals
from typing import Any

from hpcdl.errors import SchedulerError
from hpcdl.schedulers.base import JobState, Report
from hpcdl.shell import Completed

UNKNOWN_JOB, JOB_FINISHED = 153, 35
"""Exit codes of the client commands: PBS error 15001 and 15139, modulo 256."""

_WAITING, _ALIVE, _OVER = frozenset("QHWTM"), frozenset("RSEBU"), frozenset("FX")
"""Letters. E is over for the script, but its log may not have arrived; X is an ended element of an array that
is not over."""

_OWN_ENDINGS = {
    -29: (JobState.TIMEOUT, "walltime exceeded"),
    -28: (JobState.TIMEOUT, "CPU time exceeded"),
    -27: (JobState.OUT_OF_MEMORY, "memory exceeded"),
    -26: (JobState.OUT_OF_MEMORY, "virtual memory exceeded"),
    -25: (JobState.FAILED, "ncpus exceeded"),
    -24: (JobState.FAILED, "ncpus exceeded"),
    -21: (JobState.FAILED, "PBS could not start the job: security breach"),
    -20: (JobState.NODE_FAILED, "the job's first host was lost"),
    -30: (JobState.NODE_FAILED, "hosts of the job did not join"),
    -10: (JobState.FAILED, "PBS could not start the job: the user is not valid on its host"),
    -4: (JobState.NODE_FAILED, "the host's daemon was restarted"),
    -5: (JobState.NODE_FAILED, "the host's daemon was restarted"),
    -6: (JobState.NODE_FAILED, "the host's daemon was restarted"),
    -1: (JobState.FAILED, "PBS could not start the job"),
    -2: (JobState.FAILED, "PBS could not start the job"),
    -3: (JobState.FAILED, "PBS could not start the job"),
}
"""What PBS itself did to a job, by the negative Exit_status that says so."""

_WAITS_FOR_ANOTHER, _DELETED, _ENDED_WELL = 22, 91, 92
"""Substates: of a job held by a dependency, of one that qdel ended, of one that ended with 0."""

_PARENT = re.compile(r"(?<=:)\d+(?:\[\d*\])?\.[^:@,]+")

Attributes = Mapping[str, Any]
"""Of one job: names and values as qstat printed them."""


def parse_json(result: Completed) -> dict[str, Report]:
    """Jobs by id; what is no JSON says nothing, and the text form is asked next.

    Raises:
        SchedulerError: the server cannot be reached.
    """
    _check(result)
    try:
        # Control characters of the jobs' variables stand in it as they are; release 22.05 leaves them so.
        answer = json.loads(result.stdout, strict=False)
    except (ValueError, RecursionError):
        return {}
    jobs = answer.get("Jobs") if isinstance(answer, dict) else None
    return _reports(jobs) if isinstance(jobs, dict) else {}


def parse_text(result: Completed) -> dict[str, Report]:
    """The same, of ``qstat -f``.

    Raises:
        SchedulerError: the server cannot be reached, or what came is no answer of qstat's.
    """
    _check(result)
    jobs: dict[str, dict[str, str]] = {}
    for line in result.stdout.replace("\n\t", "").split("\n"):
        name, separator, value = line.strip().partition(" = ")
        if line.startswith("Job Id: "):
            jobs[line.removeprefix("Job Id: ").strip()] = {}
        elif separator and line.startswith("    ") and jobs:
            # The first one counts: a variable of the job may hold a newline and a line like these.
            jobs[next(reversed(jobs))].setdefault(name, value)
    if result.stdout.strip() and not jobs:
        raise SchedulerError(f"qstat printed no jobs: {result.stdout.strip()[:300]}", _TRY_LATER)
    return _reports(jobs)


_TRY_LATER = "nothing is known of the job now, and nothing was changed; try again later"


def _check(result: Completed) -> None:
    """A job that is not known is no error; a server that does not answer is.

    Raises:
        SchedulerError: with qstat's own words.
    """
    if result.exit_code not in (0, UNKNOWN_JOB, JOB_FINISHED):
        raise SchedulerError(f"PBS does not answer: {result.words}", _TRY_LATER)


def _reports(jobs: Mapping[str, Any]) -> dict[str, Report]:
    known = {job_id: job for job_id, job in jobs.items() if isinstance(job, dict)}
    return {job_id: report(job, known) for job_id, job in known.items()}


def report(job: Attributes, others: Mapping[str, Attributes] | None = None) -> Report:
    """What the attributes of one job mean.

    Exit_status counts in F and X only: a job that waits again after a failed start still shows one.
    There, none at all means that the job never ran.

    Args:
        job: its attributes.
        others: those of the other jobs in the same answer, by id.
    """
    letter = str(job.get("job_state", ""))
    words = ": ".join(filter(None, (letter, _explanation(job, others or {}))))
    if letter in _WAITING:
        return Report(JobState.QUEUED, words)
    if letter in _ALIVE:
        return Report(JobState.RUNNING, words)
    if letter in _OVER:
        return _ended(job)
    return Report(JobState.UNKNOWN, words)


def _explanation(job: Attributes, others: Mapping[str, Attributes]) -> str:
    """The server's comment; of a job that waits for another, what it has none for."""
    comment = str(job.get("comment", ""))
    if _number(job, "substate") != _WAITS_FOR_ANOTHER:
        return comment
    parents = list(dict.fromkeys(_PARENT.findall(str(job.get("depend", "")))))
    gone = [parent for parent in parents if _never_ran(others.get(parent, {}))]
    if gone:
        return (
            f"{', '.join(gone)} was deleted before it ran, and PBS holds what waits for such a job for ever: "
            f"cancel this one"
        )
    return f"waits for {', '.join(parents)}; if that is deleted before it runs, PBS holds this job for ever"


def _never_ran(job: Attributes) -> bool:
    return job.get("job_state") == "F" and "Exit_status" not in job and "stime" not in job


def _ended(job: Attributes) -> Report:
    status, substate = _number(job, "Exit_status"), _number(job, "substate")
    comment = str(job.get("comment", ""))
    if "Exit_status" not in job:
        return Report(JobState.CANCELLED, comment if substate == _DELETED else _unstarted(job))
    if status is None:
        return Report(JobState.UNKNOWN, f"ended with Exit_status {job['Exit_status']}")
    whole = str(job.get("array")) == "True"
    ended = _of_array(substate, comment) if whole else _by_status(status, comment)
    if substate != _DELETED:
        return ended
    # An element that was deleted before it ran shows 1, which nothing exited with.
    chosen = ended.exit_code if "run_count" in job else None
    return replace(ended, state=JobState.CANCELLED, exit_code=chosen)


def _unstarted(job: Attributes) -> str:
    """Why a job that nobody deleted never ran: PBS deletes what can never be released, without a comment."""
    depend = str(job.get("depend", ""))
    if not depend:
        return str(job.get("comment", "")) or "deleted before it ran"
    return f"deleted before it ran: PBS could not fulfil its dependency {depend}"


def _of_array(substate: int | None, comment: str) -> Report:
    """Of an array as a whole, Exit_status is no summary: 0 though an element failed. The substate is."""
    if substate == _ENDED_WELL:
        return Report(JobState.COMPLETED, comment, 0)
    return Report(JobState.FAILED, comment)


def _by_status(status: int, comment: str) -> Report:
    """How a job ended: 0 to 255 by its own exit code, 256 + n by signal n, below 0 by PBS itself."""
    if status < 0:
        state, words = _OWN_ENDINGS.get(status, (JobState.FAILED, f"ended by PBS with code {status}"))
        return Report(state, words)
    if status == 0:
        return Report(JobState.COMPLETED, comment, 0)
    if status >= 256:
        return Report(JobState.FAILED, comment or f"killed by {_signal(status - 256)}", signal=status - 256)
    # The login shell above the script reports so what a signal did below it; a script may also choose it.
    below = f"exit code {status}: something in the script was killed by {_signal(status - 128)}"
    return Report(JobState.FAILED, below if status - 128 in _SIGNALS else comment, status)


_SIGNALS = frozenset(int(signal) for signal in Signals)


def _signal(number: int) -> str:
    return Signals(number).name if number in _SIGNALS else f"signal {number}"


def _number(job: Attributes, name: str) -> int | None:
    """An attribute that is a whole number in JSON and in text; None for all else."""
    try:
        return int(str(job[name]))
    except (KeyError, ValueError):
        return None
