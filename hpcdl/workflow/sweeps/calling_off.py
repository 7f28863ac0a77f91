"""The end of a sweep: what is in the queue is cancelled, and what is not does not come into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hpcdl.errors import SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.chains.deciding import GoOn
from hpcdl.runs.chains.links import outlook
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.sweeps import groups
from hpcdl.runs.sweeps.groups import Group
from hpcdl.sites.site import Site
from hpcdl.workflow.jobs.ending import Point, end
from hpcdl.workflow.jobs.submitting import check_last
from hpcdl.workflow.states.following import refresh, site_of
from hpcdl.workflow.sweeps.arrays import whole


class CalledOff(NamedTuple):
    """How many points were kept from going on."""

    asked: int  # whose jobs the scheduler was asked to end
    between: int  # which would have gone on in another job
    unsubmitted: int


def cancel(group: Group) -> CalledOff:
    """End every point that is not over; nobody who waits for the sweep submits any more of it.

    Raises:
        UsageError: another attempt of a point is just being submitted.
        SchedulerError: with the scheduler's own words when it refused; it was asked for every job.
    """
    groups.call_off(group)
    standing = list(zip(group.folders, refresh(group.folders), strict=True))
    unsubmitted = sum(attempt.state is RunState.PREPARED for _, attempt in standing)
    between = [(folder, attempt.number) for folder, attempt in standing if _goes_on(folder, attempt)]
    for folder, number in between:
        store.note(folder, "cancel requested", number)
    asked = _end_all(group, standing) if standing else []
    for folder, number in between + asked:
        check_last(folder, number)
    return CalledOff(len(asked), len(between), unsubmitted)


def _goes_on(folder: RunFolder, attempt: Attempt) -> bool:
    """Whether a point between two jobs is to have another one."""
    ended = attempt.state in (RunState.COMPLETED, RunState.CANCELLED)
    return attempt.state.over and not ended and isinstance(outlook(folder, attempt), GoOn)


def _jobs(standing: Sequence[tuple[RunFolder, Attempt]], site: Site) -> dict[str, list[Point]]:
    """The points of each job that is not over, the newest job first: older ones are waited for by newer."""
    found: dict[str, list[Point]] = defaultdict(list)
    for folder, attempt in sorted(standing, key=lambda each: each[1].submitted, reverse=True):
        if attempt.job_id is not None and not attempt.state.over:
            found[whole(attempt.job_id, site)].append((folder, attempt.number))
    return found


def _end_all(group: Group, standing: Sequence[tuple[RunFolder, Attempt]]) -> list[Point]:
    """Ask for the end of every job; the points that those have.

    Raises:
        SchedulerError: the first one, with the jobs that go on as the hint.
    """
    site = site_of(standing[0][0])
    jobs, errors = _jobs(standing, site), {}
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
    return [point for points in jobs.values() for point in points]
