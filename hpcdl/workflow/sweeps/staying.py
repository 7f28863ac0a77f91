"""Waiting for a sweep: what had no room is submitted when there is some, what goes on by itself goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.chains.deciding import Stop
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.sweeps import groups
from hpcdl.runs.sweeps.groups import Group
from hpcdl.workflow.jobs import going_on
from hpcdl.workflow.states.following import refresh
from hpcdl.workflow.sweeps import dispatching
from hpcdl.workflow.sweeps.arrays import Member


class Seen(NamedTuple):
    """How a sweep stands."""

    points: Sequence[tuple[RunFolder, Attempt]]
    waiting: Sequence[Member]  # those that are to be submitted


class Stay:
    """Somebody who stays until every point of a sweep is over.

    Args:
        group: the sweep.
        left: points that were to be submitted, and for which there was no room.
        only: points that may be submitted, beside what goes on by itself; by default all of the sweep.
    """

    def __init__(
        self, group: Group, left: Iterable[Member] = (), only: Iterable[RunFolder] | None = None
    ) -> None:
        self.group = group
        self._left = _numbers(left)
        self._ours = {folder.path for folder in (group.folders if only is None else only)}
        self._ended: dict[Path, int] = {}  # the newest attempt of points that do not go on

    def look(self) -> Seen:
        """Ask how the points stand.

        Raises:
            NoAnswerError: the scheduler does not answer.
        """
        try:
            return self._seen()
        except SchedulerError as error:
            raise NoAnswerError(error.message, error.hint) from None

    def _seen(self) -> Seen:
        folders = self.group.folders
        points = list(zip(folders, refresh(folders), strict=True))
        if groups.is_called_off(self.group):
            return Seen(points, ())
        waiting = {folder: attempt for folder, attempt in points if self._waits(folder, attempt)}
        # Asked once more, as nothing may be submitted twice; of what never was, nobody is asked.
        members = dispatching.chosen(list(waiting), frozenset(RunState)) if waiting else []
        return Seen(points, [each for each in members if _stands_as(each.before, waiting[each.folder])])

    def _waits(self, folder: RunFolder, attempt: Attempt) -> bool:
        left = self._left.get(folder.path) == attempt.number and attempt.state.over
        return left or (attempt.state is RunState.PREPARED and folder.path in self._ours)

    def go_on(self, seen: Seen) -> int:
        """Submit what there is room for, and what goes on; how many points are over.

        Raises:
            NoAnswerError: no answer to a submission was heard; the next look tells whether there is a job.
            UsageError, SchedulerError: a point could not be submitted.
        """
        if seen.waiting:
            self._left = _numbers(dispatching.send(self.group, seen.waiting).left)
        off = groups.is_called_off(self.group)
        waiting = set() if off else {member.folder.path for member in seen.waiting}
        return sum(self._is_over(*each, off=off) for each in seen.points if each[0].path not in waiting)

    def _is_over(self, folder: RunFolder, attempt: Attempt, *, off: bool) -> bool:
        prepared = attempt.state is RunState.PREPARED
        if prepared and (off or folder.path in self._ours):
            return off
        if not prepared and not attempt.state.over:
            return False
        if attempt.state is RunState.COMPLETED or self._ended.get(folder.path) == attempt.number:
            return True
        if not isinstance(going_on.advance_seen(folder, attempt).decision, Stop):
            return False
        self._ended[folder.path] = attempt.number
        return True


def _stands_as(attempt: Attempt, before: Attempt) -> bool:
    return (attempt.number, attempt.state) == (before.number, before.state)


def _numbers(members: Iterable[Member]) -> dict[Path, int]:
    """The newest attempt of each: who makes another one takes the point off our hands."""
    return {member.folder.path: member.before.number for member in members}
