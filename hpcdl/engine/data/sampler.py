"""Which sequences a step trains on: a pure function of the seed and the step, nothing else."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hpcdl.errors import EngineError

Integers = npt.NDArray[np.int64]


class Epochs:
    """The endless row of epochs over one source, each a permutation of all its sequences.

    Args:
        sequences: how many there are.
        seed: of the run.
        source: tells the sources of one run apart.
    """

    def __init__(self, sequences: int, seed: int, source: int = 0) -> None:
        self._sequences = sequences
        # Two 64-bit words: the seed, and which epoch of which source.
        self._key = (seed, source << 32)
        # A step rarely spans more; a million sequences take tens of milliseconds to permute.
        self._order = lru_cache(maxsize=2)(self._permuted)

    def at(self, positions: Integers) -> Integers:
        """The sequences at ``positions`` of the row; the first position is 0."""
        epochs, within = np.divmod(positions, self._sequences)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = self._order(int(epoch))[within[epochs == epoch]]
        return indices

    def _permuted(self, epoch: int) -> Integers:
        seed, source = self._key
        return np.random.Generator(np.random.Philox(key=[seed, source + epoch])).permutation(self._sequences)


class Mixture:
    """Which source the sequence at a position comes from, and which of that source's it is.

    The choice repeats after a period in which every source gives exactly its quota; at every
    position the sequences it gave differ from its share by less than one.

    Args:
        quotas: sequences of each source in one period.
    """

    def __init__(self, quotas: Sequence[int]) -> None:
        self._quotas = np.array(quotas, dtype=np.int64)
        self._sources = fair_order(quotas)
        self._earlier = np.empty_like(self._sources)  # of the same source, in the period
        for source, quota in enumerate(quotas):
            self._earlier[self._sources == source] = np.arange(quota)

    def at(self, positions: Integers) -> tuple[Integers, Integers]:
        """Source, and position in the row of that source, of each of ``positions``."""
        periods, within = np.divmod(positions, len(self._sources))
        sources = self._sources[within]
        return sources, periods * self._quotas[sources] + self._earlier[within]


def fair_order(quotas: Sequence[int]) -> Integers:
    """Sources in an order in which each has had, after n places, its share of n to within one.

    The j-th place of a source with quota q in a period of P may not come before floor(jP/q), nor
    after ceil((j+1)P/q); of those that may come the one that must come first is taken. With whole
    numbers and one place at a time this meets every deadline (Baruah et al., Algorithmica 15,
    1996, "Proportionate progress").
    """
    period = sum(quotas)
    released: list[list[int]] = [[] for _ in range(period)]
    for source, quota in enumerate(quotas):
        for turn in range(quota):
            released[turn * period // quota].append(source)
    taken = [0] * len(quotas)
    waiting: list[tuple[int, int]] = []
    order = np.empty(period, dtype=np.int64)
    for place in range(period):
        for source in released[place]:
            heapq.heappush(waiting, (_deadline(taken[source], period, quotas[source]), source))
            taken[source] += 1
        order[place] = heapq.heappop(waiting)[1]
    return order


def _deadline(turn: int, period: int, quota: int) -> int:
    return -(-(turn + 1) * period // quota)


def step_positions(step: int, global_batch: int) -> Integers:
    """Positions in the row of all sequences that a step takes; the first step is 1."""
    return np.arange((step - 1) * global_batch, step * global_batch, dtype=np.int64)


def shard_rows(global_batch: int, shard: int, shards: int) -> slice:
    """The rows of a step that batch shard ``shard`` of ``shards`` takes.

    Raises:
        EngineError: they cannot be shared evenly.
    """
    rows, left = divmod(global_batch, shards)
    if left:
        raise EngineError(
            f"training.global_batch {global_batch} cannot be shared evenly by {shards} batch shards",
            "choose a multiple of data times z",
        )
    return slice(shard * rows, (shard + 1) * rows)
