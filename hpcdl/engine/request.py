"""Being asked to stop: a file of the run folder that somebody wrote a line into.

No signal: PBS ends the job's shell with it, and not every launcher passes it on. The file is there, empty,
from the beginning, and is opened anew for every look: that makes a network file system fetch it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_INTERVAL_S = 1.0


class Request:
    """Whether the run is asked to save itself and end.

    Args:
        file: where it is written; None for a rank that need not look.
        clock: seconds; the file is opened once a second at most.
    """

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._looked = float("-inf")
        self._made = False

    def made(self) -> bool:
        """The answer as of the last look."""
        if self._file is not None and not self._made and self._clock() - self._looked >= _INTERVAL_S:
            self._looked = self._clock()
            self._made = _written(self._file)
        return self._made


def _written(file: Path) -> bool:
    try:
        return bool(file.read_bytes())
    except OSError:
        return False
