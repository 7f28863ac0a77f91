"""What one rank does with its time, in named spans.

The runner opens a span for each action and the door opens one for each wait (see ``transport.observed``).
Spans nest; the time of a span that lies inside another is taken off the outer one, so the totals of a step
add up to the time that was spanned.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

COMPUTE = "compute"
IDLE = "idle"  # waiting for a message that decides what to do next


@dataclass(frozen=True)
class Span:
    """Something this rank did from ``start`` to ``end``, in seconds of ``time.perf_counter``."""

    category: str
    name: str
    start: float
    end: float


class Timeline:
    """The spans of one rank; totals always, the spans themselves only while ``recording``."""

    def __init__(self) -> None:
        self.recording = False
        self.spans: list[Span] = []
        self._totals: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    @contextmanager
    def span(self, category: str, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            end = time.perf_counter()
            self._totals[category] += end - start - self._inner.pop()
            if self._inner:
                self._inner[-1] += end - start
            if self.recording:
                self.spans.append(Span(category, name, start, end))

    def take_totals(self) -> dict[str, float]:
        """Seconds by category since the last call."""
        totals = dict(self._totals)
        self._totals.clear()
        return totals
