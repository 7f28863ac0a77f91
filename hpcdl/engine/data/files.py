"""Which files a source is read from."""

from __future__ import annotations

import socket
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hpcdl.errors import EngineError
from hpcdl.spec.data import Source

SHARED = "every compute node must see the files, and you must be allowed to read them"

# Third-party packages and tests differ from machine to machine; the library itself does not.
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_SHARDS = frozenset({".npy", ".bin"})


def files_of(source: Source) -> list[Path]:
    """The files of ``source`` in the order of their names.

    Raises:
        EngineError: the path does not exist, or no file below it is one of the source's.
    """
    found = list(_found(source))
    if not found:
        kind = "token files (.npy or .bin)" if source.source == "tokens" else "text"
        raise EngineError(
            f"no {kind} to train on in {source.path or source.source}: no file there matches "
            f"{source.pattern!r}",
            "correct data.path or data.pattern",
        )
    return found


def _found(source: Source) -> Iterator[Path]:
    if source.source == "stdlib":
        yield from _library_files(Path(sysconfig.get_paths()["stdlib"]))
        return
    root = Path(source.path or "")
    if not root.exists():
        raise EngineError(f"data.path {root} does not exist on {socket.gethostname()}", SHARED)
    if root.is_file():
        yield root
        return
    for path in sorted(root.rglob(source.pattern)):
        if path.is_file() and (source.source == "text" or path.suffix in _SHARDS):
            yield path


def _library_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if not _NOT_LIBRARY & set(path.relative_to(root).parts):
            yield path
