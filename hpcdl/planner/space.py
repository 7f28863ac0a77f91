"""Every way to spread a model over a number of devices, as arrays that are judged together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hpcdl.spec.decomposition import AXES, ENGINE_RULES, RULES, Decomposition, Offload
from hpcdl.spec.model import Model
from hpcdl.stage import Flow

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]


_PLAIN = Decomposition()
_ARRAYS = (*AXES, "microbatch", "full_recompute", "offloaded", "offload_activations")
_LEVELS = np.array(get_args(Offload))


@dataclass(frozen=True)
class Candidates:
    """Many decompositions at once: one array an axis, all of one length.

    It has the attributes of a ``Decomposition``, so the rules of ``spec.decomposition`` judge it as they
    judge one. ``common`` says what the search does not vary.
    """

    x: Ints
    y: Ints
    z: Ints
    data: Ints
    pipeline: Ints
    microbatch: Ints
    full_recompute: Bools
    offloaded: Ints  # level of ``offload``: 0 nothing, 1 optimizer, 2 parameters
    offload_activations: Bools
    common: Decomposition = _PLAIN

    def __len__(self) -> int:
        return len(self.data)

    @property
    def recompute(self) -> NDArray[np.str_]:
        """``none`` or ``full`` where the search varies it, else what all have in common."""
        return np.where(self.full_recompute, "full", self._not_full)

    @property
    def _not_full(self) -> str:
        return "none" if self.common.recompute == "full" else self.common.recompute

    @property
    def interleave(self) -> int:
        """Virtual stages a rank."""
        return self.common.interleave

    @property
    def recompute_every(self) -> int:
        """Layers that are recomputed as one."""
        return self.common.recompute_every

    @property
    def zero(self) -> int:
        """1: optimizer state is sharded over data."""
        return self.common.zero

    @property
    def offload(self) -> NDArray[np.str_]:
        """What is kept in CPU memory."""
        return _LEVELS[self.offloaded]

    @property
    def plain(self) -> Bools:
        """Whether nothing is kept in CPU memory."""
        verdict: Bools = (self.offloaded == 0) & ~self.offload_activations
        return verdict

    @property
    def batch_shards(self) -> Ints:
        """Parts a batch is cut into before microbatches: data × z."""
        return self.data * self.z

    @property
    def tensor(self) -> Ints:
        """Ranks that hold one copy of a layer's weights between them: x × y × z."""
        return self.x * self.y * self.z

    def microbatches(self, global_batch: int) -> Ints:
        """Microbatches a pipeline runs in one step; the last may be smaller."""
        count: Ints = -(-global_batch // (self.batch_shards * self.microbatch))
        return count

    def inner(self, axis: str) -> Ints:
        """Product of the degrees inside ``axis``, which is how far apart its neighbours sit."""
        product = np.ones(len(self), dtype=np.int64)
        for name in AXES[: AXES.index(axis)]:
            product = product * getattr(self, name)
        return product

    @property
    def plain_pipeline(self) -> bool:
        """Whether stages are whole, the default of microbatches in flight, and backwards in one piece."""
        d = self.common
        return d.interleave == 1 and d.in_flight is None and not d.defer_weights

    def flows(self, global_batch: int) -> list[Flow]:
        """How one batch flows through the pipeline of each candidate."""
        d, counts = self.common, self.microbatches(global_batch)
        return [
            Flow(int(ranks), int(count), d.interleave, d.in_flight, d.defer_weights)
            for ranks, count in zip(self.pipeline, counts, strict=True)
        ]

    def in_flight(self, global_batch: int) -> Ints:
        """Microbatches in a pipeline at once."""
        counts = self.microbatches(global_batch)
        if self.plain_pipeline:  # as ``Flow.limit``, for many at once
            enough = self.pipeline + np.where(self.pipeline > 1, -(-self.pipeline // 4), 0)
            return np.minimum(enough, counts)
        return np.array([flow.limit for flow in self.flows(global_batch)])

    def take(self, index: NDArray[Any]) -> Candidates:
        """The candidates at ``index`` (positions, or a mask)."""
        return replace(self, **{name: getattr(self, name)[index] for name in _ARRAYS})

    def offloading(self, level: int, *, activations: bool = False) -> Candidates:
        """The same, each with so much in CPU memory."""
        levels, flags = np.full(len(self), level), np.full(len(self), activations)
        return replace(self, offloaded=levels, offload_activations=flags)

    def decomposition(self, position: int) -> Decomposition:
        """One candidate."""
        degrees = {axis: int(getattr(self, axis)[position]) for axis in (*AXES, "microbatch")}
        varied = {
            "recompute": "full" if self.full_recompute[position] else self._not_full,
            "offload": str(self.offload[position]),
            "offload_activations": bool(self.offload_activations[position]),
        }
        return Decomposition.model_validate({**self.common.model_dump(), **degrees, **varied})

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """One list of several with the same in common."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(**arrays, common=parts[0].common)

    @classmethod
    def of(cls, d: Decomposition) -> Candidates:
        """One decomposition as a list of one."""
        one = {axis: np.array([getattr(d, axis)]) for axis in (*AXES, "microbatch")}
        return cls(
            **one,
            full_recompute=np.array([d.recompute == "full"]),
            offloaded=np.array([get_args(Offload).index(d.offload)]),
            offload_activations=np.array([d.offload_activations]),
            common=d,
        )


@dataclass(frozen=True)
class Space:
    """What was looked at: the candidates that keep every rule, and how many broke which."""

    candidates: Candidates
    refused: dict[str, int]

    @property
    def evaluated(self) -> int:
        """All that were judged; each refused one counts once, under the first rule that it breaks."""
        return len(self.candidates) + sum(self.refused.values())


def search_space(gpus: int, model: Model, global_batch: int) -> Space:
    """All products of five degrees that make ``gpus``, with every microbatch that divides, both recomputes.

    Nothing is offloaded: ``planner.offload`` adds that where it can matter.
    Degrees are any divisors, not powers of two only. A grid that breaks a rule whatever the microbatch is
    counted once and not multiplied out.
    """
    grids = _grids(gpus)
    kept, refused = _judge(grids, model, global_batch)
    return Space(_with_microbatches(grids.take(kept), global_batch), refused)


def smallest(gpus: int, model: Model, global_batch: int) -> Candidates:
    """Of every grid that keeps the rules, the two forms that need least memory: one sequence at a time."""
    grids = _grids(gpus)
    kept, _ = _judge(grids, model, global_batch)
    return _both_recomputes(grids.take(kept))


def lawful(candidates: Candidates, model: Model, global_batch: int) -> Bools:
    """Those that keep every rule."""
    return _judge(candidates, model, global_batch)[0]


def factorisations(number: int, parts: int) -> Ints:
    """All ordered products of ``parts`` positive integers that make ``number``, shape (count, parts)."""
    result = np.ones((1, parts), dtype=np.int64)
    for prime, exponent in _prime_factors(number):
        powers = prime ** _compositions(exponent, parts)
        result = (result[:, None, :] * powers[None, :, :]).reshape(-1, parts)
    return result


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return sorted(int(row[0]) for row in factorisations(number, 2))


def _grids(gpus: int) -> Candidates:
    x, y, z, data, pipeline = factorisations(gpus, len(AXES)).T
    ones, no = np.ones(len(x), dtype=np.int64), np.zeros(len(x), dtype=np.bool_)
    return Candidates(x, y, z, data, pipeline, ones, no, 0 * ones, no)


def _judge(grids: Candidates, model: Model, global_batch: int) -> tuple[Bools, dict[str, int]]:
    alive = np.ones(len(grids), dtype=np.bool_)
    refused: dict[str, int] = {}
    for rule in (*RULES, *ENGINE_RULES):
        broken = alive & ~np.broadcast_to(rule.holds(grids, model, global_batch), alive.shape)
        if broken.any():
            refused[rule.name] = int(broken.sum())
        alive &= ~broken
    return alive, refused


def _with_microbatches(grids: Candidates, global_batch: int) -> Candidates:
    share = global_batch // grids.batch_shards
    choices = {int(value): divisors(int(value)) for value in np.unique(share)}
    counts = np.array([len(choices[int(value)]) for value in share], dtype=np.int64)
    repeated = grids.take(np.repeat(np.arange(len(grids)), counts))
    if len(repeated):
        repeated.microbatch[:] = np.concatenate([choices[int(value)] for value in share])
    return _both_recomputes(repeated)


def _both_recomputes(candidates: Candidates) -> Candidates:
    count = len(candidates)
    both = candidates.take(np.tile(np.arange(count), 2))
    both.full_recompute[count:] = True
    return both


def _prime_factors(number: int) -> Iterator[tuple[int, int]]:
    prime = 2
    while number > 1:
        if prime * prime > number:
            prime = number
        exponent = 0
        while number % prime == 0:
            number //= prime
            exponent += 1
        if exponent:
            yield prime, exponent
        prime += 1


def _compositions(total: int, parts: int) -> Ints:
    """All ways to write ``total`` as an ordered sum of ``parts`` terms >= 0: stars and bars."""
    bars = np.array(list(combinations(range(total + parts - 1), parts - 1)), dtype=np.int64)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=(-1, total + parts - 1))
    return np.diff(edges, axis=1) - 1
