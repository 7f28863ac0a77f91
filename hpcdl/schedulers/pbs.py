"""PBS Professional and OpenPBS: qsub, qstat, qdel.

Recorded on OpenPBS 23.06; the negative codes are those of src/include/job.h. Ended jobs are only told
of where the site keeps history, and then need ``-x``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcdl.errors import SchedulerError, SiteError
from hpcdl.schedulers.base import Job, JobState, Query, Report
from hpcdl.schedulers.directives import Directive, account, job_log, job_name, permitted
from hpcdl.shell import Completed
from hpcdl.sites.site import Site
from hpcdl.units import parse_walltime

TEMPLATE = "pbs.sh.j2"

_UNKNOWN_JOB, _JOB_FINISHED = 153, 35
"""Exit codes of the client commands: PBS error 15001 and 15139, modulo 256."""

_JOB_ID = re.compile(r"\d+(\[\d*\])?\.\S+")
_CHUNK_PART = re.compile(r"[A-Za-z_][\w.-]*=[\w.@/-]+")

_WAITING, _ALIVE = "QHWTM", "RSEBU"
"""Letters of jobs that are not over. E is over for the script, but its log may not have arrived."""

_OWN_ENDINGS = {
    -29: (JobState.TIMEOUT, "walltime exceeded"),
    -28: (JobState.TIMEOUT, "CPU time exceeded"),
    -27: (JobState.OUT_OF_MEMORY, "memory exceeded"),
    -26: (JobState.OUT_OF_MEMORY, "virtual memory exceeded"),
    -20: (JobState.NODE_FAILED, "the job's first host was lost"),
    -30: (JobState.NODE_FAILED, "hosts of the job did not join"),
    -4: (JobState.NODE_FAILED, "the host's daemon was restarted"),
    -5: (JobState.NODE_FAILED, "the host's daemon was restarted"),
    -6: (JobState.NODE_FAILED, "the host's daemon was restarted"),
    -1: (JobState.FAILED, "PBS could not start the job"),
    -2: (JobState.FAILED, "PBS could not start the job"),
    -3: (JobState.FAILED, "PBS could not start the job"),
}
"""What PBS itself did to a job, by the negative Exit_status that says so."""

_DELETED = 91
"""The substate of a job that qdel ended."""


def directives(job: Job) -> list[str]:
    """Lines of the script's head.

    Raises:
        SiteError, UsageError, SchedulerError: what the site forbids or wants and the job has not.
    """
    return [f"#PBS {text}" for text in permitted(_wanted(job), job.site)]


def _wanted(job: Job) -> Iterable[Directive]:
    resources, asked = job.run.experiment.resources, job.site.scheduler
    key, partition = job.site.partition(resources.queue)
    yield Directive("-N", f" {job_name(job)}", optional=True)
    yield Directive("-l select", f"={_select(job)}")
    if asked.place is not None:
        yield Directive("-l place", f"={asked.place}")
    yield Directive("-l walltime", f"={_time(resources.walltime)}")
    yield Directive("-q", f" {partition.name or key}")
    payer = account(job)
    if payer is not None:
        yield Directive(_account_option(job.site), f" {payer}")
    yield Directive("-j", " oe")
    # Written in place while the job runs; else it is spooled and copied at the end.
    yield Directive("-k", " oed", optional=True)
    yield Directive("-o", f" {job_log(job)}")
    yield Directive("-r", " y" if job.site.policy.requeue else " n", optional=True)


def _account_option(site: Site) -> str:
    """-A, or -P where the site takes projects instead."""
    return "-P" if "-A" in site.scheduler.forbidden else "-A"


def _select(job: Job) -> str:
    layout, scheduler = job.run.layout, job.site.scheduler
    chunk = {
        "ncpus": str(layout.ranks_per_node * layout.cores_per_rank),
        "mpiprocs": str(layout.ranks_per_node),
    }
    if scheduler.gpu_request != "none":
        chunk["ngpus"] = str(layout.ranks_per_node)
    parts = [f"{name}={value}" for name, value in (chunk | scheduler.select).items()]
    for part in parts:
        if not _CHUNK_PART.fullmatch(part):
            raise SiteError(
                f"site {job.site.name}, scheduler.select: {part!r} cannot stand in a select chunk"
            )
    return ":".join([str(layout.nodes), *parts])


def _time(walltime: str) -> str:
    """HH:MM:SS; PBS refuses days, and lets hours be more than 24."""
    minutes, seconds = divmod(parse_walltime(walltime), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


def submit(script: Path) -> list[str]:
    """Run inside the run folder, to which the log's path is relative."""
    return ["qsub", str(script)]


def submitted(result: Completed) -> str:
    """The job id with its server, whole.

    Raises:
        SchedulerError: with qsub's own words.
    """
    lines = result.stdout.split()
    if result.exit_code:
        raise SchedulerError(f"PBS refused the job: {result.words}", "change what it names and submit again")
    if not lines or not _JOB_ID.fullmatch(lines[-1]):
        raise SchedulerError(f"qsub printed no job id: {result.words}")
    return lines[-1]


def cancel(job_id: str) -> list[str]:
    """End the job: TERM to all of it, KILL after the queue's kill_delay."""
    return ["qdel", job_id]


def cancelled(result: Completed) -> None:
    """Check the answer; a job that is over is no error.

    Raises:
        SchedulerError: with qdel's own words.
    """
    if result.exit_code not in (0, _UNKNOWN_JOB, _JOB_FINISHED):
        raise SchedulerError(f"PBS did not cancel the job: {result.words}")


def report(job: Mapping[str, Any]) -> Report:
    """What the attributes of one job mean.

    Exit_status counts in F and X only: a job that waits again after a failed start still shows one.
    There, none at all means that the job never ran.
    """
    letter, comment = str(job.get("job_state", "")), str(job.get("comment", ""))
    words = f"{letter}: {comment}" if comment else letter
    if letter and letter in _WAITING:
        return Report(JobState.QUEUED, words)
    if letter and letter in _ALIVE:
        return Report(JobState.RUNNING, words)
    if letter not in ("F", "X"):
        return Report(JobState.UNKNOWN, words)
    if "Exit_status" not in job:
        return Report(JobState.CANCELLED, comment or "deleted before it ran")
    ended = _ended(int(job["Exit_status"]), comment)
    deleted = int(job.get("substate", 0)) == _DELETED
    return replace(ended, state=JobState.CANCELLED) if deleted else ended


def _ended(status: int, comment: str) -> Report:
    """How a job ended: 0 to 255 by its own exit code, 256 + n by signal n, below 0 by PBS itself."""
    if status < 0:
        state, words = _OWN_ENDINGS.get(status, (JobState.FAILED, f"ended by PBS with code {status}"))
        return Report(state, words)
    code, signal = (None, status - 256) if status >= 256 else (status, None)
    state = JobState.COMPLETED if status == 0 else JobState.FAILED
    words = comment or (f"killed by signal {signal}" if signal else "")
    return Report(state, words, code, signal)


def _qstat_json(job_ids: Sequence[str]) -> list[str]:
    return ["qstat", "-x", "-f", "-F", "json", *job_ids]


def _parse_json(result: Completed) -> dict[str, Report]:
    """Jobs by id; what is no JSON says nothing, and the text form is asked next."""
    _check(result)
    try:
        # Control characters of the jobs' variables stand in it as they are; release 22.05 leaves them so.
        jobs = json.loads(result.stdout, strict=False).get("Jobs", {})
    except ValueError:
        return {}
    return {job_id: report(job) for job_id, job in jobs.items()}


def _qstat_text(job_ids: Sequence[str]) -> list[str]:
    return ["qstat", "-x", "-f", *job_ids]


def _parse_text(result: Completed) -> dict[str, Report]:
    _check(result)
    jobs: dict[str, dict[str, str]] = {}
    for line in result.stdout.replace("\n\t", "").split("\n"):
        name, separator, value = line.strip().partition(" = ")
        if line.startswith("Job Id: "):
            jobs[line.removeprefix("Job Id: ").strip()] = {}
        elif separator and line.startswith("    ") and jobs:
            # The first one counts: a variable of the job may hold a newline and a line like these.
            jobs[next(reversed(jobs))].setdefault(name, value)
    return {job_id: report(job) for job_id, job in jobs.items()}


def _check(result: Completed) -> None:
    """A job that is not known is no error; a server that does not answer is.

    Raises:
        SchedulerError: with qstat's own words.
    """
    if result.exit_code not in (0, _UNKNOWN_JOB, _JOB_FINISHED):
        raise SchedulerError(
            f"PBS does not answer: {result.words}",
            "nothing is known of the job now, and nothing was changed; try again later",
        )


# The main branch of OpenPBS prints only the first of several jobs in JSON, and every release has values that
# make it no JSON; the text form has neither fault, but breaks lines at newlines in the jobs' variables.
QUERIES: tuple[Query, ...] = (Query(_qstat_json, _parse_json), Query(_qstat_text, _parse_text))
