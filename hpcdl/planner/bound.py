"""The least a pipeline can take, whatever the order of its operations, in closed form for all candidates.

With f_s and b_s the forward and backward of one microbatch on virtual stage s, w_s what of b_s is deferred
(nothing, or the gradients of weights), T_r and W_r the sums of f + b and of w over the virtual stages of rank
r, m microbatches on p ranks of v chunks, of which q are in flight, and messages under way for ``hop``:

- rank r has no input before the first r virtual stages have sent one on, start_r = Σ_{s<r} (f_s + hop). Its
  last backward is one of its first chunk, and after it the first r stages still have theirs,
  end_r = Σ_{s<r} (b_s - w_s + hop), beside which it may do what it deferred. So a pipeline takes at least
  start_r + max(m·T_r, m·(T_r - W_r) + end_r).
- a microbatch is under way for trip = Σ_s (f_s + b_s - w_s) + 2·(p·v - 1)·hop, and only q at once: at least
  ⌈m/q⌉ · trip. The last virtual stage takes them one by one, forward and backward, which is trip and
  (m - 1)·(f + b - w) of that stage.

With equal stages and free messages the first is the (m - 1 + p)·T of 1F1B, and m·T + (p - 1)·f/v where
weights are deferred. tests/planner/test_planner_bound.py holds it against the state machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hpcdl.planner.engines import Engine
from hpcdl.planner.space import Candidates, Floats, Ints
from hpcdl.planner.stages import held_by_ranks, layer_counts
from hpcdl.spec.model import Model


class Rank(NamedTuple):
    """One rank of each pipeline: its place, its layers, and those of the first chunks of all before it."""

    place: Ints
    layers: Ints
    before: Ints


@dataclass(frozen=True)
class Split:
    """How the layers of a model lie on the ranks of each pipeline.

    ``pacing`` are those that can pace it: the first, the last, and before that the latest with most layers.
    """

    model: Model
    engine: Engine
    ranks: Ints
    chunks: Ints
    pacing: tuple[Rank, Rank, Rank]
    final: Ints  # layers of the last virtual stage

    @classmethod
    def of(cls, model: Model, engine: Engine, c: Candidates) -> Split:
        """That of every candidate."""
        most = int(c.interleave.max(initial=1)) + 1
        known, where = np.unique(c.pipeline * most + c.interleave, return_inverse=True)
        rows = [_pacing(model, engine, *divmod(int(key), most)) for key in known]
        table = np.array(rows, dtype=np.int64).reshape(-1, 3, 3)[where]
        first, fullest, last = (Rank(*table[:, which].T) for which in range(3))
        ends = [layer_counts(model, engine, int(key) // most * (int(key) % most))[-1] for key in known]
        final = np.array(ends, dtype=np.int64)[where]
        return cls(model, engine, c.pipeline, c.interleave, (first, fullest, last), final)


@lru_cache(maxsize=4096)
def _pacing(model: Model, engine: Engine, ranks: int, chunks: int) -> tuple[tuple[int, int, int], ...]:
    held = held_by_ranks(model, engine, ranks, chunks)
    counts = layer_counts(model, engine, ranks * chunks)
    early = held[:-1] or held
    fullest = max(range(len(early)), key=lambda rank: (early[rank], rank))
    return tuple((rank, held[rank], sum(counts[:rank])) for rank in (0, fullest, ranks - 1))


class Costs(NamedTuple):
    """Seconds a microbatch of one direction: what comes before the layers, a layer, and what comes after."""

    begin: Floats
    layer: Floats
    end: Floats

    def less(self, others: Costs, where: Floats | Ints) -> Costs:
        """The same without ``others``, as often as ``where`` says."""
        return Costs(*(own - where * other for own, other in zip(self, others, strict=True)))


@dataclass(frozen=True)
class Bound:
    """Pipelines of which the least time is wanted.

    ``weight`` is what of ``backward`` is for gradients of weights; ``deferred`` is 1 where it is deferred.
    """

    split: Split
    microbatches: Ints
    in_flight: Ints
    deferred: Ints
    forward: Costs
    backward: Costs
    weight: Costs
    hop: Floats

    @property
    def seconds(self) -> Floats:
        """The least that each can take."""
        paced = [self._paced_by(rank) for rank in self.split.pacing]
        hops = 2 * (self.split.ranks * self.split.chunks - 1) * self.hop
        trip = self._trip(self.deferred) + hops
        trips = np.ceil(self.microbatches / self.in_flight) * trip
        found: Floats = np.max([trips, trip + self._behind_each_other(), *paced], axis=0)
        return found

    @property
    def over_schedules(self) -> Floats:
        """The least with whatever chunks that leave each rank its layers, and whatever is deferred."""
        works = [self._on(rank, self.forward) + self._on(rank, self.backward) for rank in self.split.pacing]
        trip = self._trip(np.ones_like(self.deferred))
        found: Floats = np.maximum(self.microbatches * np.max(works, axis=0), trip)
        return found

    def crowded_seconds(self, crowding: float) -> Floats:
        """The least where ``crowding`` ranks want each core: all work over all cores.

        A waiting rank lends its core, so bubbles cost nothing, except at both ends, where fewer stages have
        work than the pipeline has cores: of c cores 1, 2, … c-1 are busy for a microbatch each, which loses
        (c-1)/2 microbatches. Messages count as work: cores copy them.
        """
        ranks, total = self.split.ranks, self._trip(np.zeros_like(self.deferred))
        cores = ranks / crowding
        work = self.microbatches * (total + 2 * (ranks - 1) * self.hop)
        seconds: Floats = work / cores + np.maximum(0, cores - 1) / 2 * total / ranks
        return seconds

    def by_stage(self, place: int) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Of one candidate the seconds of forward, backward and weight on each virtual stage."""
        one = self.split
        stages = int(one.ranks[place] * one.chunks[place])
        layers = np.array(layer_counts(one.model, one.engine, stages))
        forward, backward, weight = (
            _on_stages(layers, costs, place) for costs in (self.forward, self.backward, self.weight)
        )
        return forward, backward, weight

    def _paced_by(self, rank: Rank) -> Floats:
        """What ``rank`` needs, with what must come before its first and after its last operation."""
        urgent = self.backward.less(self.weight, self.deferred)
        start, end = (self._before(rank, costs) + rank.place * self.hop for costs in (self.forward, urgent))
        whole = self._on(rank, self.forward) + self._on(rank, self.backward)
        owed = self.deferred * self._on(rank, self.weight)
        return start + np.maximum(self.microbatches * whole, self.microbatches * (whole - owed) + end)

    def _trip(self, deferred: Ints) -> Floats:
        """One microbatch's way there and back, messages aside."""
        way: Floats = np.zeros_like(self.hop)
        for costs in (self.forward, self.backward.less(self.weight, deferred)):
            way = way + costs.begin + self.split.model.layers * costs.layer + costs.end
        return way

    def _behind_each_other(self) -> Floats:
        """What the last virtual stage does for the other microbatches, before it has done the last one."""
        seconds: Floats = np.zeros_like(self.hop)
        for costs in (self.forward, self.backward.less(self.weight, self.deferred)):
            begins = (self.split.ranks == 1) * costs.begin
            seconds = seconds + begins + self.split.final * costs.layer + costs.end
        return (self.microbatches - 1) * seconds

    def _on(self, rank: Rank, costs: Costs) -> Floats:
        """All chunks of ``rank``."""
        begins, ends = rank.place == 0, rank.place == self.split.ranks - 1
        seconds: Floats = begins * costs.begin + rank.layers * costs.layer + ends * costs.end
        return seconds

    def _before(self, rank: Rank, costs: Costs) -> Floats:
        """The first chunks of all ranks before ``rank``."""
        return (rank.place > 0) * costs.begin + rank.before * costs.layer


def _on_stages(layers: Ints, costs: Costs, place: int) -> tuple[float, ...]:
    seconds = layers * costs.layer[place]
    seconds[0] += costs.begin[place]
    seconds[-1] += costs.end[place]
    return tuple(seconds.tolist())
