"""Why an attempt failed, in plain words, and what to do about it. Pure.

The scheduler's word for how it ended a job comes first. Then what the rank that failed first said itself:
the exception in its exit record, the end of its log. What others printed, the scheduler among them, is only
heard of a rank that could not speak for itself any more. Where nobody said anything that is known, no cause
is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from signal import SIGKILL, Signals
from typing import NamedTuple

from hpcdl.errors import PeerLostError
from hpcdl.runs.blame import CRASHES
from hpcdl.runs.failures.alike import closing, spans
from hpcdl.runs.failures.symptoms import SHELL_FOUND_NONE, SYMPTOMS
from hpcdl.runs.record import Attempt, RunState
from hpcdl.telemetry import ExitRecord

_QUOTED = 240  # letters of a line that are shown
_UNWRITTEN = "JobLaunchFailure"  # of Slurm, where a job's log cannot be opened; seen in 22.05
_IN_VAIN = "another rank did not come in time"


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed.

    Args:
        kind: a key of ``KINDS``, for programs.
        words: what happened.
        advice: what to do.
    """

    kind: str
    words: str
    advice: str


@dataclass(frozen=True)
class Clues:
    """What a cause is found by.

    Args:
        attempt: as it ended.
        culprit: how the rank ended that failed first, if one is to blame.
        ranks: how all ranks ended.
        log: the last lines of the culprit's log.
        job_log: the last lines of what the batch script and the scheduler printed.
    """

    attempt: Attempt
    culprit: ExitRecord | None = None
    ranks: Sequence[ExitRecord] = ()
    log: Sequence[str] = ()
    job_log: Sequence[str] = ()


class Kind(NamedTuple):
    """What happened, and what to do about it."""

    words: str
    advice: str


_RESUME = "hpcdl resume goes on from the newest checkpoint, if there is one"

KINDS = {
    "device memory": Kind(
        "the memory of the device was used up",
        "lower parallelism.microbatch, set parallelism.recompute or zero, or take more GPUs; "
        "hpcdl plan shows what fits",
    ),
    "host memory": Kind(
        "the memory of the host was used up",
        "ask for more memory a node, put fewer ranks on it, or leave out parallelism.offload",
    ),
    "killed": Kind(
        "killed by SIGKILL before it could say why; most often the kernel does that for want of memory",
        "if nobody killed it, ask for more memory a node; the host's kernel log says 'Out of memory' then",
    ),
    "walltime": Kind(
        "the walltime was over",
        f"{_RESUME}; raise resources.walltime, or lower checkpoint.every so that less is lost",
    ),
    "preempted": Kind(
        "a job of higher priority took the nodes", f"{_RESUME}; or choose a partition that is not preempted"
    ),
    "node lost": Kind(
        "a node of the job failed",
        f"{_RESUME}, on the nodes it is given then; if it comes back, tell the site",
    ),
    "bad node": Kind(
        "a node does not have what the run needs of it",
        "hpcdl launch-info shows what each rank found; resume goes on without the node, where the site lets "
        "a job name nodes; tell the site of it",
    ),
    "wrong placement": Kind(
        "the launcher put ranks where they cannot run",
        "hpcdl launch-info shows where each rank is; correct launch and nodes in the site file, or set "
        "health.preflight: off",
    ),
    "rank never came": Kind(
        "the ranks did not all meet",
        "look at the logs of the ranks that are missing, and at the job's log if they are empty; "
        "then check rendezvous.address and interface in the site file",
    ),
    "communication": Kind(
        "a message or a collective was not finished",
        "look for a rank that is stuck at the end of each rank's log; if all were at work, raise "
        "communication.timeout_seconds, otherwise suspect the network",
    ),
    "hang": Kind(
        "a rank stood still",
        "look at its stack in its log; where it reads or writes, suspect the file system or the network; "
        f"{_RESUME}; raise health.hang_seconds if it would have gone on",
    ),
    "missing package": Kind(
        "Python could not import something",
        "install it where the job finds it, or load its module in the site file; "
        "what is on the login node may be missing on compute nodes",
    ),
    "port in use": Kind(
        "a network port was taken",
        "submit again; a program that chooses its port itself should take a free one (port 0)",
    ),
    "disk full": Kind(
        "the disk is full, or your quota is",
        "make room (checkpoint.keep says how many stay) or choose another place with --runs, then resume",
    ),
    "no run folder": Kind(
        "the run folder is not there, seen from the job: moved, or on a disk that the nodes do not see",
        "bring it back, or name its new path to hpcdl resume",
    ),
    "not finite": Kind(
        "the training diverged: a number became infinite or NaN",
        "lower training.optimizer.lr, add warmup, or look at the data of that step",
    ),
    "bad device": Kind(
        "a device failed, or is not there",
        "try another node; what stays with the node is the site's to repair, what follows the program "
        "is a wrong kernel",
    ),
    "program not found": Kind(
        "the program could not be started",
        "check the Python and the modules of the site file: they must be there on compute nodes too",
    ),
    "crash": Kind(
        "the program crashed in native code",
        "look at the stack in its log; most often a library does not fit the node or another library",
    ),
    "cancelled": Kind("it was cancelled", _RESUME),
    "refused": Kind(
        "the scheduler did not take the job",
        "change what it names and submit again; if it would take the job now, hpcdl resume submits this run",
    ),
}
"""What happened and what to do, by kind."""

_STATES = {
    RunState.REFUSED: "refused",
    RunState.CANCELLED: "cancelled",
    RunState.TIMEOUT: "walltime",
    RunState.PREEMPTED: "preempted",
    RunState.NODE_FAILED: "node lost",
    RunState.OUT_OF_MEMORY: "host memory",
}


def cause_of(clues: Clues) -> Cause | None:
    """Why an attempt failed; None if it did not, or if nothing that is known was said."""
    state = clues.attempt.state
    if kind := _STATES.get(state):
        return _cause(kind, clues.attempt.reason)
    if state not in (RunState.FAILED, RunState.LOST):
        return None
    return _own_words(clues) or _others_words(clues) or _by_code(clues)


def _cause(kind: str, quoted: str = "") -> Cause:
    words, advice = KINDS[kind]
    shown = quoted if len(quoted) <= _QUOTED else f"{quoted[:_QUOTED]} …"
    return Cause(kind, f"{words}: {shown}" if shown else words, advice)


def _own_words(clues: Clues) -> Cause | None:
    """From what the culprit said itself: its exception, then the end of its log."""
    record, log = clues.culprit, closing(clues.log)
    if record is None or record.exception is None:
        return _symptom(log, clues.attempt)
    raised = f"{record.exception}: {record.reason or ''}".rstrip(": ")
    # A log may also tell of an exception that was caught, long before another one ended the rank.
    own = re.compile(rf"(?:[\w.]+\.)?{re.escape(record.exception)}\b")
    told = log if any(own.match(line) for line in log) else []
    return _symptom([*told, raised], clues.attempt)


def _others_words(clues: Clues) -> Cause | None:
    """From what was said of a rank that could not speak for itself."""
    if clues.culprit is not None and not _killed_by(clues.culprit):
        return None
    return _symptom(closing(clues.job_log), clues.attempt) or _in_vain(clues)


def _in_vain(clues: Clues) -> Cause | None:
    """Ranks that waited for others too long: who did, and who did not say so."""
    waited = [record for record in clues.ranks if _waited_in_vain(record)]
    if not waited:
        return None
    names = {record.rank for record in waited}
    silent = {record.rank for record in clues.ranks if record.rank not in names}
    silent |= {clues.culprit.rank} if clues.culprit else set()
    others = f"; look at {spans(silent)}, of which nobody knows what it did" if silent else ""
    return _cause("communication", f"{spans(names)} waited in vain{others}")


def _waited_in_vain(record: ExitRecord) -> bool:
    return record.exception == PeerLostError.__name__ and (record.reason or "").startswith(_IN_VAIN)


def _symptom(lines: Sequence[str], attempt: Attempt) -> Cause | None:
    """The last line that is a symptom. Indented lines are left out: a traceback quotes source with them."""
    for line in _spoken(lines):
        for symptom in SYMPTOMS:
            counts = not symptom.codes or attempt.exit_code in symptom.codes
            if counts and symptom.pattern.match(line):
                return _cause(symptom.kind, line)
    return None


def _spoken(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip() for line in reversed([*lines]) if line[:1].strip())


def _by_code(clues: Clues) -> Cause | None:
    """From the signal or the exit code alone."""
    signal = _killed_by(clues.culprit) if clues.culprit else None
    if signal == SIGKILL:
        return _cause("killed")
    if signal in CRASHES:
        return _cause("crash", f"killed by {Signals(signal).name}")
    if clues.culprit is None and clues.attempt.exit_code in SHELL_FOUND_NONE:
        return _cause("program not found")
    if _UNWRITTEN in clues.attempt.reason:
        return _cause("no run folder", clues.attempt.reason)
    return None


def _killed_by(record: ExitRecord) -> int | None:
    """The signal that ended it, also where a shell only said so by an exit code above 128."""
    told = record.exit_code - 128
    return record.signal or (told if told == SIGKILL or told in CRASHES else None)
