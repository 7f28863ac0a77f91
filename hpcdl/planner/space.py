"""Many ways to spread a model over a number of devices, as arrays that are judged together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hpcdl.spec.decomposition import Decomposition, Offload, Order, Recompute
from hpcdl.stage import Flow

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]


RECOMPUTES = get_args(Recompute)
OFFLOADS = get_args(Offload)
ORDERS = get_args(Order)
FULL = RECOMPUTES.index("full")
SELECTIVE = RECOMPUTES.index("selective")

_AXES = ("x", "y", "z", "context", "data", "pipeline")
_COUNTS = (*_AXES, "expert", "microbatch", "interleave", "recompute_every", "zero")
_FLAGS = ("sequence_parallel", "defer_weights", "offload_activations")
_CODES = {"recomputed": RECOMPUTES, "offloaded": OFFLOADS, "ordered": ORDERS}
_NAMES = {"recomputed": "recompute", "offloaded": "offload", "ordered": "order"}
_PLAIN = Decomposition()


@dataclass(frozen=True)
class Candidates:
    """Many decompositions at once: one array a choice, all of one length.

    It has the attributes of a ``Decomposition``, so the rules of ``spec.decomposition`` judge it as they
    judge one. Words are held as their positions in RECOMPUTES, OFFLOADS and ORDERS.
    """

    x: Ints
    y: Ints
    z: Ints
    context: Ints
    data: Ints
    pipeline: Ints
    expert: Ints
    microbatch: Ints
    interleave: Ints
    recompute_every: Ints
    zero: Ints
    asked_in_flight: Ints  # 0: enough to keep every stage busy
    sequence_parallel: Bools
    defer_weights: Bools
    offload_activations: Bools
    recomputed: Ints
    offloaded: Ints
    ordered: Ints

    def __len__(self) -> int:
        return len(self.data)

    @property
    def recompute(self) -> NDArray[np.str_]:
        """Activations recomputed in the backward pass, in words."""
        return np.array(RECOMPUTES)[self.recomputed]

    @property
    def offload(self) -> NDArray[np.str_]:
        """What is kept in CPU memory, in words."""
        return np.array(OFFLOADS)[self.offloaded]

    @property
    def order(self) -> NDArray[np.str_]:
        """Which of data and pipeline lies further inside, in words."""
        return np.array(ORDERS)[self.ordered]

    @property
    def full_recompute(self) -> Bools:
        """Whether whole layers are recomputed."""
        verdict: Bools = self.recomputed == FULL
        return verdict

    @property
    def selective_recompute(self) -> Bools:
        """Whether attention's core and the activation are recomputed."""
        verdict: Bools = self.recomputed == SELECTIVE
        return verdict

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

    @property
    def owners(self) -> Ints:
        """Ranks along data and context that share the optimizer state of the same weights."""
        return np.where(self.zero > 0, self.data * self.context, 1)

    def microbatches(self, global_batch: int) -> Ints:
        """Microbatches a pipeline runs in one step; the last may be smaller."""
        count: Ints = -(-global_batch // (self.batch_shards * self.microbatch))
        return count

    def inner(self, axis: str) -> Ints:
        """Product of the degrees inside ``axis``, which is how far apart its neighbours sit."""
        product = np.ones(len(self), dtype=np.int64)
        for name in _AXES[: _AXES.index(axis)]:
            product = product * getattr(self, name)
        swapped = self.ordered == ORDERS.index("pipeline-data")
        if axis == "data":
            return np.where(swapped, product * self.pipeline, product)
        if axis == "pipeline":
            return np.where(swapped, product // self.data, product)
        return product

    def flow(self, position: int, global_batch: int) -> Flow:
        """How one batch flows through the pipeline of one candidate."""
        return Flow(
            ranks=int(self.pipeline[position]),
            microbatches=int(self.microbatches(global_batch)[position]),
            chunks=int(self.interleave[position]),
            in_flight=int(self.asked_in_flight[position]) or None,
            defer_weights=bool(self.defer_weights[position]),
        )

    def in_flight(self, global_batch: int) -> Ints:
        """Microbatches in a pipeline at once, as ``Flow.limit``."""
        quarters = np.where(
            self.defer_weights, np.where(self.interleave > 1, 6, 4), np.where(self.interleave > 1, 8, 5)
        )
        enough = np.where(self.pipeline > 1, -(-self.pipeline * quarters // 4), 1)
        asked = np.where(self.asked_in_flight > 0, self.asked_in_flight, enough)
        return np.minimum(asked, self.microbatches(global_batch))

    def take(self, index: NDArray[Any]) -> Candidates:
        """The candidates at ``index`` (positions, or a mask)."""
        return Candidates(**{name: column[index] for name, column in vars(self).items()})

    def having(self, **columns: NDArray[Any] | int | bool) -> Candidates:
        """The same with other values in some columns; one value stands for all candidates."""
        arrays = {
            name: np.broadcast_to(np.asarray(value, dtype=getattr(self, name).dtype), (len(self),))
            for name, value in columns.items()
        }
        return replace(self, **arrays)

    def offloading(self, level: int, *, activations: bool = False) -> Candidates:
        """The same, each with so much in CPU memory."""
        return self.having(offloaded=level, offload_activations=activations)

    def decomposition(self, position: int) -> Decomposition:
        """One candidate."""
        counts = {name: int(getattr(self, name)[position]) for name in _COUNTS}
        flags = {name: bool(getattr(self, name)[position]) for name in _FLAGS}
        words = {_NAMES[name]: known[getattr(self, name)[position]] for name, known in _CODES.items()}
        in_flight = int(self.asked_in_flight[position]) or None
        return Decomposition.model_validate({**counts, **flags, **words, "in_flight": in_flight})

    def also(self, where: NDArray[Any], **columns: int | bool) -> Candidates:
        """All of these, and once more those at ``where`` with other values in some columns."""
        return Candidates.joined([self, self.take(where).having(**columns)])

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """One list of several."""
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
        )

    @classmethod
    def of(cls, *decompositions: Decomposition) -> Candidates:
        """Decompositions as a list."""
        ds = decompositions
        counts = {name: np.array([getattr(d, name) for d in ds], dtype=np.int64) for name in _COUNTS}
        flags = {name: np.array([getattr(d, name) for d in ds], dtype=np.bool_) for name in _FLAGS}
        codes = {
            name: np.array([known.index(getattr(d, _NAMES[name])) for d in ds], dtype=np.int64)
            for name, known in _CODES.items()
        }
        in_flight = np.array([d.in_flight or 0 for d in ds], dtype=np.int64)
        columns: dict[str, Any] = {**counts, **flags, **codes, "asked_in_flight": in_flight}
        return cls(**columns)

    @classmethod
    def grids(cls, **degrees: Ints) -> Candidates:
        """Those that differ in ``degrees`` and are otherwise as a decomposition is by default."""
        count = len(next(iter(degrees.values())))
        return cls.of(_PLAIN).take(np.zeros(count, dtype=np.int64)).having(**degrees)
