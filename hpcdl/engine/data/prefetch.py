"""Work of the next steps done in advance, by one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetched(make: Callable[[int], T], steps: range, ahead: int) -> Iterator[Iterator[T]]:
    """``make(step)`` for each of ``steps`` in order, up to ``ahead`` of them made before they are asked for.

    What ``make`` raises is raised where its answer is asked for. On leaving, the thread is gone.
    """
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        yield _answers(worker, make, steps, ahead)
    finally:
        worker.shutdown(cancel_futures=True)


def _answers(worker: ThreadPoolExecutor, make: Callable[[int], T], steps: range, ahead: int) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    for step in steps:
        waiting.append(worker.submit(make, step))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
