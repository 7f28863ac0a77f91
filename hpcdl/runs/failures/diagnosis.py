"""What became of an attempt that failed, read from its folder: who, why, and which ranks ended alike."""

from __future__ import annotations

from dataclasses import dataclass

from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.blame import Evidence, first_failure
from hpcdl.runs.failures.alike import Ending, alike
from hpcdl.runs.failures.causes import Cause, Clues, cause_of
from hpcdl.runs.logs.reading import last_lines
from hpcdl.runs.record import Attempt
from hpcdl.telemetry import ExitRecord

_TAIL = 60  # lines of a log: the traceback of a deep model, with the exception that led to it
_HEARD = 64  # ranks whose logs are read where none is to blame


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a failure.

    Args:
        culprit: how the rank ended that failed first; None if none is to blame.
        cause: why; None if nobody said anything that is known.
        endings: ranks that failed, grouped by how their logs end, the culprit's group first.
    """

    culprit: ExitRecord | None = None
    cause: Cause | None = None
    endings: tuple[Ending, ...] = ()


def diagnose(folder: RunFolder, attempt: Attempt) -> Diagnosis:
    """What became of an attempt; nothing is said of one that did not fail."""
    if not attempt.state.failed:
        return Diagnosis(cause=cause_of(Clues(attempt)))
    evidence = store.evidence(folder, attempt.number, store.resolved(folder, attempt.number).layout.ranks)
    culprit = first_failure(evidence)
    failed = {record.rank for record in evidence.ranks if record.exit_code}
    failed |= {culprit.rank} if culprit else set()
    logs = {rank: last_lines(folder.rank_log(attempt.number, rank), _TAIL) for rank in failed}
    told = {rank: lines for rank, lines in logs.items() if lines}
    clues = Clues(
        attempt,
        culprit,
        evidence.ranks,
        log=logs[culprit.rank] if culprit else _of_the_silent(folder, attempt, evidence),
        job_log=last_lines(folder.job_log(attempt.number), _TAIL),
    )
    endings = alike(told, first=culprit.rank if culprit else None)
    return Diagnosis(culprit, cause_of(clues), tuple(endings))


def _of_the_silent(folder: RunFolder, attempt: Attempt, evidence: Evidence) -> list[str]:
    """What ranks said last where none has left a record: on a full disk a log may still take a line."""
    silent = () if evidence.ranks else range(min(evidence.expected_ranks, _HEARD))
    return [line for rank in silent for line in last_lines(folder.rank_log(attempt.number, rank), _TAIL)]
