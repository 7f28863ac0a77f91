"""Reading the logs of a run: whole, or as they grow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder

_RANK = re.compile(r"rank-(\d+)\.log")


@dataclass(frozen=True)
class Line:
    """One line of one log; ``rank`` is None for what the batch script and the scheduler printed."""

    rank: int | None
    text: str


@dataclass
class Tail:
    """A log that may still grow, be replaced or be truncated; only whole lines are given out."""

    path: Path
    rank: int | None
    _offset: int = field(default=0, init=False)

    def new_lines(self, *, ended: bool = False) -> Iterator[Line]:
        """Lines that came since the last call; with ``ended`` also a last one without its newline."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        complete = content if ended else content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            yield Line(self.rank, line)


class Follower:
    """The logs of one attempt as they appear; new files are picked up while following."""

    def __init__(self, folder: RunFolder, attempt: int, rank: int | None = None) -> None:
        self._folder = folder.logs(attempt)
        self._only = rank
        self._tails: dict[Path, Tail] = {}

    def new_lines(self, *, ended: bool = False) -> Iterator[Line]:
        """Every line that came since the last call, log by log in rank order."""
        for path in sorted(self._folder.glob("*.log"), key=_order):
            rank = _rank_of(path)
            if self._only is None or rank == self._only:
                tail = self._tails.setdefault(path, Tail(path, rank))
                yield from tail.new_lines(ended=ended)


def check_rank(rank: int | None, ranks: int) -> None:
    """Refuse a rank that the run does not have.

    Raises:
        UsageError: naming the ranks there are.
    """
    if rank is not None and not 0 <= rank < ranks:
        raise UsageError(f"--rank {rank} does not exist; this run has ranks 0 to {ranks - 1}")


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, reading no more of it than needed."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 400 * count))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _rank_of(path: Path) -> int | None:
    match = _RANK.fullmatch(path.name)
    return int(match[1]) if match else None


def _order(path: Path) -> tuple[int, str]:
    rank = _rank_of(path)
    return (-1 if rank is None else rank, path.name)
