"""From files to tokens."""

from __future__ import annotations

import socket
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcdl.errors import EngineError
from hpcdl.spec.data import Data

DOCUMENT_END = b"\0"
"""Stands between documents; it does not occur in text."""

_SHARED = "every compute node must see the files, and you must be allowed to read them"

# Third-party packages and tests differ from machine to machine; the library itself does not.
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def read_tokens(data: Data) -> npt.NDArray[np.uint8]:
    """All tokens, one byte each, documents in the order of their names, at most ``max_bytes``.

    Raises:
        EngineError: there is nothing to read, or a file cannot be read.
    """
    parts: list[bytes] = []
    size = 0
    for path in _files(data):
        if size >= data.max_bytes:
            break
        try:
            content = path.read_bytes()[: data.max_bytes - size]
        except OSError as error:
            raise EngineError(f"cannot read {path}: {error.strerror or error}", _SHARED) from None
        parts.append(content)
        size += len(content)
    if not size:
        raise EngineError(
            f"no text to train on in {data.path or data.source}: its files that match {data.pattern!r} are "
            f"{'empty' if parts else 'none'}",
            "correct data.path or data.pattern",
        )
    return np.frombuffer(DOCUMENT_END.join(parts), dtype=np.uint8)


def _files(data: Data) -> Iterator[Path]:
    if data.source == "stdlib":
        yield from _library_files(Path(sysconfig.get_paths()["stdlib"]))
        return
    root = Path(data.path or "")
    if not root.exists():
        raise EngineError(f"data.path {root} does not exist on {socket.gethostname()}", _SHARED)
    if root.is_file():
        yield root
    else:
        yield from sorted(path for path in root.rglob(data.pattern) if path.is_file())


def _library_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if not _NOT_LIBRARY & set(path.relative_to(root).parts):
            yield path
