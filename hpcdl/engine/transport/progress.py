"""A thread that does one small thing again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable

_PAUSE_SECONDS = 0.5e-3


class Repeated(threading.Thread):
    """Call ``work`` about every half millisecond until stopped.

    A library that moves data only while it is being called stands still while its caller waits for
    something else. Then two ranks that wait for each other's messages in different libraries would wait for
    ever: the one that has sent is never there to finish its sending.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(name="progress", daemon=True)
        self._work = work
        self._stopped = threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self._stopped.wait(_PAUSE_SECONDS):
            self._work()

    def stop(self) -> None:
        """Return when ``work`` is not being called and will not be again."""
        self._stopped.set()
        if self.is_alive():
            self.join()
