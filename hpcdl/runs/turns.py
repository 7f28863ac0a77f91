"""Taking turns: one of many processes, on one or several hosts that share a folder, does what all need done.

A turn is a symbolic link whose name is its number and whose target is the time at which it was taken. Making
a link either succeeds or finds that somebody was first, also over NFS, and a link is never there without its
target; so no lock is held and none is left behind by a process that dies. Numbers only grow: a turn that was
never finished is passed over by taking the next.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Turn:
    """Somebody's right to act."""

    number: int = 0  # 0: nobody has acted yet
    time: float = 0.0  # Unix time at which it was taken


class Turns:
    """The turns of one folder.

    Args:
        folder: an existing folder that holds nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> Turn:
        """The turn that was taken last, whether or not its owner is still at it."""
        numbers = self._numbers()
        return Turn(numbers[-1], self._time(numbers[-1])) if numbers else Turn()

    def take(self, last: Turn, now: float) -> Turn | None:
        """The turn after ``last``; None if somebody else has it.

        Raises:
            OSError: links cannot be made in this folder.
        """
        mine = Turn(last.number + 1, now)
        try:
            self._path(mine.number).symlink_to(repr(now))
        except FileExistsError:
            return None
        numbers = self._numbers()
        # A process that slept between looking and taking may have taken a number that is long gone.
        outdated = numbers[-1:] != [mine.number]
        for number in [mine.number] if outdated else numbers[:-1]:
            self._path(number).unlink(missing_ok=True)
        return None if outdated else mine

    def give_back(self, turn: Turn) -> None:
        """Let it be taken again: its owner has acted, and cannot say so."""
        self._path(turn.number).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._folder) if name.isdecimal())  # noqa: PTH208

    def _path(self, number: int) -> Path:
        return self._folder / str(number)

    def _time(self, number: int) -> float:
        try:
            return float(self._path(number).readlink().name)
        except (OSError, ValueError):
            return 0.0  # it was passed over just now, or is none of ours
