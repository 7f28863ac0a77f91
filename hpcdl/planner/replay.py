"""Many pipelines at once, whose ranks all do their operations in the order of one that went before.

It is what a static schedule does: a rank does not take something else when what comes next is late. Each
operation starts when its rank is free and the message that it waits for is there; that is one line of numpy
for as many pipelines as there are columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcdl.planner.pipeline import Span, drive
from hpcdl.planner.space import Floats, Ints
from hpcdl.stage import Flow, Operation

_STEPS = {Operation.FORWARD: -1, Operation.BACKWARD: 1, Operation.WEIGHT: 0}
"""How many virtual stages further the message comes from that starts an operation; 0: there is none."""


@dataclass(frozen=True)
class Order:
    """The operations of a pipeline, each after all it waits for.

    Attributes:
        flow: the pipeline and the batch.
        hop: seconds that a message is under way.
        spans: the operations, as they were done when the order was taken.
        senders: of each operation the one whose message it waits for, if any.
        previous: of each operation the one before it on its rank, or -1.
    """

    flow: Flow
    hop: float
    spans: tuple[Span, ...]
    senders: tuple[int | None, ...]
    previous: tuple[int, ...]

    @classmethod
    def of(cls, flow: Flow, spans: Sequence[Span], hop: float) -> Order:
        """The order of ``spans``, which are those of one pipeline."""
        numbers: dict[tuple[Operation, int, int], int] = {}
        latest: dict[int, int] = {}
        senders: list[int | None] = []
        previous = []
        for number, span in enumerate(spans):
            virtual = span.chunk * flow.ranks + span.rank
            step = _STEPS[span.operation]
            senders.append(numbers.get((span.operation, virtual + step, span.microbatch)) if step else None)
            previous.append(latest.get(span.rank, -1))
            numbers[span.operation, virtual, span.microbatch] = latest[span.rank] = number
        return cls(flow, hop, tuple(spans), tuple(senders), tuple(previous))

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def seconds(self) -> Floats:
        """What each operation took."""
        return np.array([span.end - span.start for span in self.spans])

    @property
    def ranks(self) -> Ints:
        """Which rank does each operation."""
        return np.array([span.rank for span in self.spans])

    def replay(self, seconds: Floats) -> Floats:
        """How long pipelines take whose ranks keep this order.

        Args:
            seconds: what each operation takes in each pipeline, shape (operations, pipelines).

        Returns:
            Shape (pipelines,).
        """
        ends = np.zeros((len(self) + 1, seconds.shape[1]))  # the last row, -1, is before any operation
        rows = zip(ends, seconds, self.senders, self.previous, strict=False)
        for end, each, sender, before in rows:
            if sender is None:
                np.add(ends[before], each, out=end)
            else:
                np.add(ends[sender], self.hop, out=end)
                np.maximum(end, ends[before], out=end)
                np.add(end, each, out=end)
        longest: Floats = ends.max(axis=0)
        return longest

    def drive(self, seconds: Floats) -> float:
        """How long one pipeline takes whose ranks take what comes, with the engine's machine.

        Args:
            seconds: what each operation takes, shape (operations,).
        """
        stages, microbatches = self.flow.ranks * self.flow.chunks, self.flow.microbatches
        table = {operation: [[0.0] * microbatches for _ in range(stages)] for operation in _STEPS}
        for span, each in zip(self.spans, seconds.tolist(), strict=True):
            table[span.operation][span.chunk * self.flow.ranks + span.rank][span.microbatch] = each
        return max(span.end for span in drive(self.flow, table, self.hop))
