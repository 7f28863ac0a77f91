"""What one rank is at: told by the thread that trains, read by another one that watches it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from hpcdl.engine.timeline import COMPUTE, OPTIMIZER, PHASE, WAITING, Timeline
from hpcdl.telemetry import StepRecord

START, PREFLIGHT, BETWEEN = "start", "pre-flight", "between"
_KEPT = 21  # steps that say how long one usually takes


@dataclass(frozen=True)
class Moment:
    """What a rank is at.

    Args:
        step: the last one that it finished.
        phase: of the step; ``PREFLIGHT`` and ``START`` before the first, ``BETWEEN`` where none is open.
        at: the innermost operation, in words; empty where there is none.
        waiting: whether that operation may need other ranks.
        moves: operations finished so far; while it stays the same, the rank stands still.
    """

    step: int
    phase: str
    at: str
    waiting: bool
    moves: int


class Pulse:
    """What one rank is at.

    Args:
        timeline: of this rank.
        on_device: whether it computes on one that its host only fills with work. When there is no room for
            more, the host stands still wherever it is, and what the device waits for may be another rank.
    """

    def __init__(self, timeline: Timeline, *, on_device: bool = False) -> None:
        self._timeline = timeline
        self._waiting = WAITING | {COMPUTE, OPTIMIZER} if on_device else WAITING
        self._done = 0
        self._steps: deque[float] = deque(maxlen=_KEPT)

    def step(self, record: StepRecord) -> None:
        """One more is done."""
        self._steps.append(record.step_seconds)
        self._done = record.step

    @property
    def step_seconds(self) -> float | None:
        """How long a step usually takes; None before the first."""
        return median(self._steps.copy()) if self._steps else None

    def now(self) -> Moment:
        """What it is at now; may be asked by any thread."""
        opened, moves = self._timeline.opened.copy(), self._timeline.moves
        outermost = opened[0] if opened else None
        phase = outermost[1] if outermost and outermost[0] == PHASE else BETWEEN if self._steps else START
        category, name, facts = opened[-1] if opened else ("", "", {})
        words = "" if category == PHASE else _words(name, facts)
        return Moment(self._done, phase, words, category in self._waiting, moves)


def _words(name: str, facts: Mapping[str, int]) -> str:
    """An operation as a person calls it."""
    if "peer" in facts:
        return f"{name} {'from' if name == 'receive' else 'to'} rank {facts['peer']}"
    if "ranks" in facts:
        return f"{name} over {facts['ranks']} ranks"
    if "microbatch" in facts:
        return f"{name} of microbatch {facts['microbatch']}"
    return "waiting for a message" if name in {"first", "message"} else name
