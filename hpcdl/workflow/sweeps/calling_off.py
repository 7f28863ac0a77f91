"""The end of a sweep: what is in the queue is cancelled, and what is not does not come into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hpcdl import shell
from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.chains.deciding import GoOn
from hpcdl.runs.chains.links import outlook
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.sweeps import groups
from hpcdl.runs.sweeps.groups import Group
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.workflow.states.following import refresh, site_of
from hpcdl.workflow.sweeps.arrays import whole

Point = tuple[RunFolder, int]
"""A run, and the number of its attempt."""


class CalledOff(NamedTuple):
    """How many points were kept from going on."""

    asked: int  # whose jobs the scheduler was asked to end
    between: int  # which would have gone on in another job
    unsubmitted: int


def cancel(group: Group) -> CalledOff:
    """End every point that is not over; nobody who waits for the sweep submits any more of it.

    Raises:
        SchedulerError: with the scheduler's own words when it refused; it was asked for every job.
    """
    groups.call_off(group)
    standing = list(zip(group.folders, refresh(group.folders), strict=True))
    unsubmitted = sum(attempt.state is RunState.PREPARED for _, attempt in standing)
    between = [(folder, attempt.number) for folder, attempt in standing if _goes_on(folder, attempt)]
    for folder, number in between:
        store.note(folder, "cancel requested", number)
    asked = 0
    if standing:
        site = site_of(standing[0][0])
        asked = _end_all(group, _jobs(standing, site), site)
    return CalledOff(asked, len(between), unsubmitted)


def _goes_on(folder: RunFolder, attempt: Attempt) -> bool:
    """Whether a point between two jobs is to have another one."""
    ended = attempt.state in (RunState.COMPLETED, RunState.CANCELLED)
    return attempt.state.over and not ended and isinstance(outlook(folder), GoOn)


def _jobs(standing: Sequence[tuple[RunFolder, Attempt]], site: Site) -> dict[str, list[Point]]:
    """The points of each job that is not over, the newest job first: older ones are waited for by newer."""
    found: dict[str, list[Point]] = defaultdict(list)
    for folder, attempt in sorted(standing, key=lambda each: each[1].submitted, reverse=True):
        if attempt.job_id is not None and not attempt.state.over:
            found[whole(attempt.job_id, site)].append((folder, attempt.number))
    return found


def _end_all(group: Group, jobs: Mapping[str, Sequence[Point]], site: Site) -> int:
    """Ask for the end of every job; how many points those have.

    Raises:
        SchedulerError: the first one, with the jobs that go on as the hint.
    """
    errors = {}
    for job_id, points in jobs.items():
        try:
            end(job_id, points, site)
        except SchedulerError as error:
            errors[job_id] = error
    if errors:
        first, done = next(iter(errors.values())), len(jobs) - len(errors)
        ended = f"{done} of {len(jobs)} jobs of {group.name} {'was' if done == 1 else 'were'} cancelled"
        hint = f"{ended}, and not {', '.join(errors)}; hpcdl cancel {group.name} tries again"
        raise type(first)(first.message, hint)
    return sum(len(points) for points in jobs.values())


def end(job_id: str, points: Sequence[Point], site: Site) -> None:
    """Ask the scheduler to end one job, of an array all of it.

    Raises:
        SchedulerError: with the scheduler's own words when it refused.
    """
    backend = scheduler(site.scheduler.kind)
    for folder, number in points:
        store.note(folder, "cancel requested", number)
    try:
        backend.cancelled(shell.run(backend.cancel(job_id)))
    except NoAnswerError:
        raise  # it may have been done all the same
    except SchedulerError as error:
        for folder, number in points:
            store.note(folder, "cancel refused", number, reason=error.message)
        raise
