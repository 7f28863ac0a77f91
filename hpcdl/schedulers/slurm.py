"""Slurm: what a job asks for, sbatch and scancel. How jobs are asked about stands in ``slurm_jobs``.

A job id is what ``sbatch --parsable`` printed, ``123`` or ``123;cluster``, with ``_2`` behind the number
for an element of an array; a cluster that it names goes into every later command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hpcdl.errors import NoAnswerError, SchedulerError, SiteError, UsageError
from hpcdl.schedulers import slurm_jobs as jobs
from hpcdl.schedulers.base import Directive, Elements, Job, Naming, Origin, Preflight, Query
from hpcdl.schedulers.directives import (
    account,
    excluded,
    job_log,
    job_name,
    permitted,
    queue,
    site,
    spec,
    warning_lead,
)
from hpcdl.schedulers.launch import cpus_per_rank, gpu_request
from hpcdl.shell import Completed
from hpcdl.units import MIB, format_walltime, parse_bytes, parse_walltime

TEMPLATE = "slurm.sh.j2"
PREFIX = "#SBATCH"
TIMED = False
LIMITED = True
EXCLUDES = True
OWN_JOB = '"${SLURM_JOB_ID-}"'
SUBMITS_FROM_JOBS = True
QUERIES: tuple[Query, ...] = jobs.QUERIES
NAMINGS: tuple[Naming, ...] = jobs.NAMINGS
controller = jobs.controller
_JOB_ID = re.compile(r"\d+(;[\w.-]+)?")
_CONSTRAINT = re.compile(r"[\w.:@&|!*()\[\],-]+")
_FILENAME_PATTERN = re.compile(r"%[\w%]|\\")


def directives(job: Job) -> list[Directive]:
    """The requests of the script's head.

    Raises:
        SiteError, UsageError, SchedulerError: what the site forbids or wants and the job has not.
    """
    return permitted(_wanted(job), job)


def _wanted(job: Job) -> Iterable[Directive]:
    layout, resources = job.run.layout, job.run.experiment.resources
    size = spec("resources.nodes" if resources.nodes else "resources.gpus")
    yield Directive("--job-name", f"={job_name(job)}", spec("name"), optional=True)
    yield Directive("--nodes", f"={layout.nodes}", size)
    yield Directive("--ntasks-per-node", f"={layout.ranks_per_node}", size)
    yield from _of_node(job)
    yield Directive("--time", f"={_time(resources.walltime)}", spec("resources.walltime"))
    yield from _partition(job)
    if job.exclude:
        yield Directive(
            "--exclude", f"={','.join(job.exclude)}", excluded(job), optional=not resources.exclude
        )
    yield from _of_machine(job)
    yield from _among_others(job)
    payer = account(job)
    if payer is not None:
        yield Directive("--account", f"={payer[0]}", payer[1])
    lead = warning_lead(job)
    if lead:
        # B: to the batch script alone; the steps would die of it.
        asked = spec(job.run.experiment.before_limit_key)
        yield Directive("--signal", f"=B:USR1@{lead}", asked, optional=True)
    yield Directive("--output", f"={_log(job)}")
    # A job that is requeued would otherwise begin its log anew (JobFileAppend=0 by default).
    yield Directive("--open-mode", "=append", optional=True)
    requeue = "--requeue" if job.site.policy.requeue else "--no-requeue"
    yield Directive(requeue, "", site("policy.requeue"), optional=True)


def _of_node(job: Job) -> Iterable[Directive]:
    """What each node gives: CPUs, devices, memory."""
    layout, scheduler = job.run.layout, job.site.scheduler
    node = job.site.partition(job.run.experiment.resources.queue)[1].node
    cores = site(f"nodes.{node}.cores")
    yield Directive("--cpus-per-task", f"={cpus_per_rank(job)}", cores, optional=True)
    for request in gpu_request(job):
        option, _, value = request.partition("=")
        yield Directive(option, f"={value}", site("scheduler.gpu_request"))
    if scheduler.memory_per_device is not None:
        memory = parse_bytes(scheduler.memory_per_device) * layout.ranks_per_node
        yield Directive("--mem", f"={memory // MIB}M", site("scheduler.memory_per_device"))


def _of_machine(job: Job) -> Iterable[Directive]:
    scheduler = job.site.scheduler
    if scheduler.network is not None:
        yield Directive("--network", f"={scheduler.network}", site("scheduler.network"))
    if scheduler.cluster is not None:
        yield Directive("--clusters", f"={scheduler.cluster}", site("scheduler.cluster"))


def _among_others(job: Job) -> Iterable[Directive]:
    """What the job has to do with other jobs: those it waits for, and the array that it is."""
    if job.after is not None:
        kind = {"ok": "afterok", "failed": "afternotok", "any": "afterany"}[job.after.ending]
        numbers = ":".join(_number_here(job_id, job) for job_id in job.after.job_ids)
        yield Directive("--dependency", f"={kind}:{numbers}", Origin("flag", "--after"))
        # A job whose condition can no longer come true would else wait for ever.
        yield Directive("--kill-on-invalid-dep", "=yes", Origin("flag", "--after"), optional=True)
    if job.array is not None:
        at_once = f"%{job.array.at_once}" if job.array.at_once else ""
        yield Directive("--array", f"=0-{job.array.size - 1}{at_once}", Origin("flag", "--repeat"))


def _number_here(job_id: str, job: Job) -> str:
    """The number of a job that this one waits for.

    Raises:
        UsageError: it is a job of another cluster, for which Slurm cannot wait.
    """
    number, _, cluster = job_id.partition(";")
    here = job.site.scheduler.cluster
    if cluster and here and cluster != here:
        raise UsageError(
            f"--after: job {job_id} is one of cluster {cluster}, but this one goes to {here} "
            f"({job.site.place('scheduler', 'cluster')})",
            "a job can wait for jobs of its own cluster only",
        )
    return number


def _time(walltime: str) -> str:
    """D-HH:MM:SS, the one spelling that sbatch cannot take for minutes."""
    text = format_walltime(parse_walltime(walltime))
    return text if "-" in text else f"0-{text}"


def _partition(job: Job) -> Iterable[Directive]:
    key, partition = job.site.partition(job.run.experiment.resources.queue)
    if partition.kind != "implicit":
        name, origin = queue(job)
        yield Directive("--qos" if partition.kind == "qos" else "--partition", f"={name}", origin)
    if partition.constraint is not None:
        if not _CONSTRAINT.fullmatch(partition.constraint):
            place = job.site.place("partitions", key, "constraint")
            raise SiteError(
                f"{place}: constraint {partition.constraint!r} cannot stand in a directive",
                "join features by & or |, without spaces: gpu&hbm80g",
            )
        yield Directive("--constraint", f"={partition.constraint}", site(f"partitions.{key}.constraint"))


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
    return job_log(job, "%a")


def _preflight(script: Path) -> list[str]:
    return ["sbatch", "--test-only", str(script)]


def _judged(result: Completed) -> str:
    """When the job would start; sbatch says so on standard error.

    Raises:
        NoAnswerError: sbatch did not reach slurmctld, or told nothing of its judgement.
        SchedulerError: the job would be refused; with sbatch's own words.
    """
    if result.exit_code and _is_no_answer(result):
        raise NoAnswerError(
            f"Slurm does not answer: {result.words}", "nothing was submitted; try again later"
        )
    if result.exit_code:
        raise SchedulerError(f"Slurm would refuse the job: {result.words}", _REFUSAL_HINT)
    start = _START.search(result.stderr)
    return start[1] if start else ""


_START = re.compile(r"\bto start at (\S+)")
_AWAY = "Unable to contact slurm controller"  # no judgement of the job; seen in 22.05
_NO_ANSWER = (
    "Socket timed out on send/recv operation",
    "Zero Bytes were transmitted or received",
    "Message receive failure",
    *(f"Unable to contact slurm controller ({what} failure)" for what in ("send", "receive", "shutdown")),
)
"""What sbatch says where slurmctld was reached, and its answer did not come (src/common/slurm_errno.c)."""

_REFUSAL_HINT = "change what it names and submit again; nothing was submitted"

PREFLIGHT: Preflight | None = Preflight(_preflight, _judged)
"""``sbatch --test-only``: the whole judgement of slurmctld, and an estimated start. It uses up a job id."""


def submit(script: Path) -> list[str]:
    """Run inside the run folder, to which the log's path is relative."""
    return ["sbatch", "--parsable", str(script)]


def submitted(result: Completed) -> str:
    """The job id, with its cluster where sbatch names one.

    Raises:
        NoAnswerError: sbatch did not reach slurmctld, or told nothing of its answer.
        SchedulerError: with sbatch's own words.
    """
    lines = result.stdout.split()
    if result.exit_code and _is_no_answer(result):
        raise NoAnswerError(f"Slurm gave no answer: {result.words}")
    if result.exit_code:
        raise SchedulerError(f"Slurm refused the job: {result.words}", _REFUSAL_HINT)
    if not lines or not _JOB_ID.fullmatch(lines[-1]):
        raise NoAnswerError(f"sbatch printed no job id: {result.words}")
    return lines[-1]


def _is_no_answer(result: Completed) -> bool:
    return result.killed or any(words in result.stderr for words in (_AWAY, *_NO_ANSWER))


def element(job_id: str, index: int) -> str:
    """``16_2`` of array 16, with its cluster."""
    number, separator, cluster = job_id.partition(";")
    return f"{number}_{index}{separator}{cluster}"


def whole(job_id: str) -> str:
    """``16`` of element ``16_2``, with its cluster."""
    number, separator, cluster = job_id.partition(";")
    return f"{number.partition('_')[0]}{separator}{cluster}"


ELEMENTS: Elements | None = Elements(
    "SLURM_ARRAY_TASK_ID",
    element,
    whole,
    '"${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"',
)


def cancel(job_id: str) -> list[str]:
    """End the job: TERM to all of it, KILL after the site's KillWait."""
    number, _, cluster = job_id.partition(";")
    # scancel finds jobs of a federation by itself, and has no option for it.
    return ["scancel", *([f"--clusters={cluster}"] if cluster else []), number]


def cancelled(result: Completed) -> None:
    """Check the answer; a job that is over is no error.

    Raises:
        NoAnswerError: slurmctld may have ended it.
        SchedulerError: with scancel's own words.
    """
    over = ("already completing or completed", jobs.UNKNOWN_JOB)
    if result.exit_code and any(words in result.stderr for words in _NO_ANSWER):
        raise NoAnswerError(f"Slurm gave no answer: {result.words}", "it may have ended the job all the same")
    if result.exit_code and not any(words in result.stderr for words in over):
        raise SchedulerError(f"Slurm did not cancel the job: {result.words}")
