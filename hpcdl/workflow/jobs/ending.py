"""Asking a scheduler to end a job."""

from __future__ import annotations

from collections.abc import Sequence

from hpcdl import shell
from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site

Point = tuple[RunFolder, int]
"""A run, and the number of its attempt."""


def end(job_id: str, points: Sequence[Point], site: Site) -> None:
    """Ask the scheduler to end one job, of an array all of it.

    Raises:
        SchedulerError: with the scheduler's own words when it refused.
    """
    backend = scheduler(site.scheduler.kind)
    for folder, number in points:  # first: the job may end before the answer is read
        store.note(folder, "cancel requested", number)
    try:
        backend.cancelled(shell.run(backend.cancel(job_id)))
    except NoAnswerError:
        raise  # it may have been done all the same
    except SchedulerError as error:
        for folder, number in points:
            store.note(folder, "cancel refused", number, reason=error.message)
        raise
