"""Bringing a run home: one archive with what is needed to read or report it, without secrets."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.archive.secrets import REMOVED, Cleaner
from hpcdl.units import format_bytes

Progress = Callable[[int, int], None]

INDEX = "INDEX.txt"
INDEX_JSON = "index.json"
ADDED = "collected"
"""The folder in the archive of what was asked for it and is no file of the run."""

_BLOCK = 1 << 20
_SPOOLED = 8 << 20  # bytes of a file that are kept in memory
_LARGEST_BINARY = 256 << 20  # bytes; a larger one is a model or a dump, and looking into it takes minutes
_CORE_TYPES = (b"\x04\0", b"\0\x04")  # of an ELF file, in either order of bytes
_TEXT = {
    ".json", ".jsonl", ".log", ".out", ".err", ".sh", ".txt", ".yaml", ".yml", ".py", ".md", ".toml", ".csv"
}  # fmt: skip
_WHAT = {
    "experiment": "what the user gave",
    "resolved": "the same, complete: what the ranks read; in the folder, what former attempts read",
    "plan": "the estimates",
    "plans": "those of former attempts",
    "job": "the batch script as submitted",
    "events": "what happened",
    "logs": "what a rank, or the batch script, printed",
    "exits": "how a rank, or the batch script, ended",
    "metrics": "a record of each step",
    "placement": "where the ranks found themselves",
    "heartbeats": "signs of life",
    "requests": "whether an attempt was asked to stop",
    "rendezvous": "where the ranks met",
    "traces": "what chosen steps spent their time on",
    "tensorboard": "metrics for TensorBoard",
    ADDED: "asked for this archive",
}
"""What a file is, by its name or its folder's up to the first dot."""


@dataclass
class Entry:
    """One file, or link, of an archive.

    Args:
        path: inside the folder of the run.
        what: what it is, in words.
        bytes: as it is in the archive; 0 of what is not there.
        sha256: likewise; of a link empty, as it is only named here.
        removed: secrets that were taken out; None of a binary file, which is there as it was or not at all.
        link: where a link leads to.
        problem: why it is not in the archive.
    """

    path: str
    what: str
    bytes: int = 0
    sha256: str = ""
    removed: int | None = 0
    link: str | None = None
    problem: str | None = None


class _LeftOutError(Exception):
    """Why a file does not go into an archive; unlike an ``OSError``, which is about writing it."""


def contents(folder: RunFolder) -> list[Path]:
    """The files of a run but for checkpoints and prepared data, which are large and stay where they are."""
    return [path for path in _all(folder, kept=True) if not path.is_symlink()]


def _all(
    folder: RunFolder, *, kept: bool, unlisted: Callable[[OSError], None] = lambda _: None
) -> list[Path]:
    """Files and links of a run: those that go into an archive, or those that stay; links are not followed.

    ``unlisted`` is told of a folder that cannot be listed.
    """
    large = {folder.checkpoints, folder.data}
    found: list[Path] = []
    for place, folders, names in os.walk(folder.path, onerror=unlisted):
        found += (Path(place, name) for name in names)
        found += (Path(place, name) for name in folders if Path(place, name).is_symlink())
    return sorted(path for path in found if bool(large & {path, *path.parents}) is not kept)


class Packing:
    """An archive that is being written.

    Args:
        archive: where it goes.
        name: of the folder inside.
        cleaner: takes the secrets out.
    """

    def __init__(self, archive: tarfile.TarFile, name: str, cleaner: Cleaner) -> None:
        self._archive, self._name, self._cleaner = archive, name, cleaner
        self._place = Path(os.fsdecode(archive.name or ".")).parent
        self.entries: list[Entry] = []

    def add(self, path: Path, inside: str) -> None:
        """Add a file as it is now, or the name of a link; what does not go in is told of."""
        entry = self._entry(inside)
        try:
            with _reading():
                link = str(path.readlink()) if path.is_symlink() else None
            if link is not None:
                entry.link, entry.removed = self._cleaner.cleaned_text(link)
                return
            with _opened(path) as file:
                known = os.fstat(file.fileno())
                self._take(file, entry, known.st_size, known.st_mtime)
        except _LeftOutError as reason:
            entry.problem = str(reason)

    def add_unlisted(self, inside: str, error: OSError) -> None:
        """Tell of a folder that cannot be listed."""
        self._entry(inside).problem = f"a folder that cannot be listed: {error.strerror}"

    def add_text(self, text: str, inside: str) -> None:
        """Add what is no file."""
        content = text.encode("utf-8", "surrogateescape")
        self._take(io.BytesIO(content), self._entry(inside), len(content), time.time())

    def add_index(self) -> None:
        """Add the index, for people and for programs; it names everything but itself."""
        rows = [asdict(entry) for entry in self.entries]
        for inside, text in ((INDEX_JSON, json.dumps(rows, indent=1) + "\n"), (INDEX, _index(self.entries))):
            self._put(io.BytesIO(text.encode("utf-8", "surrogateescape")), inside, time.time())

    def _entry(self, inside: str) -> Entry:
        self.entries.append(Entry(inside, _what(inside)))
        return self.entries[-1]

    def _take(self, file: IO[bytes], entry: Entry, size: int, changed: float) -> None:
        """Add a file block by block; it may grow meanwhile, so what is added is a copy."""
        blocks = _blocks(file)
        first = next(blocks, b"")
        removed = 0
        if not _is_text(entry.path, first):
            entry.removed = None
            _check_binary(entry.path, first, size)
        digest = hashlib.sha256()
        with tempfile.SpooledTemporaryFile(_SPOOLED, dir=str(self._place)) as copy:
            for block, count in self._cleaner.cleaned(chain([first], blocks)):
                if count and entry.removed is None:
                    raise _LeftOutError("binary, and holds what looks like a secret")
                digest.update(block)
                copy.write(block)
                removed += count
            entry.removed = None if entry.removed is None else removed
            entry.bytes, entry.sha256 = copy.tell(), digest.hexdigest()
            self._put(copy, entry.path, changed, entry.bytes)

    def _put(self, file: IO[bytes], inside: str, changed: float, size: int | None = None) -> None:
        header = tarfile.TarInfo(f"{self._name}/{inside}")
        header.size = file.seek(0, io.SEEK_END) if size is None else size
        header.mtime = int(changed)
        file.seek(0)
        self._archive.addfile(header, file)


def pack(
    folder: RunFolder, target: Path, cleaner: Cleaner, added: Mapping[str, str], progress: Progress
) -> list[Entry]:
    """Write ``target`` (.tar.gz) with the run's files under its id and an index; the run is not touched.

    Args:
        folder: the run.
        target: the archive; it appears only when complete.
        cleaner: takes the secrets out.
        added: texts that are no files of the run, by the name they get in ``collected/``.
        progress: told files done and files in all.

    Returns:
        What is in it, but for the index.

    Raises:
        UsageError: the archive cannot be written.
    """
    unlisted: list[OSError] = []
    paths = [path for path in _all(folder, kept=True, unlisted=unlisted.append) if path != target]
    texts = {**added, "left-out.txt": _listing(folder)}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with tarfile.open(temporary, "w:gz", compresslevel=6) as archive:
            packing = Packing(archive, folder.path.name, cleaner)
            for name, text in texts.items():
                packing.add_text(text, f"{ADDED}/{name}")
            for done, path in enumerate(paths, start=1):
                packing.add(path, str(path.relative_to(folder.path)))
                progress(done, len(paths))
            for error in unlisted:
                packing.add_unlisted(os.path.relpath(error.filename, folder.path), error)
            packing.add_index()
        temporary.replace(target)
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror or error}",
            "choose another place with --output FILE.tar.gz",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return packing.entries


@contextmanager
def _reading() -> Iterator[None]:
    """Errors inside are about one file, which is left out; the others still go in."""
    try:
        yield
    except OSError as error:
        raise _LeftOutError(error.strerror or str(error)) from None


def _opened(path: Path) -> IO[bytes]:
    """A file. Nobody waits for the other end of a pipe, and a link that came just now is not followed."""
    with _reading():
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _LeftOutError("no file but a pipe, a socket or a device")
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while True:
        with _reading():
            block = file.read(_BLOCK)
        if not block:
            return
        yield block


def _check_binary(name: str, first: bytes, size: int) -> None:
    """Refuse what holds the memory of a program, and what is too large to be looked into."""
    if first.startswith(b"\x7fELF") and (Path(name).name.startswith("core") or first[16:18] in _CORE_TYPES):
        raise _LeftOutError("a core dump: the memory of a program, with all its variables")
    if size > _LARGEST_BINARY:
        raise _LeftOutError(f"binary, and larger than {format_bytes(_LARGEST_BINARY)}")


def _is_text(name: str, first: bytes) -> bool:
    return Path(name).suffix in _TEXT or b"\0" not in first


def _what(inside: str) -> str:
    return _WHAT.get(inside.partition("/")[0].partition(".")[0], "")


def _listing(folder: RunFolder) -> str:
    """Names and sizes of checkpoints and prepared data."""
    lines = []
    for path in _all(folder, kept=False):
        with suppress(OSError):  # a checkpoint was removed just now
            lines.append(f"{path.lstat().st_size:>14}  {path.relative_to(folder.path)}")
    return "\n".join(["bytes and name of what is not in this archive", *lines]) + "\n"


def _index(entries: Sequence[Entry]) -> str:
    lines = [_index_line(entry) for entry in entries]
    removed = sum(entry.removed or 0 for entry in entries)
    head = (
        "bytes, name, what it is; as they are in this archive. index.json has the same with SHA-256.\n"
        f"{removed} secrets were taken out and stand as {REMOVED.decode()}; a binary file is as it was.\n"
        f"{ADDED}/left-out.txt lists checkpoints and prepared data, which are not here.\n"
    )
    return head + "\n".join(lines) + "\n"


def _index_line(entry: Entry) -> str:
    if entry.link is not None:
        return f"{'link':>14}  {entry.path} -> {entry.link}"
    notes = (
        entry.what,
        "binary" if entry.removed is None else "",
        f"{entry.removed} secrets taken out" if entry.removed else "",
        f"not here: {entry.problem}" if entry.problem else "",
    )
    words = "; ".join(filter(None, notes))
    return f"{entry.bytes:>14}  {entry.path}" + (f"  ({words})" if words else "")
