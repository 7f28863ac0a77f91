"""Threads that wait for receives, so that several can be raced.

A Gloo receive tells nobody that it is finished but who waits for it. Each receive that is raced gets a thread
to wait in. Queues and locks are those that the interpreter has in C: the futures of the standard library took
a quarter of a millisecond more a message, which is as long as a small message itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock, Thread

_PATIENCE_S = 1.0


class Watch:
    """One wait that a thread does for others."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.finished = False
        self._wait = wait
        self._error: BaseException | None = None
        self._running = Lock()
        self._running.acquire()

    def run(self) -> None:
        """Wait; called by the thread."""
        try:
            self._wait()
        except BaseException as error:  # noqa: BLE001 - whatever it was, it is raised in ``result``
            self._error = error
        self.finished = True
        self._running.release()

    def result(self) -> None:
        """Return when the wait is over; raise what it raised."""
        with self._running:
            if self._error is not None:
                raise self._error


class Watchers:
    """As many threads as receives are raced at a time."""

    def __init__(self, threads: int) -> None:
        self._waiting: SimpleQueue[Watch | None] = SimpleQueue()
        self._news: SimpleQueue[None] = SimpleQueue()
        self._threads = [Thread(target=self._watch, name="receive", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def watch(self, wait: Callable[[], object]) -> Watch:
        """Let a thread wait."""
        watch = Watch(wait)
        self._waiting.put(watch)
        return watch

    def first(self, watches: Sequence[Watch]) -> int:
        """Wait until one of ``watches`` is finished, and say which."""
        while True:
            for index, watch in enumerate(watches):
                if watch.finished:
                    return index
            self._news.get()  # of any watch, perhaps of one that was seen before

    def close(self) -> None:
        """Let the threads end; one that waits for what never comes is left to end with the process."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def _watch(self) -> None:
        while watch := self._waiting.get():
            watch.run()
            self._news.put(None)
