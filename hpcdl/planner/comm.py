"""What communication costs: AxoNN's ring volumes, nested-group bandwidths, and a start-up a round.

Volumes are equations 1 to 6 of the SC'24 AxoNN paper (arXiv 2502.08145): for a linear layer O = I·W with
W cut over x·y and sharded over z, the weight is gathered over z (forward and backward), its gradient
reduce-scattered over z, the output all-reduced over y, the input's gradient over x; layers stored
transposed swap x and y. The start-up is that of recursive halving and doubling, ceil(log2 n) rounds for a
gather and twice that for an all-reduce (Thakur, Rabenseifner and Gropp 2005), whose volume is the ring's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpcdl.planner import state
from hpcdl.planner.case import Case
from hpcdl.planner.space import Candidates, Floats, Ints
from hpcdl.units import MIB


@dataclass(frozen=True)
class Traffic:
    """Seconds a microbatch along one axis, in each direction."""

    forward: Floats
    backward: Floats

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class Fabric:
    """The time of one collective, for every candidate at once."""

    case: Case
    candidates: Candidates
    _bandwidths: dict[str, Floats] = field(default_factory=dict, compare=False)

    def bandwidth(self, axis: str) -> Floats:
        """Bytes/s of one member of the groups along ``axis``; AxoNN's equation 7.

        Inside a node what the links give; across nodes the whole node's injection, shared by as many rings as
        run through the node at once: min(ranks a node, product of the inner degrees).
        """
        if axis not in self._bandwidths:
            self._bandwidths[axis] = self._bandwidth(axis)
        return self._bandwidths[axis]

    def _bandwidth(self, axis: str) -> Floats:
        inner, size = self.candidates.inner(axis), self.size(axis)
        ranks = self.case.layout.ranks_per_node
        inside = (ranks % (inner * size) == 0) | (self.case.layout.nodes == 1)
        across = self.case.injection / np.minimum(ranks, inner)
        links = self._links(np.where(inside, inner, 1), np.where(inside, size, ranks))
        return np.where(inside, links, np.minimum(across, links))

    def size(self, axis: str) -> Ints:
        """Degree along ``axis``."""
        degree: Ints = getattr(self.candidates, axis)
        return degree

    def all_reduce(self, count_bytes: Floats, axis: str) -> Floats:
        """Every member has ``count_bytes`` and gets their sum."""
        return 2 * self.gather(count_bytes, axis)

    def gather(self, count_bytes: Floats, axis: str) -> Floats:
        """All-gather, or reduce-scatter, of ``count_bytes`` in all."""
        size = self.size(axis)
        volume = (size - 1) / size * count_bytes / self.bandwidth(axis)
        return self.rounds(size) + volume

    def send(self, count_bytes: Floats, axis: str) -> Floats:
        """One message to the neighbour along ``axis``; free where there is none."""
        message = self.case.profile.collective_latency_s + count_bytes / self.bandwidth(axis)
        return np.where(self.size(axis) > 1, message, 0.0)

    def world(self) -> float:
        """The all-reduce of loss and gradient norm over every rank: start-up only."""
        rounds = 2 * np.ceil(np.log2(self.case.layout.ranks))
        return float(rounds * self.case.profile.collective_latency_s)

    def rounds(self, size: Ints) -> Floats:
        """Start-up of one gather."""
        rounds: Floats = np.ceil(np.log2(size)) * self.case.profile.collective_latency_s
        return rounds

    def _links(self, inner: Ints, size: Ints) -> Floats:
        most = int(size.max(initial=0)) + 1
        keys, positions = np.unique(inner * most + size, return_inverse=True)
        rates = [self.case.intra(*divmod(int(key), most)) for key in keys]
        return np.array(rates)[positions]


def layer(fabric: Fabric) -> dict[str, Traffic]:
    """One transformer layer, a microbatch, by tensor axis."""
    total = {axis: _nothing(fabric) for axis in ("x", "y", "z")}
    for position, matrix in enumerate(fabric.case.model.layer_matrices):
        for axis, traffic in _linear(
            fabric, matrix.rows, matrix.columns, transposed=position % 2 == 1
        ).items():
            total[axis] += traffic
    # Two norms, each with the moments of every token summed over y, forward and backward.
    moments = 2 * fabric.all_reduce(_tokens(fabric) * 8.0, "y")
    total["y"] += Traffic(moments, moments)
    return total


def head(fabric: Fabric) -> dict[str, Traffic]:
    """LM head and loss, a microbatch, by tensor axis."""
    model = fabric.case.model
    total = _linear(fabric, model.vocab, model.hidden, transposed=False)
    # Cross-entropy over a vocabulary cut over x: the largest logit, the sum, the target's logit.
    total["x"] += Traffic(3 * fabric.all_reduce(_tokens(fabric) * 4.0, "x"), _zeros(fabric))
    return total


def embedding(fabric: Fabric) -> dict[str, Traffic]:
    """Token embedding, a microbatch, by tensor axis: rows over x are looked up and summed."""
    case, c = fabric.case, fabric.candidates
    output = _tokens(fabric) * case.model.hidden / c.y * case.element_bytes
    weight = case.model.vocab * case.model.hidden / (c.x * c.y) * case.element_bytes
    gathered = fabric.gather(weight, "z")
    return {
        "x": Traffic(fabric.all_reduce(output, "x"), _zeros(fabric)),
        "y": _nothing(fabric),
        "z": Traffic(gathered, gathered),
    }


def hop(fabric: Fabric) -> Floats:
    """Handing one microbatch to the next pipeline stage, or its gradient back."""
    case, c = fabric.case, fabric.candidates
    return fabric.send(_tokens(fabric) * case.model.hidden / c.y * case.element_bytes, "pipeline")


def gradient_reduction(fabric: Fabric, elements: Floats) -> tuple[Floats, Floats]:
    """All of the data-parallel reduction of a rank's gradients, so many ``elements``, and its last chunk.

    The last chunk can hide behind nothing: the backward pass is over when it is full.
    """
    chunks = np.ceil(4 * elements / (fabric.case.training.chunk_mib * MIB))
    count_bytes = elements * _gradient_bytes(fabric)
    rounds = (chunks - 1) * fabric.rounds(fabric.size("data"))
    one_way = fabric.gather(count_bytes, "data") + rounds
    whole = np.where(fabric.candidates.zero > 0, one_way, 2 * one_way)
    return whole, whole / chunks


def tied_embedding(fabric: Fabric) -> Floats:
    """Summing the gradients of a tied weight that the first and the last stage both hold."""
    model, c = fabric.case.model, fabric.candidates
    if not model.tied:
        return _zeros(fabric)
    count_bytes = model.vocab * model.hidden / c.tensor * _gradient_bytes(fabric)
    return 2 * fabric.send(count_bytes / 2, "pipeline")


def _gradient_bytes(fabric: Fabric) -> Ints:
    return state.gradient_bytes(fabric.case, fabric.candidates, state.sparsity(fabric.case))


def _linear(fabric: Fabric, rows: int, columns: int, *, transposed: bool) -> dict[str, Traffic]:
    """One linear layer; ``rows`` are outputs, ``columns`` the contraction."""
    case, c = fabric.case, fabric.candidates
    output_axis, inner_axis = ("y", "x") if transposed else ("x", "y")
    tokens = _tokens(fabric) * case.element_bytes
    output = fabric.all_reduce(tokens * rows / fabric.size(output_axis), inner_axis)
    gradient = fabric.all_reduce(tokens * columns / fabric.size(inner_axis), output_axis)
    gathered = fabric.gather(rows * columns / (c.x * c.y) * case.element_bytes, "z")
    return {
        inner_axis: Traffic(output, _zeros(fabric)),
        output_axis: Traffic(_zeros(fabric), gradient),
        "z": Traffic(gathered, 2 * gathered),
    }


def _tokens(fabric: Fabric) -> Floats:
    return fabric.case.tokens(fabric.candidates)


def _zeros(fabric: Fabric) -> Floats:
    return np.zeros(len(fabric.candidates))


def _nothing(fabric: Fabric) -> Traffic:
    return Traffic(_zeros(fabric), _zeros(fabric))
