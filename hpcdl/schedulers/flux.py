"""Flux: flux batch, flux jobs, flux cancel.

Written from flux-core's manual pages and sources, and tested on output recorded from flux-core 0.89; no
machine that Flux itself runs has seen it yet. A job id is kept in its ASCII spelling, ``f58``: in a UTF-8
locale Flux prints the letter ``ƒ`` for the ``f``, and it takes either.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcdl.errors import NoAnswerError, SchedulerError, UsageError
from hpcdl.schedulers.base import Directive, Elements, Job, JobState, Naming, Origin, Preflight, Query, Report
from hpcdl.schedulers.directives import account, excluded, job_log, job_name, permitted, queue, site, spec
from hpcdl.shell import Completed
from hpcdl.sites.site import Site
from hpcdl.units import parse_walltime

TEMPLATE = "flux.sh.j2"
PREFIX = "# flux:"
TIMED = True
LIMITED = True
EXCLUDES = True
# Flux takes FLUX_JOB_ID away from batch scripts (flux-environment(7)), and may spell the id with an ƒ.
OWN_JOB = '"$(flux getattr jobid 2>/dev/null | sed s/^ƒ/f/)"'
SUBMITS_FROM_JOBS = False  # they reach the instance that Flux starts for the job
ELEMENTS: Elements | None = None
PREFLIGHT: Preflight | None = None

_JOB_ID = re.compile(r"[ƒf][1-9A-HJ-NP-Za-km-z]+")
"""The letter and a number in base 58 (Flux RFC 19)."""

_MUSTACHE = "{{"
"""What Flux replaces in the arguments of ``flux run``, as in ``{{id}}``."""

_TRY_LATER = "nothing is known of the job now, and nothing was changed; try again later"

_DEPENDENCIES = {"ok": "afterok", "failed": "afternotok", "any": "afterany"}

_STATES = {
    **dict.fromkeys(("NEW", "DEPEND", "PRIORITY", "SCHED"), JobState.QUEUED),
    **dict.fromkeys(("RUN", "CLEANUP"), JobState.RUNNING),
}
"""Of jobs that are not over (Flux RFC 21)."""

_RESULTS = {
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
}

_EXCEPTIONS = {"node-failure": JobState.NODE_FAILED, "dependency": JobState.CANCELLED}
"""What made a job FAILED, where that is more than its own doing."""

_ALARM = 142
"""Exit code of a script whose ranks Flux ended with SIGALRM, as it does at the time limit."""


def directives(job: Job) -> list[Directive]:
    """The requests of the script's head.

    Raises:
        SiteError, UsageError, SchedulerError: what the site forbids or wants and the job has not.
    """
    _check_arguments(job)
    return permitted(_wanted(job), job)


def _check_arguments(job: Job) -> None:
    """Nothing that Flux would replace may stand in what a rank is called with.

    Raises:
        UsageError: the run folder or the interpreter has such a path.
    """
    for name, path in (("run folder", str(job.folder)), ("interpreter", job.python)):
        if _MUSTACHE in path:
            raise UsageError(
                f"{name} {path}: Flux replaces what stands between {_MUSTACHE} and }}}} by something else",
                f"give the {name} another path",
            )


def _wanted(job: Job) -> Iterable[Directive]:
    resources = job.run.experiment.resources
    yield Directive("--job-name", f"={job_name(job)}", spec("name"), optional=True)
    yield from _size(job)
    # In seconds with their unit: a bare number would be minutes.
    yield Directive("--time-limit", f"={parse_walltime(resources.walltime)}s", spec("resources.walltime"))
    name, origin = queue(job)
    # An instance that a user started has no queues and refuses the word; there a site file forbids it.
    yield Directive("--queue", f"={name}", origin, optional=True)
    if job.exclude:
        yield Directive(
            "--requires", f"=-host:{','.join(job.exclude)}", excluded(job), optional=not resources.exclude
        )
    payer = account(job)
    if payer is not None:
        yield Directive("--bank", f"={payer[0]}", payer[1])
    yield Directive("--output", f"={job_log(job)}")
    if job.after is not None:
        for job_id in job.after.job_ids:
            wanted = f"={_DEPENDENCIES[job.after.ending]}:{job_id}"
            yield Directive("--dependency", wanted, Origin("flag", "--after"))


def _size(job: Job) -> Iterable[Directive]:
    """A slot a rank, on whole nodes where the queue does not share them."""
    resources, layout = job.run.experiment.resources, job.run.layout
    key, partition = job.site.partition(resources.queue)
    size = spec("resources.nodes" if resources.nodes else "resources.gpus")
    yield Directive("--nodes", f"={layout.nodes}", size)
    yield Directive("--nslots", f"={layout.ranks}", size)
    yield Directive("--cores-per-slot", f"={layout.cores_per_rank}", site("nodes"))
    if job.site.scheduler.gpu_request != "none":
        yield Directive("--gpus-per-slot", "=1", site("scheduler.gpu_request"))
    if not partition.shared:
        yield Directive("--exclusive", "", site(f"partitions.{key}"))


def submit(script: Path) -> list[str]:
    """Run inside the run folder, which becomes the job's own and to which the log's path is relative."""
    return ["flux", "batch", str(script)]


def submitted(result: Completed) -> str:
    """The job id, in ASCII.

    Raises:
        NoAnswerError: flux batch told nothing of Flux's answer.
        SchedulerError: with Flux's own words.
    """
    words = result.stdout.split()
    if result.killed:
        raise NoAnswerError(f"Flux gave no answer: {result.words}")
    if result.exit_code:
        raise SchedulerError(f"Flux refused the job: {result.words}", "change what it names and submit again")
    if not words or not _JOB_ID.fullmatch(words[-1]):
        raise NoAnswerError(f"flux batch printed no job id: {result.words}")
    return _ascii(words[-1])


def _ascii(job_id: str) -> str:
    return job_id.replace("ƒ", "f")


def controller(_: str) -> str:
    """The instance that commands reach: another one knows other jobs."""
    return os.environ.get("FLUX_URI", "")


def cancel(job_id: str) -> list[str]:
    """End the job: TERM to all of it, KILL after the instance's kill-timeout (5 s unless configured)."""
    return ["flux", "cancel", job_id]


def cancelled(result: Completed) -> None:
    """Check the answer; a job that is over is no error.

    Raises:
        SchedulerError: with Flux's own words.
    """
    over = ("unknown job id", "inactive")
    if result.exit_code and not any(words in result.stderr for words in over):
        raise SchedulerError(f"Flux did not cancel the job: {result.words}")


def report(job: Mapping[str, Any]) -> Report:
    """What one job of ``flux jobs --json`` means."""
    word = str(job.get("state", ""))
    if word == "INACTIVE":
        return _ended(job)
    waits_for = [str(dependency) for dependency in job.get("dependencies") or ()]
    if job.get("urgency") == 0:
        waits_for.append("held")
    words = f"{word}: {', '.join(waits_for)}" if waits_for else word
    return Report(_STATES.get(word, JobState.UNKNOWN), words)


def _ended(job: Mapping[str, Any]) -> Report:
    """How a job ended; its exit code counts only where the job itself chose it."""
    result, exception = str(job.get("result", "")), job.get("exception") or {}
    kind, note = str(exception.get("type", "")), str(exception.get("note", ""))
    code, signal = _codes(job.get("waitstatus"))
    state = _RESULTS.get(result, JobState.UNKNOWN)
    if state is JobState.FAILED:
        state = JobState.TIMEOUT if code == _ALARM else _EXCEPTIONS.get(kind, state)
    chosen = state in (JobState.COMPLETED, JobState.FAILED)
    words = ": ".join(filter(None, (result, kind, note)))
    return Report(state, words, code if chosen else None, signal if chosen else None)


def _codes(status: object) -> tuple[int | None, int | None]:
    """Exit code and signal in a wait status (wait(2)); none in that of a job that never ran."""
    if not isinstance(status, int):
        return None, None
    return (None, status & 0x7F) if status & 0x7F else (status >> 8, None)


def _flux_jobs(job_ids: Sequence[str]) -> list[str]:
    return ["flux", "jobs", "--json", *job_ids]


def _parse(result: Completed) -> dict[str, Report]:
    """Jobs by id; those that Flux does not know stand in stderr, a line each.

    Raises:
        SchedulerError: with Flux's own words.
    """
    strange = [line for line in result.stderr.splitlines() if not re.fullmatch(r"JobID \S+ unknown", line)]
    if result.exit_code and (strange or not result.stderr):
        raise SchedulerError(
            f"Flux does not answer: {result.words}",
            _TRY_LATER,
        )
    return {_ascii(str(job["jobid"])): report(job) for job in _jobs(result.stdout)}


def _jobs(text: str) -> list[dict[str, Any]]:
    """The jobs in an answer: one that was asked for alone is printed bare, several stand in a list.

    Raises:
        SchedulerError: it is something else.
    """
    try:
        answer = json.loads(text or "{}")
        return [job for job in answer.get("jobs", [answer]) if "jobid" in job]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise SchedulerError(f"flux jobs printed something else than jobs: {text.strip()[:200]!r}") from None


QUERIES: tuple[Query, ...] = (Query(_flux_jobs, _parse),)


def _flux_names(name: str, user: str, _: Site) -> list[str]:
    return ["flux", "jobs", "-a", f"--user={user}", f"--name={name}", "--json"]


def _parse_names(result: Completed, _: Site) -> list[str]:
    """The jobs of a name.

    Raises:
        SchedulerError: with Flux's own words.
    """
    if result.exit_code:
        raise SchedulerError(f"Flux does not answer: {result.words}", _TRY_LATER)
    return [_ascii(str(job["jobid"])) for job in _jobs(result.stdout)]


NAMINGS: tuple[Naming, ...] = (Naming(_flux_names, _parse_names),)
