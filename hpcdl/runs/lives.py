"""Jobs that a scheduler ran more than once: which attempts are lives of one job. Pure.

A script that finds itself run again claims an attempt of its own (templates/_attempt.sh.j2). The links that
it makes then say which job each attempt is a life of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from hpcdl.run_folder import NOBODY

_AGAIN = "requeued "
"""What the target of a claim begins with that a script made itself; its job's id follows."""


class Life(NamedTuple):
    """One more life of a job."""

    job_id: str  # as the job itself knows it; the scheduler's commands may have added a cluster
    before: int  # the attempt that was the life before this one
    first: int  # the attempt for which the job was submitted


def lives(claims: Mapping[int, str], starts: Mapping[int, str]) -> dict[int, Life]:
    """Which attempts are another life of the job of an earlier one, in order.

    Args:
        claims: who claimed each attempt.
        starts: the id of the job that runs each attempt, or keeps another from running it.
    """
    found = {}
    for job_id, numbers in _of_jobs(claims, starts).items():
        for before, number in pairwise(numbers):
            found[number] = Life(job_id, before, numbers[0])
    return dict(sorted(found.items()))


def withheld(claims: Mapping[int, str], starts: Mapping[int, str]) -> set[int]:
    """The attempts that a job withheld from another by beginning them, when it was run again before that."""
    own = _of_jobs(claims, starts)
    return {number for number, job_id in starts.items() if job_id != NOBODY and number not in own[job_id]}


def _of_jobs(claims: Mapping[int, str], starts: Mapping[int, str]) -> dict[str, list[int]]:
    """The attempts that are lives of each job: the first it began, then those that it claimed itself."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, job_id in sorted(starts.items()):
        if job_id != NOBODY and (not found[job_id] or claims.get(number) == _AGAIN + job_id):
            found[job_id].append(number)
    return found
