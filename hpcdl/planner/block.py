"""Seconds a microbatch of one layer, or of what stands before or after the layers, part by part.

Collectives either block or run beside computing, as AxoNN's three overlaps have it (SC'24, section V-D): the
all-reduce of an input's gradient beside the product of the weight's; the weight of the next linear layer
gathered over z beside this one's product; gradients scattered beside all that follows in the same layer.
Weights that data shards are gathered a layer ahead, and their gradients scattered beside the layer before. A
ring of attention runs beside attention. What a collective cannot hide stands under its own name, what it
takes from computing under ``overlapped compute``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hpcdl.planner import comm, compute, offload
from hpcdl.planner.case import Case
from hpcdl.planner.comm import Linear, Shards
from hpcdl.planner.compute import Work
from hpcdl.planner.fabric import REPLICAS, Fabric
from hpcdl.planner.overlap import beside
from hpcdl.planner.space import Bools, Candidates, Floats

AXES = {
    "tensor x": "x", "tensor y": "y", "weights z": "z", "weights data": REPLICAS, "context": "context",
    "experts": "expert",
}  # fmt: skip
COLLECTIVES = tuple(AXES)
"""Parts that are communication: what of it nothing hides."""

PARTS = (
    "forward", "backward", "recompute", "host launches", "embedding", "head and loss", *COLLECTIVES,
    "overlapped compute", "host copies", "gradient compression",
)  # fmt: skip

# What a layer computes, in order: the product of qkv, attention's core, the three other products. While one
# linear layer's weight is used the next one's is under way: (which one, beside what).
_PLACES = 5
_CORE = 1
_OF_LINEAR = (0, 2, 3, 4)
_AHEAD = ((1, (0, 1)), (2, (2,)), (3, (3,)), (0, (4,)))
_AHEAD_BACKWARD = ((2, (4,)), (1, (3,)), (0, (2, 1)), (3, (0,)))
_EVERYWHERE = tuple(range(_PLACES))


@dataclass(frozen=True)
class Block:
    """Seconds a microbatch, by PARTS."""

    parts: dict[str, Floats]
    forward: Floats  # what of ``seconds`` is the forward's
    weight: Floats  # what of the backward is for gradients of weights
    free: Floats  # computing of the backward beside which nothing runs
    ahead: Floats  # the same of the forward

    @property
    def backward(self) -> Floats:
        """The rest, recomputation included."""
        return self.seconds - self.forward

    @property
    def seconds(self) -> Floats:
        """All parts together."""
        return sum(self.parts.values(), 0 * self.forward)  # one by one: the same for one as for many

    def copying(self, copies: offload.Copies) -> Block:
        """The same with copies to and from the host beside it: what of them takes longer counts."""
        forward = np.maximum(0, copies.forward - self.forward)
        backward = np.maximum(0, copies.backward - self.backward)
        parts = {**self.parts, "host copies": forward + backward}
        return replace(self, parts=parts, forward=self.forward + forward)


@dataclass
class _Pass:
    """One direction through a layer, while its collectives are put in.

    ``near`` and ``far`` are computing by place, beside which nothing runs yet over the links of a node, and
    over the network: what keeps one of them busy leaves room for the other.
    """

    fabric: Fabric
    near: list[Floats]
    far: list[Floats] = field(init=False)
    price: Floats = field(init=False)
    exposed: dict[str, Floats] = field(init=False)

    def __post_init__(self) -> None:
        self.far = list(self.near)
        self.price = 0 * self.near[0]
        self.exposed = dict.fromkeys(COLLECTIVES, self.price)

    def wait(self, part: str, seconds: Floats) -> None:
        """A collective that everything waits for."""
        self.exposed[part] = self.exposed[part] + seconds

    def hide(self, part: str, seconds: Floats, places: Sequence[int], *, wanted: Bools | bool) -> None:
        """A collective beside what is left at ``places``."""
        self.hide_beside(part, seconds, self.free(AXES[part], places), places, wanted=wanted)

    def hide_beside(
        self, part: str, seconds: Floats, room: Floats, places: Sequence[int], *, wanted: Bools | bool
    ) -> None:
        """A collective beside ``room``, which lies at ``places``."""
        found = beside(self.fabric.case.profile, seconds, room, wanted=wanted)
        self.wait(part, found.exposed)
        if found.left is room:  # nothing ran beside it
            return
        self.price = self.price + found.price
        there, inside = self.free(AXES[part], places), self.fabric.inside(AXES[part])
        used = np.divide(room - found.left, there, out=np.zeros_like(there), where=there > 0)
        for place in places:
            self.near[place] = self.near[place] * (1 - inside * used)
            self.far[place] = self.far[place] * (1 - ~inside * used)

    def free(self, axis: str, places: Sequence[int] | None = None) -> Floats:
        """Computing at ``places``, or everywhere, beside which a collective along ``axis`` can run."""
        inside = self.fabric.inside(axis)
        chosen = range(len(self.near)) if places is None else places
        near, far = (sum((left[place] for place in chosen), 0 * self.price) for left in (self.near, self.far))
        return np.where(inside, near, far)

    @property
    def seconds(self) -> Floats:
        """All that the collectives add."""
        return sum(self.exposed.values(), self.price)


def of_layer(case: Case, c: Candidates, fabric: Fabric) -> Block:
    """One transformer layer; full recomputation repeats its forward, collectives included."""
    work, linears = compute.layer(case, c), comm.linears(fabric)
    sharded = comm.shards(fabric, comm.layer_elements(fabric))
    there, back = _forward(case, c, fabric, work, linears), _backward(case, c, fabric, work, linears)
    again, again_price = work.forward + there.seconds, there.price
    repeating = c.full_recompute * there.free(REPLICAS)
    there.hide("weights data", sharded.forward, _EVERYWHERE, wanted=case.beside.weight_gather)
    there.wait("weights data", sharded.copied)
    _shards_back(back, sharded, repeating)
    exposed = {name: there.exposed[name] + back.exposed[name] for name in COLLECTIVES}
    recomputed = c.full_recompute * (again - again_price) + c.selective_recompute * compute.again(case, c)
    price = there.price + back.price + c.full_recompute * again_price
    forward = work.forward + there.seconds
    waits = compute.host(case, c, forward, work.backward + back.seconds + recomputed)
    parts: dict[str, Floats] = {
        **dict.fromkeys(PARTS, 0 * work.forward),
        **exposed,
        "forward": work.forward,
        "backward": work.backward,
        "recompute": recomputed,
        "host launches": waits[0] + waits[1],
        "overlapped compute": price,
        "gradient compression": offload.compression(case, c),
    }
    block = Block(parts, forward + waits[0], work.weight, back.free(REPLICAS), there.free(REPLICAS))
    return block.copying(offload.layer(case, c))


def of_head(case: Case, c: Candidates, fabric: Fabric) -> Block:
    """LM head and loss."""
    work, product = compute.head(case, c), comm.head(fabric)
    sharded = comm.shards(fabric, comm.vocabulary_elements(fabric))
    there, back = _Pass(fabric, [work.forward]), _Pass(fabric, [work.backward])
    _output(there, product, work.weight, 0)
    there.wait("tensor x", comm.loss(fabric))
    there.hide("weights z", product.gather, (0,), wanted=case.beside.weight_gather)
    there.hide("weights data", sharded.forward, (0,), wanted=case.beside.weight_gather)
    _input_gradient(back, c, product, work.weight, 0)
    back.hide("weights z", product.gather, (0,), wanted=case.beside.weight_gather)
    back.hide("weights z", product.gather, (0,), wanted=case.beside.weight_scatter)
    back.hide("weights data", sharded.backward, (0,), wanted=case.beside.weight_gather)
    back.hide("weights data", sharded.scatter, (0,), wanted=case.beside.gradient_reduction)
    there.wait("weights data", sharded.copied)
    back.wait("weights data", 2 * sharded.copied)
    parts: dict[str, Floats] = {
        **dict.fromkeys(PARTS, 0 * work.forward),
        **{name: there.exposed[name] + back.exposed[name] for name in COLLECTIVES},
        "head and loss": work.forward + work.backward,
        "overlapped compute": there.price + back.price,
    }
    block = Block(parts, work.forward + there.seconds, work.weight, back.free(REPLICAS), there.free(REPLICAS))
    return block.copying(offload.vocabulary(case, c))


def of_embedding(case: Case, c: Candidates, fabric: Fabric) -> Block:
    """Token embedding: the first to be gathered and the last to be scattered, so nothing hides it."""
    traffic, nothing = comm.embedding(fabric), case.tokens(c) * 0
    work = compute.embedding(case, c)
    sharded = comm.shards(fabric, comm.vocabulary_elements(fabric))
    parts: dict[str, Floats] = {
        **dict.fromkeys(PARTS, nothing),
        "embedding": work.forward + work.backward,
        "tensor x": traffic["x"].total,
        "weights z": traffic["z"].total,
        "weights data": sharded.forward + sharded.backward + sharded.scatter + 3 * sharded.copied,
    }
    forward = work.forward + traffic["x"].forward + traffic["z"].forward + sharded.forward + sharded.copied
    return Block(parts, forward, nothing, nothing, nothing).copying(offload.vocabulary(case, c))


def _forward(case: Case, c: Candidates, fabric: Fabric, work: Work, linears: list[Linear]) -> _Pass:
    core = compute.core(case, c)
    products = _products(case, work)
    there = _Pass(fabric, _at_places(products, core, work.forward))
    passed_on = not case.engine.exchange.gathers_context
    there.hide("context", comm.context(fabric).forward, (_CORE,), wanted=passed_on)
    there.wait("experts", comm.experts(fabric).forward)
    there.wait("tensor y", comm.moments(fabric))
    for linear, product, place in zip(linears, products, _OF_LINEAR, strict=True):
        _output(there, linear, product, place)
    for which, places in _AHEAD:
        there.hide("weights z", linears[which].gather, places, wanted=case.beside.weight_gather)
    return there


def _backward(case: Case, c: Candidates, fabric: Fabric, work: Work, linears: list[Linear]) -> _Pass:
    products = _products(case, work)
    twice = [2 * product for product in products]
    back = _Pass(fabric, _at_places(twice, 2 * compute.core(case, c), work.backward))
    passed_on = not case.engine.exchange.gathers_context
    back.hide("context", comm.context(fabric).backward, (_CORE,), wanted=passed_on)
    back.wait("experts", comm.experts(fabric).backward)
    back.wait("tensor y", comm.moments(fabric))
    for linear, product, place in zip(linears, products, _OF_LINEAR, strict=True):
        _input_gradient(back, c, linear, product, place)
    gathers = 1 - c.full_recompute * (not case.engine.exchange.regathers)
    for which, places in _AHEAD_BACKWARD:
        back.hide("weights z", gathers * linears[which].gather, places, wanted=case.beside.weight_gather)
    scattered = sum((linear.gather for linear in linears), 0 * work.forward)
    back.hide("weights z", scattered, _EVERYWHERE, wanted=case.beside.weight_scatter)
    return back


def _output(there: _Pass, linear: Linear, product: Floats, place: int) -> None:
    """The sum of an output, or the gather of an input, which the rest waits for unless it goes in pieces."""
    wanted = there.fabric.case.engine.exchange.in_pieces
    there.hide_beside(f"tensor {linear.inner_axis}", linear.forward, product, (place,), wanted=wanted)
    there.hide_beside("tensor x", linear.stream, product, (place,), wanted=wanted)


def _input_gradient(back: _Pass, c: Candidates, linear: Linear, product: Floats, place: int) -> None:
    """The sum of an input's gradient beside the weight's product.

    Under sequence parallelism the input is gathered again beside the product of its own gradient.
    """
    wanted = back.fabric.case.beside.input_gradient & ~c.defer_weights
    back.hide_beside(f"tensor {linear.output_axis}", linear.backward, product, (place,), wanted=wanted)
    room = product * (1 + (linear.again > 0))
    back.hide_beside("tensor x", linear.stream + linear.again, room, (place,), wanted=wanted)


def _shards_back(back: _Pass, sharded: Shards, repeating: Floats) -> None:
    """What data shards, beside a layer's backward and the forward that is repeated for it."""
    overlap = back.fabric.case.beside
    back.near.append(repeating)
    back.far.append(repeating)
    places = (*_EVERYWHERE, _PLACES)
    back.hide("weights data", sharded.backward, places, wanted=overlap.weight_gather)
    back.hide("weights data", sharded.scatter, places, wanted=overlap.gradient_reduction)
    back.wait("weights data", 2 * sharded.copied)


def _products(case: Case, work: Work) -> list[Floats]:
    """Seconds of each linear layer's product, by its FLOPs."""
    sizes = [matrix.rows * matrix.columns for matrix in case.model.layer_matrices]
    return [work.weight * size / sum(sizes) for size in sizes]


def _at_places(products: list[Floats], core: Floats, whole: Floats) -> list[Floats]:
    """A direction's computing by place; what is neither product nor core lies evenly."""
    rest = np.maximum(0, whole - sum(products) - core) / _PLACES
    qkv, *others = products
    return [each + rest for each in (qkv, core, *others)]
