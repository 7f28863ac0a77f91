"""Who updates the weights, a bucket at a time."""

from __future__ import annotations

from typing import Protocol

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.optim.bucket import Bucket


class Stepping(Protocol):
    """Something that can update buckets, each of the same length as in every other step.

    What is updated between two calls of ``join``, and in which order, is the same in every step.
    """

    def update(self, bucket: Bucket, learning_rate: float, divisor: float | None = None) -> None:
        """Begin to update the parameters of one bucket.

        Args:
            bucket: its gradient is that of the whole batch.
            learning_rate: of this step.
            divisor: what gradients are divided by first (clipping, loss scale); None: nothing.
        """

    def join(self) -> None:
        """Let who computes next find the new weights of all buckets."""


class Apart:
    """Weights that lie on the host are updated there and all others where they are best updated.

    Args:
        host: the memory of the host.
        there: updates what lies in it.
        others: updates what does not.
    """

    def __init__(self, host: HostMemory, there: Stepping, others: Stepping) -> None:
        self._host = host
        self._there = there
        self._others = others

    def update(self, bucket: Bucket, learning_rate: float, divisor: float | None = None) -> None:
        """Begin to update one bucket."""
        stepping = self._there if self._host.holds(bucket.parameter) else self._others
        stepping.update(bucket, learning_rate, divisor)

    def join(self) -> None:
        """Let who computes next find the new weights."""
        self._there.join()
        self._others.join()
