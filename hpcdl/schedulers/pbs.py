"""PBS Professional and OpenPBS: what a job asks for; qsub, qstat, qdel.

What qstat answers is read in ``pbs_answers``. Recorded on OpenPBS, the main branch of 2026-04.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpcdl.errors import NoAnswerError, SchedulerError, SiteError, UsageError
from hpcdl.schedulers.base import After, Array, Directive, Elements, Job, Naming, Origin, Preflight, Query
from hpcdl.schedulers.directives import account, job_log, job_name, permitted, queue, site, spec
from hpcdl.schedulers.launch import processes_per_node
from hpcdl.schedulers.pbs_answers import JOB_FINISHED, UNKNOWN_JOB, parse_json, parse_text
from hpcdl.shell import Completed
from hpcdl.sites.site import Site
from hpcdl.units import parse_bytes, parse_walltime

TEMPLATE = "pbs.sh.j2"
PREFIX = "#PBS"
TIMED = True
LIMITED = True
EXCLUDES = False
OWN_JOB = '"${PBS_JOBID-}"'
SUBMITS_FROM_JOBS = True
PREFLIGHT: Preflight | None = None

_JOB_ID = re.compile(r"\d+(\[\d*\])?\.\S+")
_PARENT_ID = re.compile(r"\d+(\[\d*\])?(\.[\w.-]+)?")
_CHUNK_PART = re.compile(r"[A-Za-z_][\w.-]*=[\w.@/-]+")
_PLACE = re.compile(r"[\w:=]+")

_AWAY, _HOST_AWAY = (160, 162), 222
"""Exit codes of the clients: no such server, or no connection to it; none from it to the job's host."""

_NO_ANSWER = (183, 185, 186, 212)
"""Others that judge no job: the connection broke (PBSE_PROTOCOL), there was none (NOCONNECTS, NOSERVER), the
server is ending (SVRDOWN). Of pbs_error.h modulo 256, as clients exit; not seen."""

_DEPENDENCIES = {"ok": "afterok", "failed": "afternotok", "any": "afterany"}
_UNITS = (("gb", 2**30), ("mb", 2**20), ("kb", 2**10))


def directives(job: Job) -> list[Directive]:
    """The requests of the script's head.

    Raises:
        SiteError, UsageError, SchedulerError: what the site forbids or wants and the job has not.
    """
    return permitted(_wanted(job), job)


def _wanted(job: Job) -> Iterable[Directive]:
    resources = job.run.experiment.resources
    yield Directive("-N", f" {job_name(job)}", spec("name"), optional=True)
    size = spec("resources.nodes" if resources.nodes else "resources.gpus")
    yield Directive("-l select", f"={_select(job)}", size)
    yield from _place(job.site)
    yield Directive("-l walltime", f"={_time(resources.walltime)}", spec("resources.walltime"))
    yield _queue(job)
    payer = account(job)
    if payer is not None:
        yield Directive(_account_option(job.site), f" {payer[0]}", payer[1])
    yield Directive("-j", " oe")
    # Written in place while the job runs; else it is spooled and copied at the end.
    yield Directive("-k", " oed", optional=True)
    # PBS replaces the word by the index of an element (recorded, with -k oed too), and nowhere else.
    yield Directive("-o", f" {job_log(job, '^array_index^')}")
    if job.after is not None:
        yield _dependency(job.after)
    if job.array is not None:
        yield _elements(job.array)
    else:
        # PBS may start the elements of an array again whatever they want, and refuses arrays that say no.
        again = " y" if job.site.policy.requeue else " n"
        yield Directive("-r", again, site("policy.requeue"), optional=True)


def _queue(job: Job) -> Directive:
    name, origin = queue(job)
    return Directive("-q", f" {name}", origin)


def _place(machine: Site) -> Iterable[Directive]:
    place = machine.scheduler.place
    if place is None:
        return
    if not _PLACE.fullmatch(place):
        where = machine.place("scheduler", "place")
        raise SiteError(
            f"{where}: scheduler.place {place!r} cannot stand in a directive", "e.g. scatter:excl"
        )
    yield Directive("-l place", f"={place}", site("scheduler.place"))


def _dependency(after: After) -> Directive:
    for job_id in after.job_ids:
        if not _PARENT_ID.fullmatch(job_id):
            raise UsageError(
                f"--after: {job_id!r} is no job id of PBS", "give it as qsub printed it: 72.server"
            )
    ids = ":".join(after.job_ids)
    return Directive("-W depend", f"={_DEPENDENCIES[after.ending]}:{ids}", Origin("flag", "--after"))


def _elements(array: Array) -> Directive:
    if array.size == 1:
        raise UsageError("PBS has no array of one element", "submit this run alone, without --repeat")
    at_once = f"%{array.at_once}" if array.at_once else ""
    return Directive("-J", f" 0-{array.size - 1}{at_once}", Origin("flag", "--repeat"))


def _account_option(machine: Site) -> str:
    """-A, or -P where the site takes projects instead."""
    return "-P" if "-A" in machine.scheduler.forbidden else "-A"


def _select(job: Job) -> str:
    """One chunk a node. A site that forbids a key of it fixes that resource itself."""
    asked, chunk = job.site.scheduler, _chunk(job) | job.site.scheduler.select
    parts = [f"{name}={value}" for name, value in chunk.items() if name not in asked.forbidden]
    for part in parts:
        if not _CHUNK_PART.fullmatch(part):
            where = job.site.place("scheduler", "select", part.partition("=")[0])
            raise SiteError(
                f"{where}: scheduler.select: {part!r} cannot stand in a select chunk",
                "a value holds letters, digits and _ . @ / -",
            )
    return ":".join([str(job.run.layout.nodes), *parts])


def _chunk(job: Job) -> dict[str, str]:
    layout, asked = job.run.layout, job.site.scheduler
    node = job.site.node(job.run.experiment.resources.queue)
    cores = layout.ranks_per_node * layout.cores_per_rank
    chunk = {"ncpus": str(cores * node.threads_per_core), "mpiprocs": str(processes_per_node(job))}
    if asked.gpu_request != "none":
        chunk["ngpus"] = str(layout.ranks_per_node)
    if asked.memory_per_device is not None:
        chunk["mem"] = _size(layout.ranks_per_node * parse_bytes(asked.memory_per_device))
    return chunk


def _size(count: int) -> str:
    """Bytes in the largest unit that needs no fraction, which PBS refuses; rounded up to a kb."""
    unit, factor = next((row for row in _UNITS if count % row[1] == 0), _UNITS[-1])
    return f"{-(-count // factor)}{unit}"


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
        NoAnswerError: qsub did not reach the server, or told nothing of its answer.
        SchedulerError: with qsub's own words.
    """
    lines = result.stdout.split()
    if result.exit_code in _AWAY + _NO_ANSWER or result.killed:
        raise NoAnswerError(f"PBS does not answer: {result.words}")
    if result.exit_code:
        raise SchedulerError(f"PBS refused the job: {result.words}", "change what it names and submit again")
    if not lines or not _JOB_ID.fullmatch(lines[-1]):
        raise NoAnswerError(f"qsub printed no job id: {result.words}")
    return lines[-1]


def element(job_id: str, index: int) -> str:
    """``72[2].server`` of array ``72[].server``."""
    before, _, server = job_id.partition("[]")
    return f"{before}[{index}]{server}"


def whole(job_id: str) -> str:
    """``72[].server`` of element ``72[2].server``."""
    return re.sub(r"\[\d+\]", "[]", job_id, count=1)


ELEMENTS: Elements | None = Elements("PBS_ARRAY_INDEX", element, whole, OWN_JOB)


def controller(_: str) -> str:
    """The one server that commands reach; it knows the way to others."""
    return ""


def cancel(job_id: str) -> list[str]:
    """End the job: TERM to all of it, KILL after the queue's kill_delay."""
    return ["qdel", job_id]


def cancelled(result: Completed) -> None:
    """Check the answer; a job that is over is no error.

    Raises:
        SchedulerError: with qdel's own words.
    """
    if result.exit_code not in (0, UNKNOWN_JOB, JOB_FINISHED):
        forced = "its host is lost; qdel -W force ends the job in the server's books"
        hint = forced if result.exit_code == _HOST_AWAY else None
        raise SchedulerError(f"PBS did not cancel the job: {result.words}", hint)


def _qstat_json(job_ids: Sequence[str]) -> list[str]:
    """One job by its id; else all jobs, as the main branch prints only the first of several in JSON."""
    if len(job_ids) == 1:
        return ["qstat", "-x", "-f", "-F", "json", *job_ids]
    elements = ["-t"] if any(re.search(r"\[\d", job_id) for job_id in job_ids) else []
    return ["qstat", "-x", *elements, "-f", "-F", "json"]


def _qstat_text(job_ids: Sequence[str]) -> list[str]:
    return ["qstat", "-x", "-f", *job_ids]


def _qstat_now(job_ids: Sequence[str]) -> list[str]:
    return ["qstat", "-f", *job_ids]


# Every release has values that make the answer no JSON; the text form has not, but breaks lines at newlines
# in the jobs' variables. A server that keeps no history answers neither with -x, only without it.
QUERIES: tuple[Query, ...] = (
    Query(_qstat_json, parse_json),
    Query(_qstat_text, parse_text),
    Query(_qstat_now, parse_text),
)


def _qselect_all(name: str, user: str, _: Site) -> list[str]:
    return ["qselect", "-x", "-u", user, "-N", name]


def _qselect_now(name: str, user: str, _: Site) -> list[str]:
    return ["qselect", "-u", user, "-N", name]


def _selected(result: Completed, _: Site) -> list[str]:
    """The jobs of a name; of an array its own id.

    Raises:
        SchedulerError: with qselect's own words.
    """
    lines = result.stdout.split()
    if result.exit_code or not all(_JOB_ID.fullmatch(line) for line in lines):
        raise SchedulerError(
            f"PBS does not answer: {result.words}",
            "nothing is known of the job now, and nothing was changed; try again later",
        )
    return lines


# A server that keeps no history answers nothing to -x, and exits with 0.
NAMINGS: tuple[Naming, ...] = (Naming(_qselect_all, _selected), Naming(_qselect_now, _selected))
