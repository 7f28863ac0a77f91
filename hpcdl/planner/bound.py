"""The least a pipeline can take, whatever the order of its operations, in closed form for all candidates.

With f_s and b_s the forward and backward of one microbatch on virtual stage s, w_s what of b_s is deferred
(nothing, or the gradients of weights), T_r and W_r the sums of f + b and of w over the virtual stages of rank
r, m microbatches on p ranks of v chunks, of which q are in flight, and messages under way for ``hop``:

- rank r has no input before the first r virtual stages have sent one on, start_r = Σ_{s<r} (f_s + hop). Its
  last backward is one of its first chunk, and after it the first r stages still have theirs,
  end_r = Σ_{s<r} (b_s - w_s + hop), beside which it may do what it deferred. So a pipeline takes at least
  start_r + max(m·T_r, m·(T_r - W_r) + end_r).
- a microbatch is under way for trip = Σ_s (f_s + b_s - w_s) + 2·(p·v - 1)·hop, and only q at once: at least
  ⌈m/q⌉ · trip.

With equal stages and free messages the first is the (m - 1 + p)·T of 1F1B, and m·T + (p - 1)·f/v where
weights are deferred. tests/planner/test_planner_bound.py holds it against the state machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hpcdl.planner.space import Candidates, Floats, Ints
from hpcdl.spec.model import Model
from hpcdl.spec.partition import last_layers


@dataclass(frozen=True)
class Split:
    """How the layers of a model lie on virtual stages, for every candidate, as ``stage_layers`` has it.

    ``base`` on each and one more on the first ``extra`` of them; ``last`` on the last one.
    """

    layers: int
    ranks: Ints
    chunks: Ints
    base: Ints
    extra: Ints
    last: Ints

    @classmethod
    def of(cls, model: Model, c: Candidates) -> Split:
        """That of every candidate."""
        stages = np.minimum(c.pipeline * c.interleave, model.layers)  # more are refused, but still estimated
        known, where = np.unique(stages, return_inverse=True)
        last = np.array([last_layers(model, int(count)) for count in known], dtype=np.int64)[where]
        base, extra = np.divmod(model.layers - last, np.maximum(stages - 1, 1))
        return cls(model.layers, c.pipeline, c.interleave, base, extra, last)

    def before(self, rank: Ints) -> Ints:
        """Layers of the first chunks of all ranks before ``rank``."""
        layers: Ints = rank * self.base + np.minimum(rank, self.extra)
        return layers

    def on(self, rank: Ints) -> Ints:
        """Layers of all chunks of ``rank``."""
        ends = rank == self.ranks - 1
        whole, some = np.divmod(self.extra, self.ranks)
        layers: Ints = (self.chunks - ends) * self.base + whole + (rank < some) + ends * self.last
        return layers

    @property
    def fullest(self) -> Ints:
        """Before the last rank, the latest that has as many layers as any there."""
        some = self.extra % self.ranks
        rank: Ints = np.maximum(np.where(some > 0, some, self.ranks - 1) - 1, 0)
        return rank


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
        first, last = 0 * self.split.ranks, self.split.ranks - 1
        paced = [self._paced_by(rank) for rank in (first, self.split.fullest, last)]
        hops = 2 * (self.split.ranks * self.split.chunks - 1) * self.hop
        trips = np.ceil(self.microbatches / self.in_flight) * (self._trip(self.deferred) + hops)
        found: Floats = np.max([trips, *paced], axis=0)
        return found

    @property
    def over_schedules(self) -> Floats:
        """The least with whatever chunks that leave each end its layers, and whatever is deferred."""
        ends = (0 * self.split.ranks, self.split.ranks - 1)
        busiest = np.maximum(*(self._on(rank, self.forward) + self._on(rank, self.backward) for rank in ends))
        found: Floats = np.maximum(self.microbatches * busiest, self._trip(np.ones_like(self.deferred)))
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
        layers = np.full(stages, one.base[place])
        layers[: one.extra[place]] += 1
        layers[-1] = one.last[place]
        forward, backward, weight = (
            _on_stages(layers, costs, place) for costs in (self.forward, self.backward, self.weight)
        )
        return forward, backward, weight

    def _paced_by(self, rank: Ints) -> Floats:
        """What ``rank`` needs, with what must come before its first and after its last operation."""
        urgent = self.backward.less(self.weight, self.deferred)
        start, end = (self._before(rank, costs) + rank * self.hop for costs in (self.forward, urgent))
        whole = self._on(rank, self.forward) + self._on(rank, self.backward)
        owed = self.deferred * self._on(rank, self.weight)
        return start + np.maximum(self.microbatches * whole, self.microbatches * (whole - owed) + end)

    def _trip(self, deferred: Ints) -> Floats:
        """One microbatch's way there and back, messages aside."""
        way: Floats = np.zeros_like(self.hop)
        for costs in (self.forward, self.backward.less(self.weight, deferred)):
            way = way + costs.begin + self.split.layers * costs.layer + costs.end
        return way

    def _on(self, rank: Ints, costs: Costs) -> Floats:
        """All chunks of ``rank``."""
        begins, ends = rank == 0, rank == self.split.ranks - 1
        seconds: Floats = begins * costs.begin + self.split.on(rank) * costs.layer + ends * costs.end
        return seconds

    def _before(self, rank: Ints, costs: Costs) -> Floats:
        """The first chunks of all ranks before ``rank``."""
        return (rank > 0) * costs.begin + self.split.before(rank) * costs.layer


def _on_stages(layers: Ints, costs: Costs, place: int) -> tuple[float, ...]:
    seconds = layers * costs.layer[place]
    seconds[0] += costs.begin[place]
    seconds[-1] += costs.end[place]
    return tuple(seconds.tolist())
