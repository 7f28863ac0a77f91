"""What there is to choose from: every decomposition that an engine can run on a number of devices.

A *node* is a choice of everything but what its schedule and its memory leave open: how a pipeline is
interleaved and whether it defers weight gradients (``Space.schedules``), how many layers lie between the
activations that full recomputation keeps, and what is offloaded (``planner.offload``). Numbers of chunks
that leave every rank the same layers are one node, so all of its schedules do the same work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hpcdl.planner.divisors import divisors, factorisations
from hpcdl.planner.engines import HPCDL, Engine
from hpcdl.planner.space import FULL, ORDERS, SELECTIVE, Bools, Candidates, Ints
from hpcdl.planner.stages import held_by_ranks
from hpcdl.spec.decomposition import AXES, RULES, Decomposition
from hpcdl.spec.model import Model

_BLOCK = 1 << 16  # nodes that are judged at once; a few hundred bytes each
_SIZES = (*AXES, "context")
# One choice of each kind, whose rules tell whether an engine can run it.
_PROBES = {
    "context": Decomposition(context=2),
    "expert": Decomposition(data=2, expert=2),
    "sequence_parallel": Decomposition(x=2, sequence_parallel=True),
    "order": Decomposition(data=2, pipeline=2, order="pipeline-data"),
    "interleave": Decomposition(pipeline=2, interleave=2),
    "defer_weights": Decomposition(pipeline=2, defer_weights=True),
    "selective": Decomposition(recompute="selective"),
    "full": Decomposition(recompute="full"),
    **{f"zero {stage}": Decomposition(data=2, zero=stage) for stage in (1, 2, 3)},
}


@dataclass(frozen=True)
class Space:
    """All decompositions of a model over ``gpus`` that keep the rules.

    Degrees are any divisors, not powers of two only. A grid that breaks a rule whatever the rest is counted
    once and not multiplied out; ``refused`` holds how many broke which rule, of the blocks seen so far.
    """

    gpus: int
    model: Model
    global_batch: int
    engine: Engine = HPCDL
    schedules_matter: bool = True  # else pipelines are neither interleaved nor deferred
    refused: Counter[str] = field(default_factory=Counter)

    @cached_property
    def offered(self) -> frozenset[str]:
        """The kinds of choices that the engine can run."""
        kinds = set(_PROBES) - (set() if self.schedules_matter else {"interleave", "defer_weights"})
        rules = [rule for rule in self.engine.rules if rule.holds(Decomposition(), self.model, 1)]
        return frozenset(
            name for name in kinds if all(rule.holds(_PROBES[name], self.model, 2) for rule in rules)
        )

    @cached_property
    def grids(self) -> Candidates:
        """Products of degrees that keep every rule with one sequence a microbatch."""
        names = _SIZES if "context" in self.offered else AXES
        rows = factorisations(self.gpus, len(names))
        some = [rows[first : first + _BLOCK].T for first in range(0, len(rows), _BLOCK)]
        return Candidates.joined(
            [self._lawful(Candidates.grids(**dict(zip(names, columns, strict=True)))) for columns in some]
        )

    @cached_property
    def parts(self) -> int:
        """How many blocks there are."""
        share, where = np.unique(self.global_batch // self.grids.batch_shards, return_inverse=True)
        microbatches = np.array([len(divisors(int(value))) for value in share], dtype=np.int64)[where]
        nodes = int(microbatches.sum()) * (1 + len(self.offered))  # about
        return min(len(self.grids), -(-nodes // _BLOCK))

    def blocks(self) -> Iterator[Candidates]:
        """All nodes, so many at once that memory stays bounded; each block is a sample of all."""
        for first in range(self.parts):
            yield self._nodes(self.grids.take(np.arange(first, len(self.grids), self.parts)))

    @cached_property
    def nodes(self) -> Candidates:
        """All of them at once, for where there are few."""
        return Candidates.joined([self._nodes(self.grids.take(np.zeros(0, dtype=np.int64))), *self.blocks()])

    def schedules(self, nodes: Candidates) -> Candidates:
        """Every way to interleave these and to defer weight gradients."""
        found = _spread(nodes, "interleave", self._key(nodes), self._chunks_alike)
        if "defer_weights" in self.offered:
            return found.also(found.pipeline > 1, defer_weights=True)
        return found

    def schedule_counts(self, nodes: Candidates) -> Ints:
        """How many schedules each has."""
        known, where = np.unique(self._key(nodes), return_inverse=True)
        counts = np.array([len(self._chunks_alike(int(key))) for key in known], dtype=np.int64)[where]
        return counts * np.where((nodes.pipeline > 1) & ("defer_weights" in self.offered), 2, 1)

    def _nodes(self, grids: Candidates) -> Candidates:
        nodes = self._with_chunks(self._with_microbatches(grids))
        offered = self.offered
        everything = np.ones(len(nodes), dtype=np.bool_)
        both = [SELECTIVE] * ("selective" in offered) + [FULL] * ("full" in offered)
        nodes = Candidates.joined([nodes, *(nodes.take(everything).having(recomputed=one) for one in both)])
        sharded = [
            nodes.take(nodes.data > 1).having(zero=stage) for stage in (1, 2, 3) if f"zero {stage}" in offered
        ]
        nodes = Candidates.joined([nodes, *sharded])
        if "order" in offered:
            swapped = ORDERS.index("pipeline-data")
            nodes = nodes.also((nodes.data > 1) & (nodes.pipeline > 1), ordered=swapped)
        if "sequence_parallel" in offered:
            nodes = nodes.also((nodes.x > 1) & (nodes.y == 1), sequence_parallel=True)
        if "expert" in offered:
            nodes = self._with_experts(nodes)
        return self._lawful(nodes)

    def _lawful(self, candidates: Candidates) -> Candidates:
        kept, refused = judge(candidates, self.model, self.global_batch, self.engine)
        self.refused.update(refused)
        return candidates.take(kept)

    def _with_microbatches(self, grids: Candidates) -> Candidates:
        return _spread(grids, "microbatch", self.global_batch // grids.batch_shards, divisors)

    def _with_chunks(self, nodes: Candidates) -> Candidates:
        return _spread(nodes, "interleave", nodes.pipeline, lambda depth: list(self._alike[depth]))

    def _with_experts(self, nodes: Candidates) -> Candidates:
        return _spread(nodes, "expert", np.gcd(nodes.data, self.model.experts), divisors)

    def _key(self, nodes: Candidates) -> Ints:
        """What of a node tells its numbers of chunks."""
        return nodes.pipeline * (self.model.layers + 1) + nodes.interleave

    def _chunks_alike(self, key: int) -> list[int]:
        depth, least = divmod(key, self.model.layers + 1)
        return self._alike[depth][least]

    @cached_property
    def _alike(self) -> dict[int, dict[int, list[int]]]:
        """For each depth of a pipeline its numbers of chunks, by the least that leaves as many layers."""
        return {int(depth): self._chunks(int(depth)) for depth in np.unique(self.grids.pipeline)}

    def _chunks(self, depth: int) -> dict[int, list[int]]:
        """Chunks divide what the fullest rank holds."""
        possible = [1]
        if depth > 1 and "interleave" in self.offered:
            fullest = -(-self.model.layers // depth)
            possible = [count for count in divisors(fullest) if depth * count <= self.model.layers]
        groups: dict[tuple[int, ...], list[int]] = {}
        for count in possible:
            held = held_by_ranks(self.model, self.engine, depth, count)
            groups.setdefault(held, []).append(count)
        return {group[0]: group for group in groups.values()}


def judge(
    candidates: Candidates, model: Model, global_batch: int, engine: Engine
) -> tuple[Bools, dict[str, int]]:
    """Which keep every rule, and how many break which; each counts under the first that it breaks."""
    alive = np.ones(len(candidates), dtype=np.bool_)
    refused: dict[str, int] = {}
    for rule in (*RULES, *engine.rules):
        broken = alive & ~np.broadcast_to(rule.holds(candidates, model, global_batch), alive.shape)
        if broken.any():
            refused[rule.name] = int(broken.sum())
        alive &= ~broken
    return alive, refused


def _spread(candidates: Candidates, name: str, keys: Ints, choices: Callable[[int], list[int]]) -> Candidates:
    """Each candidate with each of the values for ``name`` that there are for its key."""
    known, where = np.unique(keys, return_inverse=True)
    values = [choices(int(key)) for key in known]
    lengths = np.array([len(own) for own in values], dtype=np.int64)
    counts = lengths[where]
    rows = np.repeat(np.arange(len(candidates)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = (np.cumsum(lengths) - lengths)[where[rows]] + within
    flat = np.array([value for own in values for value in own], dtype=np.int64)
    return candidates.take(rows).having(**{name: flat[places]})
