"""What several hosts noted of one run, in one order that asks no clock. Pure.

The clocks of two hosts may differ by minutes, so the times of their events put nothing in order. What one
host noted is in order by itself. Between hosts the meaning of an event counts: an attempt is claimed before
it is submitted, submitted before it is seen, and seen alive before it is seen to be over. So the attempts
that follow from the events are the same however the hosts' files were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hpcdl.telemetry import RunEvent

_LIFE = (
    "created", "claimed", "submitting", "broken off", "refused", "submitted", "requeued", "started",
    "cancel requested", "cancel refused",
)  # fmt: skip
"""Kinds of events in the order of an attempt's life, before it is observed."""

_STATES = (
    "prepared", "unknown", "queued", "running", "lost", "requeued", "completed", "failed", "paused",
    "cancelled", "preempted", "timeout", "out of memory", "node failed",
)  # fmt: skip
"""Observed states: those that may change, then the ends. Of two ends the later in this list tells more."""


def merged(files: Iterable[Sequence[RunEvent]]) -> list[RunEvent]:
    """The events of every host as one list: by attempt, and within an attempt by meaning.

    Args:
        files: what each host noted, in its order; the hosts always in the same order.
    """
    kept = [list(file) for file in files]
    numbers = sorted({event.attempt for file in kept for event in file})
    return [event for number in numbers for event in _of_attempt(number, kept)]


def _of_attempt(number: int, files: Sequence[Sequence[RunEvent]]) -> Iterator[RunEvent]:
    """Always the event next that comes first in an attempt's life; each file stays in its order."""
    left = [[event for event in file if event.attempt == number] for file in files]
    while any(left):
        first = min((file for file in left if file), key=lambda file: _rank(file[0]))
        yield first.pop(0)


def _rank(event: RunEvent) -> int:
    if event.kind != "observed":
        return _LIFE.index(event.kind) if event.kind in _LIFE else len(_LIFE)
    state = event.detail.get("state")
    return len(_LIFE) + (_STATES.index(state) if state in _STATES else 0)
