"""Paths that can be written into the files of a run."""

from __future__ import annotations

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
