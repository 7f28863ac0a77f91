"""The part of the run folder from which the ranks of one attempt are watched over."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcdl.run_folder import NOBODY, RunFolder


@dataclass(frozen=True)
class Post:
    """Where ranks leave signs of life, and see whether the run has gone on without them.

    Args:
        folder: of the run.
        attempt: to which the ranks belong.
    """

    folder: RunFolder
    attempt: int

    def heartbeat(self, rank: int) -> Path:
        """Where the sign of life of a rank lies."""
        return self.folder.heartbeat(self.attempt, rank)

    def successor(self) -> int | None:
        """A later attempt that has begun: this one was given up, and may not write any more."""
        number = self.attempt + 1
        while (job := _target(self.folder.start(number))) == NOBODY:
            number += 1
        return None if job is None else number


def _target(link: Path) -> str | None:
    with suppress(OSError):
        return str(link.readlink())
    return None
