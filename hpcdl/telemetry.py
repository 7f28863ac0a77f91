"""What a run writes about itself: step records, events and exit records, one JSON object each.

Records are appended as whole lines by one writer a file, so a reader needs no lock: a last line
without its newline is still being written and is left for the next read.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

Record = TypeVar("Record", "StepRecord", "RunEvent")

BEAT_S = 5.0
"""Seconds between two heartbeats of a rank, if there is no reason for another pace."""

_BEATS_PER_SECOND = 100  # of all ranks together
_TAIL_BYTES = 2048  # holds the last record of a usual file
_EXIT_BYTES = 4096  # holds an exit record with room to spare


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as one rank saw it."""

    step: int
    loss: float
    tokens: int  # of the whole step, over all ranks
    step_seconds: float
    tokens_per_second: float
    grad_norm: float = 0.0  # before clipping, over all ranks
    learning_rate: float = 0.0
    time: float = 0.0  # Unix time at the end of the step
    flops_per_second: float | None = None  # model FLOP/s of this rank; recomputation is not counted
    mfu: float | None = None  # that as a share of the device's peak; None where the peak is not known
    hfu: float | None = None  # likewise with recomputation counted
    memory_peak: int | None = None  # bytes since the process began: of CUDA tensors, or resident on a CPU
    seconds: dict[str, float] = field(default_factory=dict)  # where step_seconds went on this rank
    validation_loss: float | None = None  # on held-out sequences, in steps that end with an evaluation
    attempt: int = 0  # whose step it was; 0 where that is not known


@dataclass(frozen=True)
class RunEvent:
    """Something that happened to a run; the state of a run is the fold of its events."""

    kind: str
    time: float
    attempt: int = 0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life of one rank. Seconds are of its own clock, so no clocks of two hosts are compared."""

    rank: int
    host: str
    beat: int  # counts up: who finds it unchanged for long has seen no sign of life
    step: int  # the last one that it finished
    phase: str  # of a step, such as data; start before the first step, between where no phase is open
    at: str  # the operation within; may be empty
    waiting: bool  # that operation needs other ranks
    moves: int  # operations finished so far
    still: float  # seconds since the last one
    patience: float | None  # for how many it may stand still there; None: for ever
    place: str = ""  # in the code

    @property
    def where(self) -> str:
        """What it is at, in words."""
        parts = [f"after step {self.step}" if self.step else "before its first step", self.phase, self.at]
        told = ", ".join(part for part in parts if part)
        return f"{told}, at {self.place}" if self.place else told


@dataclass(frozen=True)
class Blamed:
    """A rank whose peers ended for want of it; it may be unable to leave a record itself."""

    rank: int
    host: str
    reason: str  # one line


@dataclass(frozen=True)
class ExitRecord:
    """How one rank ended."""

    rank: int
    host: str
    time: float  # Unix time at which the end began
    exit_code: int
    signal: int | None = None
    exception: str | None = None  # class name
    reason: str | None = None  # one line
    blamed: Blamed | None = None  # whom it waited for in vain


def append(path: Path, record: StepRecord | RunEvent) -> None:
    """Append ``record`` to the JSONL file ``path`` as one line, in one write.

    Raises:
        OSError: it cannot be written, or not whole.
    """
    line = json.dumps(asdict(record), allow_nan=True).encode() + b"\n"
    with path.open("a+b", buffering=0) as file:
        if _is_torn(file):
            line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "only a part of a line could be written")


def _is_torn(file: FileIO) -> bool:
    """Whether the last line is half a line, of a writer that died: the next would become part of it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return False
    file.seek(size - 1)
    return file.read(1) != b"\n"


def open_file(path: Path) -> BinaryIO:
    """Open a file to be read.

    Raises:
        FileNotFoundError: there is none, or something else in its place: a FIFO would hold up whoever opens
            it, and let go who waits at its other end.
        OSError: it cannot be read.
    """
    if path.is_file():
        return path.open("rb")
    reason = "not a regular file" if path.exists() else os.strerror(errno.ENOENT)
    raise FileNotFoundError(errno.ENOENT, reason, str(path))


def read(path: Path, kind: type[Record]) -> list[Record]:
    """All complete records of ``path``; none if it does not exist yet."""
    try:
        with open_file(path) as file:
            return list(parse(file.read(), kind))
    except FileNotFoundError:
        return []


def read_tail(path: Path, kind: type[Record], size: int) -> list[Record]:
    """The complete records in the last ``size`` bytes of ``path``; none if it cannot be read."""
    try:
        with open_file(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            if start:
                file.readline()  # the rest of one that began earlier
            return list(parse(file.read(), kind))
    except OSError:
        return []


def read_last(path: Path, kind: type[Record]) -> Record | None:
    """The last complete record of ``path``, reading little more of it; None if there is none to be read."""
    try:
        with open_file(path) as file:
            size, span = file.seek(0, os.SEEK_END), _TAIL_BYTES
            while True:
                start = file.seek(max(0, size - span))
                lines = file.read(size - start).splitlines(keepends=True)
                # The first of them may have begun earlier.
                found = (parse(line, kind) for line in reversed(lines if start == 0 else lines[1:]))
                newest = next(chain.from_iterable(found), None)
                if newest is not None or start == 0:
                    return newest
                span *= 4
    except OSError:
        return None


def parse(content: bytes, kind: type[Record]) -> Iterator[Record]:
    """Records of the complete lines in ``content``; a torn or foreign line is passed over."""
    known = kind.__dataclass_fields__.keys()
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        try:
            fields = json.loads(line)
            yield kind(**{name: value for name, value in fields.items() if name in known})
        except (ValueError, TypeError, AttributeError):
            continue


def write_whole(path: Path, content: str) -> None:
    """Write ``path`` so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content)


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


class ExitFile:
    """The exit record of one rank, for which room is taken while there is some.

    A full disk is what many ranks end by. And the folder is held open: if it is moved, the record goes along.

    Args:
        path: of the record; its folder is made.

    Raises:
        OSError: there is no room, or the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._name, self._reserved = path.name, f".{path.name}.reserved"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._fill(b" " * _EXIT_BYTES)
        except OSError:
            os.close(self._folder)
            raise

    def write(self, record: ExitRecord) -> None:
        """Write it, atomically; once.

        Raises:
            OSError: it cannot be written.
        """
        content = json.dumps(asdict(record)) + "\n"
        self._fill(content.encode().ljust(_EXIT_BYTES))
        os.replace(self._reserved, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.close(self._folder)

    def _fill(self, content: bytes) -> None:
        with open(self._reserved, "wb", opener=self._open) as file:
            file.write(content)

    def _open(self, name: str, _: int) -> int:
        """Without giving up the room that the file has."""
        return os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=self._folder)


def read_exits(folder: Path) -> list[ExitRecord]:
    """The exit records of one attempt, by rank; files that are not such records are passed over."""
    records = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            told = _load(path)
            blamed = told.get("blamed")
            records.append(ExitRecord(**told | {"blamed": blamed and Blamed(**blamed)}))
        except (ValueError, TypeError, AttributeError, OSError):
            continue
    return records


def beat_seconds(ranks: int, often: float = BEAT_S) -> float:
    """Seconds between two heartbeats of a rank, of which all ranks together write no more than 100 a second.

    Args:
        ranks: how many there are.
        often: seconds in which one is wanted.
    """
    return max(often, ranks / _BEATS_PER_SECOND)


def write_heartbeat(path: Path, heartbeat: Heartbeat) -> None:
    """Write one sign of life, atomically, into a folder that is there: one that was moved is not made again.

    Raises:
        OSError: it cannot be written.
    """
    _replace(path, json.dumps(asdict(heartbeat)) + "\n")


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The newest sign of life; None if there is none that can be read."""
    try:
        return Heartbeat(**_load(path))
    except (ValueError, TypeError, OSError):
        return None


def _load(path: Path) -> Any:
    with open_file(path) as file:
        return json.load(file)
