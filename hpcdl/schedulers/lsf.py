"""IBM Spectrum LSF: bsub, bjobs, bkill.

Written from IBM's and OLCF's documentation and tested on output that was published; no LSF has seen it
yet. bjobs tells of ended jobs until CLEAN_PERIOD has passed (an hour unless configured); what comes later
is answered by the script's own exit record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.schedulers.base import Directive, Elements, Job, JobState, Naming, Origin, Preflight, Query, Report
from hpcdl.schedulers.directives import account, excluded, job_log, job_name, permitted, queue, site, spec
from hpcdl.shell import Completed
from hpcdl.sites.site import Site
from hpcdl.units import parse_walltime

TEMPLATE = "lsf.sh.j2"
PREFIX = "#BSUB"
TIMED = True
LIMITED = True
EXCLUDES = True
OWN_JOB = '"${LSB_JOBID-}"'
SUBMITS_FROM_JOBS = True
PREFLIGHT: Preflight | None = None

_SUBMITTED = re.compile(r"Job <(\d+)> is submitted to ")
_JOB_ID = re.compile(r"\d+(\[\d+\])?")
_FIELDS = "jobid jobindex stat exit_code exit_reason delimiter='|'"
_UNKNOWN_JOB = re.compile(r"Job <.*> is not found|No (unfinished |matching )?job found.*")

_TRY_LATER = "nothing is known of the job now, and nothing was changed; try again later"

_CONDITIONS = {"ok": "done", "failed": "exit", "any": "ended"}

# Which of its two ways of taking a script LSF has is a setting of the site: where LSB_BSUB_PARSE_SCRIPT is
# set, "bsub FILE" reads the file's directives, and redirection need not work (it did not on Summit); where
# it is not, "bsub FILE" would run the file and read no directive at all.
_SUBMIT = r"""
if grep -Eiqs '^[[:space:]]*LSB_BSUB_PARSE_SCRIPT[[:space:]]*=[[:space:]]*"?y' "${LSF_ENVDIR:-/etc}/lsf.conf"
then exec bsub "$1"
else exec bsub <"$1"
fi
"""

_STATES = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT", "PROV"), JobState.QUEUED),
    **dict.fromkeys(("RUN", "USUSP", "SSUSP"), JobState.RUNNING),
    **dict.fromkeys(("DONE", "POST_DONE", "POST_ERR"), JobState.COMPLETED),
    "EXIT": JobState.FAILED,
}
"""LSF's words. UNKWN and ZOMBI are left out: LSF has lost the job's host, and the job may be running."""

_REASONS = {
    **dict.fromkeys(("RUNLIMIT", "CPULIMIT", "DEADLINE", "WINDOW"), JobState.TIMEOUT),
    **dict.fromkeys(("MEMLIMIT", "SWAP"), JobState.OUT_OF_MEMORY),
    **dict.fromkeys(("OWNER", "FORCE_OWNER", "ADMIN", "FORCE_ADMIN"), JobState.CANCELLED),
    **dict.fromkeys(("BUCKET_KILL", "ORPHAN_SYSTEM"), JobState.CANCELLED),
    "REMOVE_HUNG_JOB": JobState.NODE_FAILED,
    "PREEMPT": JobState.PREEMPTED,
}
"""What LSF itself did to a job, by the TERM_ word of its exit reason."""


def directives(job: Job) -> list[Directive]:
    """The requests of the script's head.

    Raises:
        SiteError, UsageError, SchedulerError: what the site forbids or wants and the job has not.
    """
    return permitted(_wanted(job), job)


def _wanted(job: Job) -> Iterable[Directive]:
    resources = job.run.experiment.resources
    yield _name(job)
    yield from _size(job)
    if job.exclude:
        others = " && ".join(f"hname!='{name}'" for name in job.exclude)
        yield Directive("-R", f' "select[{others}]"', excluded(job), optional=not resources.exclude)
    yield Directive("-W", f" {_time(resources.walltime)}", spec("resources.walltime"))
    name, origin = queue(job)
    yield Directive("-q", f" {name}", origin)
    payer = account(job)
    if payer is not None:
        yield Directive(_account_option(job.site), f" {payer[0]}", payer[1])
    # Without it LSF mails what a job prints. It is appended to, and that after the job has ended unless
    # the site says otherwise; so the script itself writes to the log, and this adds LSF's own report.
    yield Directive("-o", f" {'/dev/null' if job.array else job_log(job)}")
    requeue = "-r" if job.site.policy.requeue else "-rn"
    yield Directive(requeue, "", site("policy.requeue"), optional=True)
    if job.after is not None:
        met = " && ".join(f"{_CONDITIONS[job.after.ending]}({job_id})" for job_id in job.after.job_ids)
        # -ti: a job whose condition can never be met is ended instead of waiting for ever.
        yield Directive("-w", f' "{met}" -ti', Origin("flag", "--after"))


def _name(job: Job) -> Directive:
    """The name, which for an array holds its indices too; LSF counts from 1."""
    if job.array is None:
        return Directive("-J", f" {job_name(job)}", spec("name"), optional=True)
    at_once = f"%{job.array.at_once}" if job.array.at_once else ""
    wanted = f' "{job_name(job)}[1-{job.array.size}]{at_once}"'
    return Directive("-J", wanted, Origin("flag", "--repeat"))


def _size(job: Job) -> Iterable[Directive]:
    """Whole nodes where jsrun divides them among the ranks; else a slot a core, and devices a host."""
    resources, layout, scheduler = job.run.experiment.resources, job.run.layout, job.site.scheduler
    size = spec("resources.nodes" if resources.nodes else "resources.gpus")
    if job.site.launch.launcher == "jsrun":
        yield Directive("-nnodes", f" {layout.nodes}", size)
        return
    slots = layout.ranks_per_node * layout.cores_per_rank
    yield Directive("-n", f" {layout.nodes * slots}", size)
    yield Directive("-R", f' "span[ptile={slots}]"', size)
    if scheduler.gpu_request != "none":
        gpu_type = job.site.gpu_type(job.run.experiment.resources.queue)
        model = f":gmodel={gpu_type}" if gpu_type else ""
        wanted = f' "num={layout.ranks_per_node}{model}"'
        yield Directive("-gpu", wanted, site("scheduler.gpu_request"))


def _account_option(machine: Site) -> str:
    """-P, or -G where the site charges user groups (banks) instead of projects."""
    return "-G" if "-P" in machine.scheduler.forbidden else "-P"


def _time(walltime: str) -> str:
    """H:MM, rounded up: LSF knows no seconds."""
    hours, minutes = divmod(-(-parse_walltime(walltime) // 60), 60)
    return f"{hours}:{minutes:02d}"


def submit(script: Path) -> list[str]:
    """Run inside the run folder, which becomes the job's own and to which the log's path is relative."""
    return ["bash", "-c", _SUBMIT, "hpcdl", f"./{script.name}"]


def submitted(result: Completed) -> str:
    """The number in ``Job <123> is submitted to queue <normal>.``, before which a site may print its own.

    Raises:
        NoAnswerError: bsub told nothing of LSF's answer.
        SchedulerError: with bsub's own words.
    """
    numbers = _SUBMITTED.findall(result.stdout)
    if result.killed:
        raise NoAnswerError(f"LSF gave no answer: {result.words}")
    if result.exit_code:
        raise SchedulerError(f"LSF refused the job: {result.words}", "change what it names and submit again")
    if not numbers:
        raise NoAnswerError(f"bsub printed no job id: {result.words}")
    return str(numbers[-1])


def element(job_id: str, index: int) -> str:
    """``123[3]``, the third of array 123, for index 2."""
    return f"{job_id}[{index + 1}]"


def whole(job_id: str) -> str:
    """``123`` of element ``123[3]``."""
    return job_id.partition("[")[0]


# The template sets the variable: LSB_JOBINDEX counts from 1.
ELEMENTS: Elements | None = Elements(
    "hpcdl_index", element, whole, '"${LSB_JOBID:+${LSB_JOBID}[${LSB_JOBINDEX}]}"'
)


def controller(_: str) -> str:
    """The one cluster that commands reach."""
    return ""


def cancel(job_id: str) -> list[str]:
    """End the job: INT, TERM and KILL to all of it, JOB_TERMINATE_INTERVAL apart."""
    return ["bkill", job_id]


def cancelled(result: Completed) -> None:
    """Check the answer; a job that is over is no error.

    Raises:
        SchedulerError: with bkill's own words.
    """
    over = ("already finished", "is not found", "No matching job found")
    if result.exit_code and not any(words in result.stderr for words in over):
        raise SchedulerError(f"LSF did not cancel the job: {result.words}")


def report(word: str, code: str = "-", reason: str = "-") -> Report:
    """What bjobs says of one job: its state, exit code and exit reason, ``-`` where there is none.

    An exit code counts only where the job itself chose it; above 128 it may stand for signal - 128.
    """
    state = _STATES.get(word, JobState.UNKNOWN)
    keyword = reason.partition(":")[0].strip().removeprefix("TERM_")
    by_lsf = _REASONS.get(keyword) if state is JobState.FAILED else None
    words = word if reason in ("-", "") else f"{word}: {reason}"
    if state is JobState.COMPLETED:
        return Report(state, words, 0)
    chosen = int(code) if state is JobState.FAILED and by_lsf is None and code.isdigit() else None
    return Report(by_lsf or state, words, chosen)


def _bjobs(job_ids: Sequence[str]) -> list[str]:
    return ["bjobs", "-a", "-noheader", "-o", _FIELDS, *job_ids]


def _parse(result: Completed) -> dict[str, Report]:
    """Jobs by id, elements of arrays as ``123[2]``; those that LSF does not know stand in stderr.

    Raises:
        SchedulerError: with bjobs' own words.
    """
    rows = [line.split("|", 4) for line in result.stdout.splitlines() if line.count("|") >= 4]
    reports = {}
    for job_id, index, word, code, reason in rows:
        if _JOB_ID.fullmatch(job_id.strip()):
            number = job_id.strip().partition("[")[0]
            own = number if index.strip() in ("", "0", "-") else f"{number}[{index.strip()}]"
            reports[own] = report(word.strip(), code.strip(), reason.strip())
    strange = [line for line in result.stderr.splitlines() if line and not _UNKNOWN_JOB.fullmatch(line)]
    if not reports and result.exit_code and (strange or not result.stderr):
        raise SchedulerError(
            f"LSF does not answer: {result.words}",
            _TRY_LATER,
        )
    return reports


QUERIES: tuple[Query, ...] = (Query(_bjobs, _parse),)


def _bjobs_name(name: str, user: str, _: Site) -> list[str]:
    return ["bjobs", "-a", "-noheader", "-u", user, "-J", name, "-o", "jobid"]


def _parse_names(result: Completed, _: Site) -> list[str]:
    """The jobs of a name; each element of an array stands on a line of its own.

    Raises:
        SchedulerError: with bjobs' own words.
    """
    found = [line.strip() for line in result.stdout.splitlines() if _JOB_ID.fullmatch(line.strip())]
    strange = [line for line in result.stderr.splitlines() if line and not _UNKNOWN_JOB.fullmatch(line)]
    if not found and (strange or (result.exit_code and not result.stderr)):
        raise SchedulerError(f"LSF does not answer: {result.words}", _TRY_LATER)
    return list(dict.fromkeys(job_id.partition("[")[0] for job_id in found))


NAMINGS: tuple[Naming, ...] = (Naming(_bjobs_name, _parse_names),)
