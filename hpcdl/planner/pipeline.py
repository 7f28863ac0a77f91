"""How long a pipeline takes: the engine's own state machine driven by a clock, and a closed form of it.

Every stage works off messages in the order of their arrival; a message takes ``hop`` seconds and the
sender does not wait for it (Singh and Bhatele, IPDPS 2022). With T_i the time of one microbatch on stage i,
m microbatches and p stages, of which at most p microbatches are in flight, the busiest stage paces the
pipeline, or else a microbatch's round trip:

    trip = Σ T_i + 2(p-1)·hop
    time ≈ trip + (m-1)·max_i T_i + max(0, m-p)·max(0, trip/p - max_i T_i)

With equal stages and free messages this is the (m-1+p)·T of 1F1B, and exact for up to four stages, or with
m <= p. Deeper pipelines meet their messages in an order that 1F1B would not choose: the state machine
takes up to a fifth longer there (tests/planner/test_planner_pipeline.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from hpcdl.planner.space import Floats, Ints
from hpcdl.stage import Action, Kind, Message, Operation, Stage


@dataclass(frozen=True)
class Pipeline:
    """Seconds a microbatch, for every candidate: the busiest stage, the sum over stages, one message."""

    stages: Ints
    microbatches: Ints
    busiest: Floats
    total: Floats
    hop: Floats

    @property
    def seconds(self) -> Floats:
        """The closed form."""
        trip = self.total + 2 * (self.stages - 1) * self.hop
        pause = np.maximum(0, trip / self.stages - self.busiest)
        waits = np.maximum(0, self.microbatches - self.stages)  # injections that wait for a gradient
        seconds: Floats = trip + (self.microbatches - 1) * self.busiest + waits * pause
        return seconds

    def crowded_seconds(self, crowding: float) -> Floats:
        """The least a pipeline takes when ``crowding`` ranks want each core: its work over its cores.

        A waiting rank lends its core, so bubbles cost nothing, except at both ends, where fewer stages have
        work than the pipeline has cores: of c cores 1, 2, … c-1 are busy for a microbatch each, which loses
        (c-1)/2 microbatches. Messages count as work: cores copy them.
        """
        cores = self.stages / crowding
        work = self.microbatches * (self.total + 2 * (self.stages - 1) * self.hop)
        seconds: Floats = work / cores + np.maximum(0, cores - 1) / 2 * self.total / self.stages
        return seconds


@dataclass
class _Clock:
    """Stages that work off their messages in order of arrival."""

    stages: list[Stage]
    forward: Sequence[float]
    backward: Sequence[float]
    hop: float
    free_at: list[float]
    arrivals: list[tuple[float, int, int, Message]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    def perform(self, index: int, now: float, actions: list[Action]) -> None:
        """Do ``actions`` on stage ``index`` from ``now`` on, and post what they send."""
        for action in actions:
            if action.operation is Operation.FORWARD:
                now += self.forward[index]
            elif action.operation is Operation.BACKWARD:
                now += self.backward[index]
            elif action.operation is Operation.SEND_ACTIVATION:
                self._post(now, index + 1, Message(Kind.ACTIVATION, action.microbatch))
            else:
                self._post(now, index - 1, Message(Kind.GRADIENT, action.microbatch))
        self.free_at[index] = now

    def _post(self, now: float, stage: int, message: Message) -> None:
        heapq.heappush(self.arrivals, (now + self.hop, next(self.numbers), stage, message))


def simulate(
    forward: Sequence[float], backward: Sequence[float], microbatches: int, hop: float = 0.0
) -> float:
    """Seconds from the first forward to the last backward, by driving a ``Stage`` for each entry.

    Args:
        forward: seconds of one microbatch's forward on each stage.
        backward: the same for its backward, recomputation included.
        microbatches: how many a batch has.
        hop: seconds that a message is under way.
    """
    size = len(forward)
    stages = [Stage(index, size, microbatches) for index in range(size)]
    clock = _Clock(stages, forward, backward, hop, free_at=[0.0] * size)
    for stage in stages:
        clock.perform(stage.index, 0.0, stage.start())
    while clock.arrivals:
        arrived, _, index, message = heapq.heappop(clock.arrivals)
        clock.perform(index, max(arrived, clock.free_at[index]), stages[index].receive(message))
    return max(clock.free_at)
