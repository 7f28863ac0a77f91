"""How Slurm is asked about jobs, and what its answers mean: squeue and sacct.

One squeue answers for any number of jobs, also for those that are over, until MinJobAge has passed; sacct
for ever where there is accounting. Beyond that nobody knows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hpcdl.errors import SchedulerError
from hpcdl.schedulers.base import JobState, Naming, Query, Report
from hpcdl.shell import Completed
from hpcdl.sites.site import Site

UNKNOWN_JOB = "Invalid job id specified"
"""What squeue and scancel say of a job that slurmctld does not know."""

_STATES = {
    JobState.QUEUED: "PENDING CONFIGURING POWER_UP_NODE REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD"
    " SPECIAL_EXIT",
    JobState.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED RESIZING SIGNALING STAGE_OUT",
    JobState.COMPLETED: "COMPLETED",
    JobState.FAILED: "FAILED LAUNCH_FAILED RECONFIG_FAIL",
    JobState.CANCELLED: "CANCELLED",
    JobState.TIMEOUT: "TIMEOUT DEADLINE",
    JobState.NODE_FAILED: "NODE_FAIL BOOT_FAIL",
    JobState.OUT_OF_MEMORY: "OUT_OF_MEMORY",
    JobState.PREEMPTED: "PREEMPTED",
}
"""Slurm's words for each of ours (SchedMD/slurm, src/common/slurm_protocol_defs.c).

REVOKED is none of them: so a cluster of a federation calls a job that another cluster of it runs.
"""

_STATE_OF = {word: state for state, words in _STATES.items() for word in words.split()}

_GREATEST_LOCAL_ID = 0x03FFFFFF
"""A greater id is one of a federation: its upper bits name a cluster (slurm.conf(5), MaxJobId)."""
_NO_REASONS = frozenset({"", "None", "(null)"})


def _at(number: str, cluster: str) -> list[str]:
    """Where the job is known: its cluster, or the federation that its number is one of."""
    if cluster:
        return [f"--clusters={cluster}"]
    return ["--federation"] if int(number.partition("_")[0]) > _GREATEST_LOCAL_ID else []


def report(word: str, reason: str = "", code: str = "") -> Report:
    """What one state means: ``CANCELLED by 1000``, its reason, and ``exit:signal``.

    An exit code is only reported where the job itself chose it: a job that ran into its limit may well
    show 0:0.
    """
    state = _STATE_OF.get(word.partition(" ")[0].rstrip("+"), JobState.UNKNOWN)
    words = word if reason in _NO_REASONS else f"{word} ({reason})"
    exit_code, signal = (int(part) for part in code.split(":")) if re.fullmatch(r"\d+:\d+", code) else (0, 0)
    chosen = state is JobState.COMPLETED or exit_code != 0
    return Report(state, words, exit_code if chosen else None, signal or None)


def controller(job_id: str) -> str:
    """Who knows the job: its cluster, the federation, or the slurmctld that commands reach by themselves."""
    number, _, cluster = job_id.partition(";")
    return " ".join(_at(number, cluster))


def _numbers(job_ids: Sequence[str]) -> str:
    """The jobs of a question; an array of which several elements are asked about stands there once.

    Each of its elements is told of all the same, and ten thousand of them would be longer than an argument
    may be (MAX_ARG_STRLEN, execve(2)).
    """
    numbers = [job_id.partition(";")[0] for job_id in job_ids]
    arrays = [number.partition("_")[0] for number in numbers]
    asked = Counter(arrays)
    named = (number if asked[array] == 1 else array for number, array in zip(numbers, arrays, strict=True))
    return ",".join(dict.fromkeys(named))


def _squeue(job_ids: Sequence[str]) -> list[str]:
    number, separator, cluster = job_ids[0].partition(";")
    # Sizes are least and greatest widths. The cluster stands behind the number as text of ours: so an answer
    # bears the very id that was asked for. The reason is last, as it may hold anything.
    fields = f"JobArrayID:40{separator}{cluster}|,State:32|,exit_code:16|,Reason:200"
    return [
        *("squeue", *_at(number, cluster), "--noheader", "--states=all"),
        # Else elements of an array that wait stand on one line, as 16_[2-3%2].
        *("--array", f"--Format={fields}", f"--jobs={_numbers(job_ids)}"),
    ]


def _parse_squeue(result: Completed) -> dict[str, Report]:
    """Every job that slurmctld knows; one unknown job is an error of squeue's, several are none.

    Raises:
        SchedulerError: it does not answer, or with something else.
    """
    if result.exit_code and UNKNOWN_JOB not in result.stderr:
        raise SchedulerError(f"Slurm does not answer: {result.words}", _UNREACHABLE_HINT)
    reports = {}
    for line in result.stdout.splitlines():
        row = _ROW.fullmatch(line)
        if row is None:
            if line.startswith("CLUSTER: "):
                continue
            raise SchedulerError(f"squeue answered what it was not asked: {line!r}", _UNREACHABLE_HINT)
        job_id, word, code, reason = row[1] + (row[2] or ""), row[3], row[4], row[5].strip()
        # In a federation every cluster that was to run a job has a row of it.
        if word != "REVOKED" or job_id not in reports:
            reports[job_id] = report(word, reason, _exit_and_signal(code))
    return reports


_ROW = re.compile(r"(\d+(?:_\d+)?) *(;[\w.-]+)?\|(\S+) *\|(-?\d+(?::\d+)?) *\|(.*)")
_UNREACHABLE_HINT = "nothing is known of the job now, and nothing was changed; try again later"


def _exit_and_signal(code: str) -> str:
    """``exit:signal`` of what squeue prints, which is a wait status (wait(2)): 1792 for exit code 7."""
    if ":" in code:
        return code
    status = max(int(code), 0)  # -2 stands for none yet
    return f"{status >> 8 & 0xFF}:{status & 0x7F}"


def _sacct(job_ids: Sequence[str]) -> list[str]:
    number, _, cluster = job_ids[0].partition(";")
    return [
        *("sacct", *_at(number, cluster), "--parsable2", "--noheader", "--allocations"),
        *("--format=JobID,Cluster,State,ExitCode", f"--jobs={_numbers(job_ids)}"),
    ]


def _parse_sacct(result: Completed) -> dict[str, Report]:
    """Every job under its number and under ``number;cluster``; none where there is no accounting.

    Raises:
        SchedulerError: there is accounting, and it does not answer.
    """
    if result.exit_code and _NO_ACCOUNTING not in result.stderr:
        raise SchedulerError(f"Slurm's accounting does not answer: {result.words}", _UNREACHABLE_HINT)
    reports = {}
    for line in result.stdout.splitlines():
        if line.count("|") == 3:
            number, cluster, state, code = line.split("|")
            reports[number] = reports[f"{number};{cluster}"] = report(state, "", code)
    return reports


_NO_ACCOUNTING = "accounting storage is disabled"

QUERIES: tuple[Query, ...] = (
    Query(_squeue, _parse_squeue),
    Query(_sacct, _parse_sacct, accounting=True),
)


def _squeue_name(name: str, user: str, site: Site) -> list[str]:
    at = [f"--clusters={site.scheduler.cluster}"] if site.scheduler.cluster else []
    return [
        *("squeue", *at, "--noheader", "--states=all", f"--user={user}", f"--name={name}"),
        "--Format=ArrayJobID:40",
    ]


def _parse_names(result: Completed, site: Site) -> list[str]:
    """The jobs of a name, each once: every element of an array bears the number of the array.

    Raises:
        SchedulerError: slurmctld does not answer, or with something else.
    """
    if result.exit_code:
        raise SchedulerError(f"Slurm does not answer: {result.words}", _UNREACHABLE_HINT)
    cluster = f";{site.scheduler.cluster}" if site.scheduler.cluster else ""
    lines = [line.strip() for line in result.stdout.splitlines() if not line.startswith("CLUSTER: ")]
    if strange := [line for line in lines if not line.isdecimal()]:
        raise SchedulerError(f"squeue answered what it was not asked: {strange[0]!r}", _UNREACHABLE_HINT)
    return [f"{number}{cluster}" for number in dict.fromkeys(lines)]


NAMINGS: tuple[Naming, ...] = (Naming(_squeue_name, _parse_names),)
