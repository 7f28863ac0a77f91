"""The estimate of a step: a tree of named terms, each with its formula, for many candidates at once.

Ranking, explanation and tests all read this tree. A leaf holds seconds (or bytes) of every candidate; a
branch is the sum of its children, so nothing is counted that is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hpcdl.planner import comm, compute, memory, offload, state
from hpcdl.planner.case import Case
from hpcdl.planner.comm import Fabric, Traffic
from hpcdl.planner.compute import Work
from hpcdl.planner.pipeline import Pipeline, simulate
from hpcdl.planner.space import Candidates, Floats, Ints
from hpcdl.spec.partition import stage_layers
from hpcdl.stage import Flow

FORMULAS = {
    "forward": "m · layers · (2·tokens·P/(x·y) / (peak·efficiency) + attention + streams)",
    "backward": "two products for each of forward's, attention 2.5 times, streams twice",
    "recompute": "full: forward once more, with its communication; selective: attention and activation",
    "host launches": "m · layers · (host floor - device time), where positive; backward 1.3 times",
    "head and loss": "m · (2·tokens·V·h/(x·y) · 3 / (peak·efficiency) + fp32 logits), last stage",
    "tensor x": "m · all-reduces over x: 2·log2(x)·latency + 2·(x-1)/x·bytes/bandwidth",
    "tensor y": "m · all-reduces over y: 2·log2(y)·latency + 2·(y-1)/y·bytes/bandwidth",
    "weights z": "m · (2 gathers and 1 scatter) over z, each (z-1)/z·P/(x·y)·bytes/bandwidth",
    "host copies": "m · layers · what copies over the host link take longer than the layer beside them",
    "gradient compression": "pruning: m · bytes of a gradient, its index and what is kept / memory rate",
    "pipeline bubble": "sum of all stages' times for a microbatch, less the busiest stage's",
    "pipeline messages": "2·(p-1)·(latency + tokens·h/y·bytes/bandwidth), more where the round trip paces",
    "shared cores": "waiting for a core: the work of all ranks / cores, less the time already counted",
    "gradient reduction": "all-reduce (ZeRO-1: reduce-scatter) over data less overlap · last backward",
    "parameter gather": "ZeRO-1: parameters of a rank gathered over data after the update",
    "tied embedding": "all-reduce of V·h/(x·y·z) gradients between the first and the last stage",
    "world all-reduce": "loss and gradient norm: 2·log2(ranks)·latency",
    "optimizer": "parameters of a rank · bytes an update / memory rate",
    "offloaded update": "12 bytes a parameter / host link + half of optimizer; or 40 bytes / host rate",
    "expansion": "pruning: bytes of the weights, the index and what is kept / memory rate",
    "step overhead": "once a step, from the profile",
    "weights": "parameters of a rank · (fp32 4, bf16 2) bytes; kept elements of pruned ones once more",
    "gradients": "kept parameters of a rank · 4 bytes; pruned or offloaded those of the model's type",
    "optimizer state": "kept parameters of a rank · (fp32 8, bf16 12) bytes, with ZeRO-1 / data",
    "sparse index": "kept elements of pruned matrices · 4 bytes",
    "update staging": "one training.bucket_mib · (offload: optimizer 16, pruning in bf16 4) bytes an element",
    "activations": "microbatches in flight · layers · what autograd keeps; the last stage one microbatch",
    "logits": "tokens · V/x · (8, bf16 10) bytes, last stage",
    "working weights": "one layer gathered over z, and one matrix's whole gradient",
    "reduction buckets": "two chunks of training.bucket_mib · buckets_per_chunk",
    "allocator slack": "what the allocator reserves beyond tensors: slack · allocated",
    "framework": "device context and libraries, from the profile",
    "host memory": "12 bytes a kept parameter; offload: parameters matrices and gradients too; activations",
}
"""What stands behind each term. m microbatches, p stages, P parameters of a layer, V vocab, h hidden."""


@dataclass(frozen=True)
class Term:
    """One named part of an estimate: seconds or bytes of every candidate."""

    name: str
    value: Floats
    children: tuple[Term, ...] = ()

    def leaves(self) -> Iterator[Term]:
        """The terms that are not sums, in order."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    @classmethod
    def total(cls, name: str, *children: Term) -> Term:
        """A branch: the sum of ``children``."""
        return cls(name, np.sum([child.value for child in children], axis=0), children)


def memory_tree(terms: dict[str, Floats]) -> Term:
    """Bytes as three nested sums: allocated tensors, reserved by the allocator, in use on the device."""
    leaves = [Term(name, terms[name]) for name in memory.TERMS]
    allocated = Term.total("allocated", *leaves[:-2])
    reserved = Term.total("reserved", allocated, leaves[-2])
    return Term.total("device", reserved, leaves[-1])


def step_tree(case: Case, c: Candidates) -> Term:
    """Seconds of one optimizer step."""
    fabric = Fabric(case, c)
    stage = _busiest_stage(case, fabric)
    within = Term.total("busiest stage", *stage.terms)
    return Term.total(
        "step",
        within,
        Term("pipeline bubble", stage.free_seconds - within.value),
        Term("pipeline messages", stage.seconds - stage.free_seconds),
        Term("shared cores", _waiting(case, stage)),
        *_after_backward(case, fabric, stage.backward),
    )


def _waiting(case: Case, stage: _Stage) -> Floats:
    """What ranks that share cores take beyond ranks that have their own."""
    if case.crowding == 1:
        return 0 * stage.seconds
    return np.maximum(0, stage.pipeline.crowded_seconds(case.crowding) - stage.seconds)


@dataclass(frozen=True)
class _Stage:
    """The stage that paces the pipeline: its terms of a whole step, and one backward of it."""

    terms: tuple[Term, ...]
    backward: Floats
    pipeline: Pipeline
    seconds: Floats  # of the whole pipeline
    free_seconds: Floats  # the same if messages took no time


def _busiest_stage(case: Case, fabric: Fabric) -> _Stage:
    """The last stage with head and loss, or the first with the embedding, whichever takes longer."""
    c = fabric.candidates
    m = c.microbatches(case.training.global_batch)
    first_layers, last_layers = state.layers_of_stages(case, c)
    layer = _Block.of_layer(case, c, fabric)
    begin = _Block.of_traffic(c, comm.embedding(fabric)).copying(offload.vocabulary(case, c))
    end = _Block.of_head(case, c, fabric)
    first = first_layers * layer.seconds + begin.seconds + (c.pipeline == 1) * end.seconds
    last = last_layers * layer.seconds + end.seconds + (c.pipeline == 1) * begin.seconds
    at_last = (last >= first) | (c.pipeline == 1)
    at_first = (first > last) | (c.pipeline == 1)
    layers = np.where(at_last, last_layers, first_layers)
    terms = tuple(
        Term(
            name, m * (layers * layer.parts[name] + at_first * begin.parts[name] + at_last * end.parts[name])
        )
        for name in _PARTS
    )
    total = case.model.layers * layer.seconds + begin.seconds + end.seconds
    hop = comm.hop(fabric)
    in_flight = c.in_flight(case.training.global_batch)
    pipeline = Pipeline(c.pipeline, m, in_flight, np.maximum(first, last), total, hop)
    seconds, free = pipeline.seconds, replace(pipeline, hop=0 * hop).seconds
    # More stages than layers are refused, but still shown with an estimate.
    clocked = ~c.plain_pipeline & (c.pipeline * c.interleave <= case.model.layers)
    if clocked.any():
        blocks = _Blocks(begin, layer, end)
        places = np.flatnonzero(clocked)
        seconds[places], free[places] = (
            _on_the_clock(case, c, blocks, each, places) for each in (hop, 0 * hop)
        )
    return _Stage(terms, layers * layer.parts["backward"], pipeline, seconds, free)


class _Blocks(NamedTuple):
    """What a pipeline is made of."""

    begin: _Block
    layer: _Block
    end: _Block

    def at(self, position: int) -> _Blocks:
        """Those of one candidate."""
        return _Blocks(*(block.at(position) for block in self))


def _on_the_clock(case: Case, c: Candidates, blocks: _Blocks, hop: Floats, places: Ints) -> Floats:
    """Seconds of some candidates' pipelines, by the engine's own machine: no closed form is exact here."""
    batch = case.training.global_batch
    return np.array([_simulated(case, c.flow(i, batch), blocks.at(i), float(hop[i])) for i in places])


def _simulated(case: Case, flow: Flow, blocks: _Blocks, hop: float) -> float:
    forward, backward, weight = (
        _by_stage(case, flow, blocks, part) for part in ("forward", "backward", "weight")
    )
    return simulate(flow, forward, backward, weight, hop)


def _by_stage(case: Case, flow: Flow, blocks: _Blocks, part: str) -> list[float]:
    """Seconds a microbatch of ``part`` on each virtual stage, for blocks of one candidate."""
    begin, layer, end = (float(getattr(block, part)) for block in blocks)
    stages = flow.ranks * flow.chunks
    seconds = [layer * len(stage_layers(case.model, stages, stage)) for stage in range(stages)]
    seconds[0] += begin
    seconds[-1] += end
    return seconds


_PARTS = (
    "forward", "backward", "recompute", "host launches", "head and loss", "tensor x", "tensor y", "weights z",
    "host copies", "gradient compression",
)  # fmt: skip


@dataclass(frozen=True)
class _Block:
    """Seconds a microbatch of one layer, or of what stands before or after the layers, by part."""

    parts: dict[str, Floats]
    forward: Floats  # what of ``seconds`` is the forward's
    weight: Floats  # what of the backward is for gradients of weights

    @property
    def backward(self) -> Floats:
        """The rest, recomputation included."""
        return self.seconds - self.forward

    def at(self, position: int) -> _Block:
        """That of one candidate."""
        parts = {name: seconds[position] for name, seconds in self.parts.items()}
        return _Block(parts, self.forward[position], self.weight[position])

    @property
    def seconds(self) -> Floats:
        """All parts together: collectives along tensor axes block, so nothing overlaps."""
        total: Floats = np.sum(list(self.parts.values()), axis=0)
        return total

    def copying(self, copies: offload.Copies) -> _Block:
        """The same with copies to and from the host beside it: what of them takes longer counts."""
        forward = np.maximum(0, copies.forward - self.forward)
        backward = np.maximum(0, copies.backward - self.backward)
        parts = {**self.parts, "host copies": forward + backward}
        return _Block(parts, self.forward + forward, self.weight)

    @classmethod
    def of_traffic(cls, c: Candidates, traffic: dict[str, Traffic]) -> _Block:
        """Communication only."""
        parts: dict[str, Floats] = {name: np.zeros(len(c)) for name in _PARTS}
        for name, axis in (("tensor x", "x"), ("tensor y", "y"), ("weights z", "z")):
            parts[name] = traffic[axis].forward + traffic[axis].backward
        forward = np.zeros(len(c)) + sum(axis.forward for axis in traffic.values())
        return cls(parts, forward, np.zeros(len(c)))

    @classmethod
    def of_layer(cls, case: Case, c: Candidates, fabric: Fabric) -> _Block:
        """One transformer layer; recomputation repeats its forward, collectives included."""
        work, traffic = compute.layer(case, c), comm.layer(fabric)
        host = compute.host(case, work)
        block = cls.of_traffic(c, traffic)
        again = work.forward + host.forward + sum(axis.forward for axis in traffic.values())
        core = compute.core(case, c) * c.selective_recompute
        repeated = c.full_recompute * again + core
        timed = {
            "forward": work.forward,
            "backward": work.backward,
            "recompute": repeated,
            "host launches": host.forward + host.backward,
            "gradient compression": offload.compression(case, c),
        }
        made = cls({**block.parts, **timed}, block.forward + work.forward + host.forward, work.weight)
        return made.copying(offload.layer(case, c))

    @classmethod
    def of_head(cls, case: Case, c: Candidates, fabric: Fabric) -> _Block:
        """LM head and loss."""
        work: Work = compute.head(case, c)
        block = cls.of_traffic(c, comm.head(fabric))
        parts = {**block.parts, "head and loss": work.forward + work.backward}
        made = cls(parts, block.forward + work.forward, work.weight)
        return made.copying(offload.vocabulary(case, c))


def _after_backward(case: Case, fabric: Fabric, backward: Floats) -> list[Term]:
    """What follows the pipeline: gradient reduction that the last backward cannot hide, and the update."""
    c = fabric.candidates
    elements = offload.largest_shard(case, c)
    reduction, last_chunk = comm.gradient_reduction(fabric, elements)
    exposed = np.maximum(last_chunk, reduction - case.profile.overlap * backward)
    own = elements / c.owners
    pruned = np.maximum(*(state.shard(case, c, is_last=end).pruned for end in (False, True)))
    same: Ints = np.ones(len(c), dtype=np.int64)
    return [
        Term("gradient reduction", exposed),
        Term("parameter gather", (c.zero > 0) * fabric.gather(elements * case.element_bytes, "data")),
        Term("tied embedding", comm.tied_embedding(fabric)),
        Term("world all-reduce", same * fabric.world()),
        Term("optimizer", (c.offloaded == 0) * case.crowding * compute.optimizer(case, own)),
        Term("offloaded update", (c.offloaded > 0) * offload.update(case, c, own)),
        Term("expansion", offload.expansion(case, pruned)),
        Term("step overhead", same * case.profile.step_overhead_s),
    ]
