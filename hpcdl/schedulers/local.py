"""No scheduler: the script runs on the machine one is on, detached from the terminal.

A job id is ``PID-START@HOST``: the process that leads the job's session, and when it started in clock
ticks since boot. A process id alone is given to another process sooner or later; the pair is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcdl.errors import NoAnswerError, SchedulerError, SiteError
from hpcdl.schedulers.base import Directive, Elements, Job, JobState, Naming, Preflight, Query, Report
from hpcdl.shell import Completed

TEMPLATE = "local.sh.j2"
PREFIX = ""
TIMED = False
LIMITED = False
EXCLUDES = False
OWN_JOB = '"${HPCDL_JOB-}"'
SUBMITS_FROM_JOBS = False  # nothing ends a job for its time
ELEMENTS: Elements | None = None
PREFLIGHT: Preflight | None = None

# /proc/PID/stat is "PID (NAME) STATE PPID PGRP SESSION … STARTTIME …" (proc(5)). NAME may hold spaces,
# parentheses and newlines, so fields are counted from the last parenthesis: STATE is 0, STARTTIME 19.
_FUNCTIONS = r"""
set -f
host=$(uname -n)
fields() {
  local stat=
  { read -r -d '' stat <"/proc/$1/stat"; } 2>/dev/null
  fields=(${stat##*) })
}
alive() {
  local start=${1#*-}
  fields "${1%%-*}"
  case ${fields[0]:-X} in Z | X) return 1 ;; esac
  [ "${fields[19]}" = "${start%%@*}" ]
}
"""

_SUBMIT = (
    _FUNCTIONS
    + r"""
fields $$
export HPCDL_JOB="$$-${fields[19]}@$host"
echo "$HPCDL_JOB"
exec bash -- "$1" >/dev/null 2>&1
"""
)

_QUERY = (
    _FUNCTIONS
    + r"""
for id; do
  if [ "${id#*@}" != "$host" ]; then echo "$id elsewhere"; elif alive "$id"; then echo "$id alive"; fi
done
"""
)

# The whole group: ranks end even if the script that started them hangs.
_CANCEL = (
    _FUNCTIONS
    + r"""
if [ "${1#*@}" != "$host" ]; then echo "job $1 runs on ${1#*@}, and this is $host" >&2; exit 75; fi
if alive "$1"; then kill -s TERM -- "-${1%%-*}"; fi
"""
)
_IS_ELSEWHERE = 75  # its exit code then


def directives(job: Job) -> list[Directive]:
    """None: there is nobody to ask.

    Raises:
        SiteError: the job wants more than this machine.
    """
    if job.run.layout.nodes > 1:
        raise SiteError(
            f"site {job.site.name} is one machine, but the job wants {job.run.layout.nodes} nodes",
            "ask for fewer GPUs, or name another --site",
        )
    return []


def submit(script: Path) -> list[str]:
    """Start the script in a session of its own, which no closed terminal ends."""
    return ["setsid", "--fork", "bash", "-c", _SUBMIT, "hpcdl", str(script)]


def submitted(result: Completed) -> str:
    """The id that the session's first process printed before it became the script.

    Raises:
        NoAnswerError: nobody can tell whether it was started.
        SchedulerError: it could not be started.
    """
    words = result.stdout.split()
    if result.exit_code > 0:
        raise SchedulerError(f"the script could not be started: {result.words}")
    if result.killed or len(words) != 1:
        raise NoAnswerError(f"the script printed no process id: {result.words}")
    return words[0]


def controller(_: str) -> None:
    """Nobody: every machine knows its own processes only."""
    return


def cancel(job_id: str) -> list[str]:
    """Send TERM to every process of the job."""
    return ["bash", "-c", _CANCEL, "hpcdl", job_id]


def cancelled(result: Completed) -> None:
    """Check the answer; a job that is over is no error.

    Raises:
        NoAnswerError: the job belongs to another machine, which may be gone.
        SchedulerError: it belongs to another user.
    """
    if result.exit_code == _IS_ELSEWHERE:
        raise NoAnswerError(
            f"the job could not be cancelled from here: {result.words}",
            "hpcdl cancel there ends it; if that host is gone, hpcdl resume now goes on without it",
        )
    if result.exit_code:
        raise SchedulerError(f"the job could not be cancelled: {result.words}")


def _query(job_ids: Sequence[str]) -> list[str]:
    return ["bash", "-c", _QUERY, "hpcdl", *job_ids]


def _parse(result: Completed) -> dict[str, Report]:
    if result.exit_code:
        raise SchedulerError(f"the processes of this machine could not be read: {result.words}")
    reports = {}
    for line in result.stdout.splitlines():
        job_id, word = line.rsplit(" ", 1)
        reports[job_id] = _REPORTS[word](job_id)
    return reports


def _elsewhere(job_id: str) -> Report:
    host = job_id.partition("@")[2]
    return Report(JobState.UNKNOWN, f"runs on {host}, which only {host} can tell more about")


_REPORTS = {"alive": lambda _: Report(JobState.RUNNING), "elsewhere": _elsewhere}

QUERIES: tuple[Query, ...] = (Query(_query, _parse),)
NAMINGS: tuple[Naming, ...] = ()
