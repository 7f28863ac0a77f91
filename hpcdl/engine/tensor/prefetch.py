"""Gathering a weight while the layer before it still computes: OAG of AxoNN (SC'24, section V-D).

The order in which a pass uses its weights is learned from the last pass of the same kind. A wrong guess costs
one gather for nothing. Every rank of a z group uses the same weights in the same order, and what is gathered
follows from that order alone, never from the clock, so the ranks always start the same gathers.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import torch

from hpcdl.engine.groups import Coming


class Source(Protocol):
    """Where weights come from."""

    def gather(self, shard: torch.Tensor) -> Coming:
        """All flat shards of the weight of which this rank holds ``shard``, one after the other."""


class Prefetch:
    """The weights of one stage, each gathered from ``source`` one use ahead.

    Nothing stays gathered from one pass to the next, so no weight is older than the last update.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._orders: dict[Hashable, list[torch.Tensor]] = {}
        self._key: Hashable = None
        self._expected: list[torch.Tensor] = []
        self._used: list[torch.Tensor] = []
        self._ahead: tuple[torch.Tensor, Coming] | None = None

    def begin(self, key: Hashable) -> None:
        """Begin a pass; passes of one ``key`` are expected to use the same weights in the same order."""
        self.end()
        self._key = key
        self._expected = self._orders.get(key, [])

    def end(self) -> None:
        """End the pass, if one was begun. Outside of a pass nothing is gathered ahead."""
        self._drop()
        if self._key is not None:
            self._orders[self._key] = self._used
        self._key, self._expected, self._used = None, [], []

    def take(self, shard: torch.Tensor) -> torch.Tensor:
        """The whole block, flat, of the weight of which this rank holds ``shard``."""
        coming = self._claimed(shard) or self._source.gather(shard)
        if self._key is not None:
            self._used.append(shard)
            self._look_ahead(shard)
        return coming.wait()

    def _claimed(self, shard: torch.Tensor) -> Coming | None:
        """What was gathered ahead, if it is this weight; else it is dropped."""
        if self._ahead is not None and self._ahead[0] is shard:
            (_, coming), self._ahead = self._ahead, None
            return coming
        self._drop()
        return None

    def _look_ahead(self, shard: torch.Tensor) -> None:
        count = len(self._used)
        if count < len(self._expected) and self._expected[count - 1] is shard:
            following = self._expected[count]
            self._ahead = following, self._source.gather(following)

    def _drop(self) -> None:
        if self._ahead is not None:
            self._ahead[1].wait()
            self._ahead = None
