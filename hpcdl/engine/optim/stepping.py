"""Who updates the weights, a bucket at a time."""

from __future__ import annotations

from typing import Protocol

from hpcdl.engine.optim.flat import Bucket


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
