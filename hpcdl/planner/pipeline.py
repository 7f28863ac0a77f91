"""How long a pipeline takes: the engine's own state machine driven by a clock.

Every rank takes what has arrived, gradients and activations in turn; a message takes ``hop`` seconds and the
sender does not wait for it (Singh and Bhatele, IPDPS 2022). With equal stages and free messages that is the
(m-1+p)·T of 1F1B where a backward takes one, two or three forwards, and up to a twelfth more at other ratios
(up to twelve stages, in tests/planner/test_planner_pipeline.py). ``planner.bound`` has the least it can take.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from hpcdl.stage import Action, Flow, Kind, Message, Operation, Stage

Hop = float | Callable[[], float]

Seconds = Mapping[Operation, Sequence[Sequence[float]]]
"""What each operation takes: by kind, virtual stage and microbatch."""


class Span(NamedTuple):
    """One operation, and when it was done: from ``start`` to ``end`` seconds after the batch began."""

    rank: int
    operation: Operation
    chunk: int
    microbatch: int
    start: float
    end: float


_AT_ONCE = 1 + 1e-9
"""Moments closer than this are one: rounding must not decide which of two messages came first."""


@dataclass
class _Clock:
    """Ranks that each do one thing at a time, and the messages under way between them."""

    stages: list[Stage]
    seconds: Seconds
    hop: Hop
    free_at: list[float]
    events: list[tuple[float, int, int, Message | None]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    sent: dict[tuple[int, Kind], float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)

    def run(self) -> list[Span]:
        """Everything that is done until nothing is left."""
        for stage in self.stages:
            self._wake(0.0, stage.index, None)
        while self.events:
            now, seeing = self._happen()
            for index in seeing:
                self._work(index, now)
        return self.spans

    def _wake(self, when: float, index: int, message: Message | None) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), index, message))

    def _happen(self) -> tuple[float, list[int]]:
        """Deliver everything that arrives at one moment; when that is, and the ranks that see something."""
        now = moment = self.events[0][0]
        seeing = []
        while self.events and self.events[0][0] <= moment * _AT_ONCE:
            now, _, index, message = heapq.heappop(self.events)
            if message:
                self.stages[index].arrive(message)
            seeing.append(index)
        return now, list(dict.fromkeys(seeing))

    def _work(self, index: int, now: float) -> None:
        stage = self.stages[index]
        cause = stage.choose() if self.free_at[index] <= now else None
        if cause is None:
            return
        for action in stage.take(cause):
            if action.operation in self.seconds:
                now = self._compute(stage, now, action)
            else:
                self._send(stage, now, action)
        self.free_at[index] = now
        self._wake(now, index, None)

    def _compute(self, stage: Stage, now: float, action: Action) -> float:
        operation, chunk, microbatch = action.operation, action.chunk, action.microbatch
        end = now + self.seconds[operation][chunk * stage.flow.ranks + stage.index][microbatch]
        self.spans.append(Span(stage.index, operation, chunk, microbatch, now, end))
        return end

    def _send(self, stage: Stage, now: float, action: Action) -> None:
        index, message = stage.addressed(action)
        channel = stage.index, message.kind
        # Messages from one rank to another do not overtake each other.
        under_way = self.hop if isinstance(self.hop, float | int) else self.hop()
        arrival = max(now + under_way, self.sent.get(channel, 0.0))
        self.sent[channel] = arrival
        self._wake(arrival, index, message)


def drive(flow: Flow, seconds: Seconds, hop: Hop = 0.0) -> tuple[Span, ...]:
    """What every rank of a pipeline does and when, by driving a ``Stage`` for each with a clock.

    Args:
        flow: the pipeline and the batch.
        seconds: what each operation of each microbatch takes on each virtual stage.
        hop: seconds that a message is under way, or what draws them.

    Returns:
        All operations, each after those that it waited for; those of one rank in the order they were done.
    """
    stages = [Stage(index, flow) for index in range(flow.ranks)]
    return tuple(_Clock(stages, seconds, hop, free_at=[0.0] * flow.ranks).run())


def timeline(
    flow: Flow,
    forward: Sequence[float],
    backward: Sequence[float],
    weight: Sequence[float] | None = None,
    hop: Hop = 0.0,
) -> tuple[Span, ...]:
    """What every rank does and when, where all microbatches take the same.

    Args:
        flow: the pipeline and the batch.
        forward: seconds of one microbatch's forward on each virtual stage.
        backward: the same for its whole backward, recomputation included.
        weight: what of ``backward`` is for gradients of weights, and is deferred if ``flow`` says so.
        hop: seconds that a message is under way, or what draws them.
    """
    return drive(flow, alike(flow, forward, backward, weight), hop)


def simulate(
    flow: Flow,
    forward: Sequence[float],
    backward: Sequence[float],
    weight: Sequence[float] | None = None,
    hop: Hop = 0.0,
) -> float:
    """Seconds from the first forward to the end of the last backward; arguments as of ``timeline``."""
    return max(span.end for span in timeline(flow, forward, backward, weight, hop))


def alike(
    flow: Flow, forward: Sequence[float], backward: Sequence[float], weight: Sequence[float] | None
) -> dict[Operation, list[list[float]]]:
    """Seconds of each operation where all microbatches take the same; arguments as of ``timeline``."""
    deferred = weight if weight and flow.defer_weights else [0.0] * len(forward)
    by_stage = {
        Operation.FORWARD: forward,
        Operation.BACKWARD: [whole - later for whole, later in zip(backward, deferred, strict=True)],
        Operation.WEIGHT: deferred,
    }
    return {
        operation: [[seconds] * flow.microbatches for seconds in stages]
        for operation, stages in by_stage.items()
    }
