"""What one rank does with its time, in named spans.

The runner opens a span for each action and the door opens one for each wait (see ``transport.observed``).
Spans nest; the time of a span that lies inside another is taken off the outer one, so the seconds of a step
add up to the time that was spanned. All spans of a rank are opened and closed by one thread at a time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

COMPUTE = "compute"  # forward, backward and weight gradients
OPTIMIZER = "optimizer"
IDLE = "idle"  # waiting for a message that decides what to do next
PHASE = "phase"  # a part of a step or between steps; its own time is nobody else's
ALL_REDUCE = "all_reduce"
ALL_GATHER = "all_gather"
REDUCE_SCATTER = "reduce_scatter"
BROADCAST = "broadcast"
P2P = "p2p"
BARRIER = "barrier"
WAITING = frozenset({IDLE, ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, P2P, BARRIER})
"""Categories of what only ends when other ranks do their part."""


At = tuple[str, str, Mapping[str, int]]
"""What a rank is at: category, name and facts."""


class Clock(Protocol):
    """Notes moments cheaply, and says later when they were."""

    def mark(self) -> Any:
        """This moment."""

    def settle(self) -> None:
        """Return when every moment marked so far has come."""

    def seconds(self, mark: Any) -> float:
        """When ``mark`` was, in seconds of ``time.perf_counter``; only after ``settle``."""


class HostClock:
    """The clock of a rank that computes where it runs."""

    mark = staticmethod(time.perf_counter)

    def settle(self) -> None:
        """Return at once."""

    def seconds(self, mark: float) -> float:
        """The mark itself."""
        return mark


@dataclass(frozen=True)
class Span:
    """Something that lasted from ``start`` to ``end``, in seconds of ``time.perf_counter``."""

    category: str
    name: str
    start: float
    end: float
    depth: int = 0  # how many spans lie around it
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.start


class Taken(NamedTuple):
    """What a timeline held: spans in the order of their ends, and operations on their way."""

    spans: list[Span]
    flights: list[Span]


class _Open:
    """A span under way."""

    __slots__ = ("_at", "_start", "_timeline")

    def __init__(self, timeline: Timeline, at: At) -> None:
        self._timeline = timeline
        self._at = at

    def __enter__(self) -> None:
        self._timeline.opened.append(self._at)
        self._start = self._timeline.mark()

    def __exit__(self, *_: object) -> None:
        timeline = self._timeline
        end = timeline.mark()
        timeline.opened.pop()
        timeline.moves += 1
        category, name, facts = self._at
        timeline.closed.append((category, name, self._start, end, len(timeline.opened), facts))


class Timeline:
    """The spans of one rank since they were last taken.

    Args:
        clock: of the device that computes.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or HostClock()
        self.mark = self._clock.mark
        self.opened: list[At] = []  # what the rank is at, the innermost last; another thread may look
        self.moves = 0  # how many spans were ever closed
        self.closed: list[tuple[Any, ...]] = []
        self._flown: list[tuple[Any, ...]] = []

    def span(self, category: str, name: str, **facts: int) -> _Open:
        """Time what happens inside; ``facts`` go into the trace."""
        return _Open(self, (category, name, facts))

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Say that the rank may wait for others in here; its account has nothing of it."""
        self.opened.append((IDLE, name, {}))
        try:
            yield
        finally:
            self.opened.pop()
            self.moves += 1

    def landed(self, category: str, name: str, start: Any, facts: Mapping[str, int]) -> None:
        """An operation that was started at the mark ``start`` is finished. It may lie across spans."""
        self._flown.append((category, name, start, self.mark(), 0, facts))

    def now(self) -> float:
        """This moment, in seconds of ``time.perf_counter``, when the device has come to it."""
        mark = self.mark()
        self._clock.settle()
        return self._clock.seconds(mark)

    def take(self) -> Taken:
        """Everything since the last call; called where no span is open."""
        with self.waiting("device"):  # it is done when all that it waits for has come
            self._clock.settle()
        taken = Taken(self._spans(self.closed), self._spans(self._flown))
        self.closed.clear()
        self._flown.clear()
        return taken

    def _spans(self, noted: list[tuple[Any, ...]]) -> list[Span]:
        when = self._clock.seconds
        return [
            Span(category, name, when(start), when(end), depth, facts)
            for category, name, start, end, depth, facts in noted
        ]


def outside_idle(spans: Sequence[Span]) -> Iterator[tuple[Span, Span | None]]:
    """Each span with the one around it, last first; what lies inside an idle span is part of the idling.

    Args:
        spans: whole, in the order of their ends.
    """
    around: list[Span] = []
    for span in reversed(spans):
        del around[span.depth :]
        if not any(outer.category == IDLE for outer in around):
            yield span, around[-1] if around else None
        around.append(span)


def seconds_by_category(spans: Sequence[Span]) -> dict[str, float]:
    """How long each category lasted, without what lies inside it.

    Args:
        spans: whole, in the order of their ends.
    """
    totals: dict[str, float] = defaultdict(float)
    for span, outer in outside_idle(spans):
        totals[span.category] += span.seconds
        if outer is not None:
            totals[outer.category] -= span.seconds
    return dict(totals)
