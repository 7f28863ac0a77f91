"""Which rank of an attempt failed first, from what all of them left behind. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGTERM, Signals

from hpcdl.errors import HangError, PeerLostError
from hpcdl.telemetry import ExitRecord, Heartbeat

CRASHES = frozenset({SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT})
"""Signals that a process brings upon itself in native code."""


@dataclass(frozen=True)
class Evidence:
    """What an attempt left in its folder."""

    script_exit: int | None = None  # exit code of job.sh, if it came to its end
    ranks: Sequence[ExitRecord] = ()
    expected_ranks: int = 0
    warned: str | None = None  # the signal that its program was sent when the walltime was nearly over
    paused: int | None = None  # the step after which it saved itself and stopped, as asked
    signs: Mapping[int, Heartbeat] = field(default_factory=dict)  # the last, of ranks without a record


def first_failure(evidence: Evidence) -> ExitRecord | None:
    """The rank that failed first in time: the culprit.

    Ranks that were told to end (SIGTERM) or that lost a peer followed somebody. If only such records
    exist, it is the rank that most of them blame. If they blame none, a rank that left no record was
    killed before it could write one, and is named instead.
    """
    own = [record for record in evidence.ranks if record.exit_code != 0 and not _followed(record)]
    if own:
        return min(own, key=lambda record: record.time)
    return _blamed(evidence) or _missing(evidence)


def _blamed(evidence: Evidence) -> ExitRecord | None:
    """The rank that its peers waited for in vain."""
    accused = [(record.blamed, record.time) for record in evidence.ranks if record.blamed]
    if not accused:
        return None
    voices = Counter(blamed.rank for blamed, _ in accused)
    rank = min(voices, key=lambda rank: (-voices[rank], rank))
    told, time = next(each for each in accused if each[0].rank == rank)
    return ExitRecord(rank, told.host, time, 1, exception=HangError.__name__, reason=told.reason)


def _missing(evidence: Evidence) -> ExitRecord | None:
    """A rank that left no record, although others failed, or its script did after it had begun."""
    present = {record.rank for record in evidence.ranks}
    missing = sorted(set(range(evidence.expected_ranks)) - present)
    failed = [record.time for record in evidence.ranks if record.exit_code]
    alone = evidence.expected_ranks == 1 and bool(evidence.signs) and bool(evidence.script_exit)
    if not missing or not (failed or alone):
        return None
    rank = missing[0]
    sign, signal = evidence.signs.get(rank), _deadly(evidence.script_exit)
    host, seen = (sign.host, f"; last seen {sign.where}") if sign else ("unknown host", "")
    if alone and (evidence.script_exit or 0) < 128:
        code = evidence.script_exit or 1
        return ExitRecord(rank, host, 0.0, code, reason=f"exit code {code}, without an exit record{seen}")
    usual = ", e.g. for want of memory" if signal == SIGKILL else ""
    reason = f"left no exit record; it was killed by {signal.name}{usual}{seen}"
    return ExitRecord(rank, host, min(failed, default=0.0), 128 + signal, signal, None, reason)


def _deadly(script_exit: int | None) -> Signals:
    """The signal that leaves no time for a record: what the script's exit code tells, else SIGKILL.

    A launcher that tears the other ranks down may report their SIGTERM instead, which does leave time.
    """
    told = (script_exit or 0) - 128
    return Signals(told) if told in CRASHES else SIGKILL


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
