"""Slurm: sbatch, squeue, scontrol, sacct, scancel.

A job id is what ``sbatch --parsable`` printed, ``123`` or ``123;cluster``; a cluster that it names goes
into every later command. The three ways of asking complete each other: squeue answers for jobs that are
not over, scontrol knows how a job ended until MinJobAge has passed, sacct for ever where there is
accounting. Beyond that nobody knows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.schedulers.base import Job, JobState, Query, Report
from hpcdl.schedulers.directives import Directive, account, job_log, job_name, permitted
from hpcdl.schedulers.launch import gpu_request
from hpcdl.shell import Completed
from hpcdl.sites.site import Partition
from hpcdl.units import format_walltime, parse_walltime

TEMPLATE = "slurm.sh.j2"

_STATES = {
    JobState.QUEUED: "PENDING CONFIGURING POWER_UP_NODE REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD"
    " SPECIAL_EXIT",
    JobState.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED RESIZING SIGNALING STAGE_OUT",
    JobState.COMPLETED: "COMPLETED",
    JobState.FAILED: "FAILED LAUNCH_FAILED RECONFIG_FAIL",
    JobState.CANCELLED: "CANCELLED REVOKED",
    JobState.TIMEOUT: "TIMEOUT DEADLINE",
    JobState.NODE_FAILED: "NODE_FAIL BOOT_FAIL",
    JobState.OUT_OF_MEMORY: "OUT_OF_MEMORY",
    JobState.PREEMPTED: "PREEMPTED",
}
"""Slurm's words for each of ours (SchedMD/slurm, src/common/slurm_protocol_defs.c)."""

_STATE_OF = {word: state for state, words in _STATES.items() for word in words.split()}

_JOB_ID = re.compile(r"\d+(;[\w.-]+)?")
_CONSTRAINT = re.compile(r"[\w.:@&|!*()\[\],-]+")
_FILENAME_PATTERN = re.compile(r"%[\w%]|\\")
_UNKNOWN_JOB = "Invalid job id specified"
_NO_REASONS = frozenset({"", "None", "(null)"})


def directives(job: Job) -> list[str]:
    """Lines of the script's head.

    Raises:
        SiteError, UsageError, SchedulerError: what the site forbids or wants and the job has not.
    """
    return [f"#SBATCH {text}" for text in permitted(_wanted(job), job.site)]


def _wanted(job: Job) -> Iterable[Directive]:
    layout, resources = job.run.layout, job.run.experiment.resources
    yield Directive("--job-name", f"={job_name(job)}", optional=True)
    yield Directive("--nodes", f"={layout.nodes}")
    yield Directive("--ntasks-per-node", f"={layout.ranks_per_node}")
    yield Directive("--cpus-per-task", f"={layout.cores_per_rank}", optional=True)
    for request in gpu_request(job.site, layout.ranks_per_node):
        option, _, value = request.partition("=")
        yield Directive(option, f"={value}")
    yield Directive("--time", f"={_time(resources.walltime)}")
    yield from _partition(*job.site.partition(resources.queue))
    payer = account(job)
    if payer is not None:
        yield Directive("--account", f"={payer}")
    yield Directive("--output", f"={_log(job)}")
    # A job that is requeued would otherwise begin its log anew (JobFileAppend=0 by default).
    yield Directive("--open-mode", "=append", optional=True)
    yield Directive("--requeue" if job.site.policy.requeue else "--no-requeue", optional=True)


def _time(walltime: str) -> str:
    """D-HH:MM:SS, the one spelling that sbatch cannot take for minutes."""
    text = format_walltime(parse_walltime(walltime))
    return text if "-" in text else f"0-{text}"


def _partition(key: str, partition: Partition) -> Iterable[Directive]:
    option = "--qos" if partition.kind == "qos" else "--partition"
    yield Directive(option, f"={partition.name or key}")
    if partition.constraint is not None:
        if not _CONSTRAINT.fullmatch(partition.constraint):
            raise SiteError(
                f"partition {key}: constraint {partition.constraint!r} cannot stand in a directive"
            )
        yield Directive("--constraint", f"={partition.constraint}")


def _log(job: Job) -> str:
    """The job's log, relative to the run folder.

    Raises:
        UsageError: the run folder's own path holds what Slurm replaces; the job would fail without a word.
    """
    pattern = _FILENAME_PATTERN.search(str(job.folder))
    if pattern:
        raise UsageError(
            f"run folder {job.folder}: in the path of a log, Slurm replaces {pattern[0]!r} by something else",
            "name another folder for the runs",
        )
    return job_log(job)


def submit(script: Path) -> list[str]:
    """Run inside the run folder, to which the log's path is relative."""
    return ["sbatch", "--parsable", str(script)]


def submitted(result: Completed) -> str:
    """The job id, with its cluster where sbatch names one.

    Raises:
        SchedulerError: with sbatch's own words.
    """
    lines = result.stdout.split()
    if result.exit_code:
        raise SchedulerError(
            f"Slurm refused the job: {result.words}", "change what it names and submit again"
        )
    if not lines or not _JOB_ID.fullmatch(lines[-1]):
        raise SchedulerError(f"sbatch printed no job id: {result.words}")
    return lines[-1]


def _at(cluster: str) -> list[str]:
    return [f"--clusters={cluster}"] if cluster else []


def cancel(job_id: str) -> list[str]:
    """End the job: TERM to all of it, KILL after the site's KillWait."""
    number, _, cluster = job_id.partition(";")
    return ["scancel", *_at(cluster), number]


def cancelled(result: Completed) -> None:
    """Check the answer; a job that is over is no error.

    Raises:
        SchedulerError: with scancel's own words.
    """
    over = ("already completing or completed", _UNKNOWN_JOB)
    if result.exit_code and not any(words in result.stderr for words in over):
        raise SchedulerError(f"Slurm did not cancel the job: {result.words}")


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


def _by_cluster(job_ids: Sequence[str], build: Callable[[list[str], str], list[str]]) -> list[str]:
    """One command for jobs of one cluster; else a shell line with one command a cluster."""
    numbers: dict[str, list[str]] = {}
    for job_id in job_ids:
        number, _, cluster = job_id.partition(";")
        numbers.setdefault(cluster, []).append(number)
    commands = [build(group, cluster) for cluster, group in numbers.items()]
    return commands[0] if len(commands) == 1 else ["bash", "-c", "; ".join(map(shlex.join, commands))]


def _squeue(job_ids: Sequence[str]) -> list[str]:
    return _by_cluster(job_ids, _squeue_at)


def _squeue_at(numbers: list[str], cluster: str) -> list[str]:
    # The cluster stands in the format, as text: squeue has no field for it.
    fields = f"%i{';' + cluster if cluster else ''}|%T|%r"
    return [
        "squeue",
        *_at(cluster),
        "--noheader",
        "--states=all",
        f"--format={fields}",
        f"--jobs={','.join(numbers)}",
    ]


def _parse_squeue(result: Completed) -> dict[str, Report]:
    """Jobs that are not over; how the others ended, scontrol tells with their exit code."""
    if result.exit_code and _UNKNOWN_JOB not in result.stderr:
        raise SchedulerError(f"Slurm does not answer: {result.words}", _UNREACHABLE_HINT)
    rows = (line.split("|", 2) for line in result.stdout.splitlines() if line.count("|") >= 2)
    reports = {job_id: report(word, reason) for job_id, word, reason in rows}
    return {job_id: seen for job_id, seen in reports.items() if not seen.state.over}


_UNREACHABLE_HINT = "nothing is known of the job now, and nothing was changed; try again later"

# scontrol takes one job at a time and does not print its cluster, so each answer follows its id.
_SCONTROL = r"""
for id; do
  cluster=${id#"${id%%;*}"}
  printf '%s ' "$id"
  scontrol ${cluster:+"--clusters=${cluster#;}"} --oneliner show job "${id%%;*}" || echo
done
"""


def _scontrol(job_ids: Sequence[str]) -> list[str]:
    return ["bash", "-c", _SCONTROL, "hpcdl", *job_ids]


def _parse_scontrol(result: Completed) -> dict[str, Report]:
    strange = [line for line in result.stderr.splitlines() if "error" in line and _UNKNOWN_JOB not in line]
    reports = {}
    for line in result.stdout.splitlines():
        # The first of a name counts: a path further on may hold anything.
        fields = dict(word.split("=", 1) for word in reversed(line.split(" ")) if "=" in word)
        if "JobState" in fields:
            state, reason, code = (fields.get(name, "") for name in ("JobState", "Reason", "ExitCode"))
            reports[line.split(" ", 1)[0]] = report(state, reason, code)
    if strange and not reports:
        raise SchedulerError(f"Slurm does not answer: {strange[-1]}", _UNREACHABLE_HINT)
    return reports


def _sacct(job_ids: Sequence[str]) -> list[str]:
    return _by_cluster(job_ids, _sacct_at)


def _sacct_at(numbers: list[str], cluster: str) -> list[str]:
    fields = "--format=JobIDRaw,Cluster,State,ExitCode"
    jobs = f"--jobs={','.join(numbers)}"
    return ["sacct", *_at(cluster), "--parsable2", "--noheader", "--allocations", fields, jobs]


def _parse_sacct(result: Completed) -> dict[str, Report]:
    """Every job under its number and under ``number;cluster``; none where there is no accounting."""
    reports = {}
    for line in result.stdout.splitlines():
        if line.count("|") == 3:
            number, cluster, state, code = line.split("|")
            reports[number] = reports[f"{number};{cluster}"] = report(state, "", code)
    return reports


QUERIES: tuple[Query, ...] = (
    Query(_squeue, _parse_squeue),
    Query(_scontrol, _parse_scontrol),
    Query(_sacct, _parse_sacct),
)
