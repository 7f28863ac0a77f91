"""Paths that somebody typed: which may stand in the files of a run, and which are there."""

from __future__ import annotations

import os
from pathlib import Path

from hpcdl.errors import UsageError


def writable(path: Path) -> Path:
    """``path``, whole, if scripts and records can name it.

    Raises:
        UsageError: a name in it is not UTF-8.
    """
    whole = path.absolute()
    try:
        str(whole).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{str(whole)!r} has a name that is not UTF-8, so no script or record could name it",
            "rename that folder, or work from another one",
        ) from None
    return whole


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; ``Path.exists`` raises where a name is too long for any."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """The same of a file."""
    return os.path.isfile(path)  # noqa: PTH113
