"""Who may make the next attempt of a run: a link that only one can make, on whatever host.

Making a symbolic link either succeeds or finds that somebody was first, over NFS too, and a link is never
there without its target. So no lock is held, and none is left behind by a process that dies. A claim is
never given back: an attempt that came to nothing leaves its number unused.
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from pathlib import Path

from hpcdl.run_folder import NOBODY, RunFolder

_NAME = re.compile(r"attempt-([1-9]\d*)")


def claim(folder: RunFolder, attempt: int, owner: str) -> bool:
    """Claim an attempt; whether nobody else has.

    Args:
        folder: the run.
        attempt: its number.
        owner: who claims it, for people; one line, another each time.

    Raises:
        OSError: the run folder cannot be written.
    """
    return _made(folder.claim(attempt), owner)


def _made(link: Path, target: str) -> bool:
    link.parent.mkdir(exist_ok=True)
    try:
        link.symlink_to(target)
    except FileExistsError:
        # Over NFS a request whose answer was lost is sent again, and finds the link that it has made.
        return str(link.readlink()) == target
    return True


def claims(folder: RunFolder) -> dict[int, str]:
    """Who claimed which attempts, by number."""
    return _links(folder.claim(1).parent)


def _links(place: Path) -> dict[int, str]:
    """The targets of the links of a folder that bear the names of attempts."""
    found = {}
    for name in os.listdir(place) if place.is_dir() else ():  # noqa: PTH208 - many times as fast as glob
        match, link = _NAME.fullmatch(name), place / name
        if match and link.is_symlink():
            found[int(match[1])] = str(link.readlink())
    return dict(sorted(found.items()))


def give_up(folder: RunFolder, attempt: int) -> bool:
    """Make sure that no job runs an attempt whose submission was broken off; whether none did so before.

    It takes the place of the link that the attempt's script makes when it starts. Only one of the two can be
    made, so a job of this attempt that comes in after all ends at once.

    Raises:
        OSError: the run folder cannot be written.
    """
    return _made(folder.start(attempt), NOBODY)


def starts(folder: RunFolder) -> dict[int, str]:
    """The ids of the jobs that run, or ran, the attempts, by number; ``NOBODY`` where none will."""
    return _links(folder.start(1).parent)


def age(folder: RunFolder, attempt: int) -> float:
    """How long ago an attempt was claimed, in seconds of the file system's clock; infinite if it was not."""
    link = folder.claim(attempt)
    with suppress(OSError):  # somebody else's run: the time is then that of the newest claim
        os.utime(link.parent)
    try:
        return link.parent.stat().st_mtime - link.lstat().st_mtime
    except FileNotFoundError:
        return math.inf
