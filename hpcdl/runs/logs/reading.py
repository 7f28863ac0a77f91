"""Reading the logs of a run: whole, or as they grow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.logs.stamps import stamp
from hpcdl.telemetry import open_file

_RANK = re.compile(r"rank-(\d+)\.log")
_END = re.compile(rb"\r\n|\n|\r")  # a bar that is redrawn is a line each time
_BLOCK = 1 << 16
_LONGEST = 1 << 20  # bytes of a line; what is longer comes in pieces
_LOOKED_AT = 1 << 20  # bytes in which the first stamp is looked for
_REMEMBERED = 256  # bytes before the place one has read to, by which a file is known again


@dataclass(frozen=True)
class Line:
    """One line of one log.

    Args:
        rank: None for what the batch script and the scheduler printed.
        text: without the end of the line.
        time: Unix time: its own stamp, else that of the line above. Lines above the first stamp have that
            one; a log without any has the time at which it was written last.
        attempt: whose log it is.
    """

    rank: int | None
    text: str
    time: float = 0.0
    attempt: int = 1


@dataclass
class Tail:
    """A log that may still grow, be replaced or be truncated; only whole lines are given out.

    The file is opened anew for every look, which makes a network file system fetch it. It is known again by
    what stands before the place one has read to; one that was replaced by another, or truncated and written
    anew, is read from its beginning.
    """

    path: Path
    rank: int | None
    attempt: int = 1
    _offset: int = field(default=0, init=False)
    _before: bytes = field(default=b"", init=False)
    _time: float | None = field(default=None, init=False)
    # When lines were printed before one says when; None: not looked for since the last look.
    _unstamped: float | None = field(default=None, init=False)

    def new_lines(self, *, ended: bool = False) -> Iterator[Line]:
        """Lines that came since the last call; with ``ended`` also a last one without its end.

        A file that is not there or cannot be read now has no new lines. It is closed between blocks: there
        may be more logs than a process may have files open.
        """
        rest, goal = b"", None
        self._unstamped = None
        while goal is None or self._offset + len(rest) < goal:
            block, size = self._block(len(rest))
            goal = size if goal is None else goal
            if not block:
                break
            whole, rest = _cut(rest + block)
            yield from self._given_out(whole)
        if ended:
            yield from self._given_out(rest)

    def _block(self, ahead: int) -> tuple[bytes, int]:
        """The bytes after those given out and ``ahead`` more, and the size of the file."""
        try:
            with open_file(self.path) as file:
                if not ahead and not self._is_known(file):
                    self._offset, self._before, self._time, self._unstamped = 0, b"", None, None
                if self._time is None and self._unstamped is None:
                    self._unstamped = _first_stamp(file, self._offset)
                file.seek(self._offset + ahead)
                return file.read(_BLOCK), os.fstat(file.fileno()).st_size
        except OSError:
            return b"", 0

    def _is_known(self, file: BinaryIO) -> bool:
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def _given_out(self, content: bytes) -> Iterator[Line]:
        self._offset += len(content)
        self._before = (self._before + content)[-_REMEMBERED:]
        for text in _texts(content):
            time = self._unstamped or 0.0 if self._time is None else self._time
            own = stamp(text, near=time)
            if own is not None:
                time = self._time = max(own, self._time or own)
            yield Line(self.rank, text, time, self.attempt)


def _cut(content: bytes) -> tuple[bytes, bytes]:
    """Whole lines, and the rest of which one does not know whether it goes on."""
    end = content.rfind(b"\n") + 1
    end = max(end, content.rfind(b"\r", 0, len(content) - 1) + 1)
    return (content[:end], content[end:]) if len(content) - end < _LONGEST else (content, b"")


def _texts(content: bytes) -> list[str]:
    texts = [piece.decode(errors="replace") for piece in _END.split(content)]
    return texts if texts[-1] else texts[:-1]


def _first_stamp(file: BinaryIO, offset: int) -> float:
    """The first time that the lines from ``offset`` on tell, else when the file was written last."""
    written = os.fstat(file.fileno()).st_mtime
    file.seek(offset)
    lines = (line[:80].decode(errors="replace") for line in file.read(_LOOKED_AT).split(b"\n"))
    stamps = (stamp(line, near=written) for line in lines)
    return next((found for found in stamps if found is not None), written)


class Follower:
    """The logs of attempts as they appear; new files are picked up while following.

    Args:
        folder: the run.
        first: the attempt with which to begin.
        ranks: only of these; none: of all, and of the batch script.
        last: the attempt with which to end; None: all that follow.
    """

    def __init__(
        self, folder: RunFolder, first: int, ranks: Sequence[int] = (), last: int | None = None
    ) -> None:
        self._folder, self._ranks = folder, frozenset(ranks)
        self._first, self._last = first, last
        self._tails: dict[Path, Tail] = {}

    def tails(self) -> list[Tail]:
        """The logs that are there now: by attempt, then the job's, then by rank."""
        attempts = [number for number in attempts_with_logs(self._folder) if number >= self._first]
        for number in attempts:
            if self._last is None or number <= self._last:
                for path, rank in rank_logs(self._folder, number):
                    if not self._ranks or rank in self._ranks:
                        self._tails.setdefault(path, Tail(path, rank, number))
        return sorted(self._tails.values(), key=lambda tail: (tail.attempt, _order(tail.rank)))

    def new_lines(self, *, ended: bool = False) -> Iterator[Line]:
        """Every line that came since the last call, log by log."""
        for tail in self.tails():
            yield from tail.new_lines(ended=ended)


def attempts_with_logs(folder: RunFolder) -> list[int]:
    """The attempts that have a log, in order; a folder for logs is there before a job is submitted."""
    logs = folder.logs(1).parent.glob("attempt-*/*.log")
    names = {path.parent.name.removeprefix("attempt-") for path in logs}
    return sorted(int(name) for name in names if name.isdecimal())


def rank_logs(folder: RunFolder, attempt: int) -> list[tuple[Path, int | None]]:
    """The logs of an attempt, with the rank of each."""
    return [(path, _rank_of(path)) for path in folder.logs(attempt).glob("*.log")]


def check_ranks(wanted: Sequence[int], ranks: int) -> None:
    """Refuse a rank that the run does not have.

    Raises:
        UsageError: naming the ranks there are.
    """
    for rank in wanted:
        if not 0 <= rank < ranks:
            raise UsageError(f"--rank {rank} does not exist; this run has ranks 0 to {ranks - 1}")


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, reading no more of it than needed."""
    try:
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 400 * count))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _rank_of(path: Path) -> int | None:
    match = _RANK.fullmatch(path.name)
    return int(match[1]) if match else None


def _order(rank: int | None) -> int:
    return -1 if rank is None else rank
