"""What the engine says in a rank's log: lines that begin with when they were said."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import datetime

_UNSAID = (OSError, ValueError)
"""A disk that is full or a stream that a program closed is no reason to do otherwise."""


def say(text: str) -> None:
    """Print ``text`` behind a full time stamp, to milliseconds and with the distance to UTC.

    By that ``hpcdl logs`` merges the ranks; lines that others print go with the stamp above them.
    """
    when = datetime.now().astimezone().isoformat(timespec="milliseconds")
    with suppress(*_UNSAID):
        print(f"{when} {text}", flush=True)  # noqa: T201 - standard output is this rank's log


def quote(text: str) -> None:
    """Print ``text`` as it is, where there is room for it."""
    with suppress(*_UNSAID):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - as above
