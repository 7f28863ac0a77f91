"""The estimate of a step: a tree of named terms, each with its formula, for many candidates at once.

Ranking, explanation and tests all read this tree. A leaf holds seconds (or bytes) of every candidate; a
branch is the sum of its children, so nothing is counted that is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hpcdl.planner import block, comm, compute, memory, offload, state
from hpcdl.planner.block import Block
from hpcdl.planner.case import Case
from hpcdl.planner.fabric import Fabric
from hpcdl.planner.overlap import beside
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
    "tensor x": "m · all-reduces over x that no product hides: start + hops + 2·(x-1)/x·bytes/bandwidth",
    "tensor y": "m · all-reduces over y that no product hides: start + hops + 2·(y-1)/y·bytes/bandwidth",
    "weights z": "m · what products leave of 2 gathers and 1 scatter over z, (z-1)/z·P/(x·y)·bytes/bandwidth",
    "weights data": "m · what a layer leaves of 2 gathers (ZeRO-3) and 1 scatter (ZeRO-2) over data",
    "context": "m · layers · keys and values to context-1 neighbours, thrice with backward, less attention",
    "experts": "m · layers · 4 all-to-alls of tokens·h·active experts",
    "overlapped compute": "m · what computing loses beside collectives: overlap price · their time there",
    "host copies": "m · layers · what copies over the host link take longer than the layer beside them",
    "gradient compression": "pruning: m · bytes of a gradient, its index and what is kept / memory rate",
    "pipeline bubble": "sum of all stages' times for a microbatch, less the busiest stage's",
    "pipeline messages": "2·(p-1)·(start + hop + tokens·h/y·bytes/bandwidth), or more if the trip paces",
    "shared cores": "waiting for a core: the work of all ranks / cores, less the time already counted",
    "gradient reduction": "over data: what the last backward leaves, its last chunk at least, and price",
    "parameter gather": "ZeRO-1 and 2: parameters of a rank gathered over data after the update",
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
        *_after_backward(case, fabric, stage.free),
    )


class Undisturbed(NamedTuple):
    """What a pipeline is simulated from: seconds of a microbatch on each virtual stage, and of the rest."""

    flow: Flow
    forward: list[float]
    backward: list[float]  # all of it, recomputation included
    weight: list[float]  # what of it is for gradients of weights
    hop: float
    after: float  # what of a step follows the last backward


def undisturbed(case: Case, c: Candidates) -> Undisturbed:
    """That of the first of ``c``."""
    fabric = Fabric(case, c)
    flow, blocks = c.flow(0, case.training.global_batch), _Blocks.of(case, fabric).at(0)
    forward, backward, weight = (
        _by_stage(case, flow, blocks, part) for part in ("forward", "backward", "weight")
    )
    after = _after_backward(case, fabric, _busiest_stage(case, fabric).free)
    rest = sum(float(term.value[0]) for term in after)
    return Undisturbed(flow, forward, backward, weight, float(comm.hop(fabric)[0]), rest)


def _waiting(case: Case, stage: _Stage) -> Floats:
    """What ranks that share cores take beyond ranks that have their own."""
    if case.crowding == 1:
        return 0 * stage.seconds
    return np.maximum(0, stage.pipeline.crowded_seconds(case.crowding) - stage.seconds)


@dataclass(frozen=True)
class _Stage:
    """The stage that paces the pipeline: its terms of a whole step, and what one backward can hide."""

    terms: tuple[Term, ...]
    free: Floats  # computing of a backward beside which nothing runs
    pipeline: Pipeline
    seconds: Floats  # of the whole pipeline
    free_seconds: Floats  # the same if messages took no time


def _busiest_stage(case: Case, fabric: Fabric) -> _Stage:
    """The last stage with head and loss, or the first with the embedding, whichever takes longer."""
    c = fabric.candidates
    m = c.microbatches(case.training.global_batch)
    first_layers, last_layers = state.layers_of_stages(case, c)
    blocks = _Blocks.of(case, fabric)
    begin, layer, end = blocks
    first = first_layers * layer.seconds + begin.seconds + (c.pipeline == 1) * end.seconds
    last = last_layers * layer.seconds + end.seconds + (c.pipeline == 1) * begin.seconds
    at_last = (last >= first) | (c.pipeline == 1)
    at_first = (first > last) | (c.pipeline == 1)
    layers = np.where(at_last, last_layers, first_layers)
    terms = tuple(
        Term(
            name, m * (layers * layer.parts[name] + at_first * begin.parts[name] + at_last * end.parts[name])
        )
        for name in block.PARTS
    )
    total = case.model.layers * layer.seconds + begin.seconds + end.seconds
    hop = comm.hop(fabric)
    in_flight = c.in_flight(case.training.global_batch)
    pipeline = Pipeline(c.pipeline, m, in_flight, np.maximum(first, last), total, hop)
    seconds, free = pipeline.seconds, replace(pipeline, hop=0 * hop).seconds
    # More stages than layers are refused, but still shown with an estimate.
    clocked = ~c.plain_pipeline & (c.pipeline * c.interleave <= case.model.layers)
    if clocked.any():
        places = np.flatnonzero(clocked)
        seconds[places], free[places] = (
            _on_the_clock(case, c, blocks, each, places) for each in (hop, 0 * hop)
        )
    return _Stage(terms, layers * layer.free, pipeline, seconds, free)


class _Blocks(NamedTuple):
    """What a pipeline is made of."""

    begin: Block
    layer: Block
    end: Block

    @classmethod
    def of(cls, case: Case, fabric: Fabric) -> _Blocks:
        """Those of all candidates."""
        c = fabric.candidates
        return cls(*(make(case, c, fabric) for make in (block.of_embedding, block.of_layer, block.of_head)))

    def at(self, position: int) -> _Blocks:
        """Those of one candidate."""
        return _Blocks(*(one.at(position) for one in self))


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
    begin, layer, end = (float(getattr(one, part)) for one in blocks)
    stages = flow.ranks * flow.chunks
    seconds = [layer * len(stage_layers(case.model, stages, stage)) for stage in range(stages)]
    seconds[0] += begin
    seconds[-1] += end
    return seconds


def _after_backward(case: Case, fabric: Fabric, free: Floats) -> list[Term]:
    """What follows the pipeline: gradient reduction that the last backward cannot hide, and the update."""
    c = fabric.candidates
    elements = offload.largest_shard(case, c)
    reduction = _reduction(case, fabric, elements, free)
    own = elements / c.owners
    updated = case.crowding * compute.optimizer(case, own) - _early(case, fabric, elements, reduction)
    pruned = np.maximum(*(state.shard(case, c, is_last=end).pruned for end in (False, True)))
    same: Ints = np.ones(len(c), dtype=np.int64)
    return [
        Term("gradient reduction", reduction),
        Term("parameter gather", comm.parameter_gather(fabric, elements)),
        Term("tied embedding", comm.tied_embedding(fabric)),
        Term("world all-reduce", same * fabric.world()),
        Term("optimizer", (c.offloaded == 0) * updated),
        Term("offloaded update", (c.offloaded > 0) * offload.update(case, c, own)),
        Term("expansion", offload.expansion(case, pruned)),
        Term("step overhead", same * case.profile.step_overhead_s),
    ]


def _reduction(case: Case, fabric: Fabric, elements: Floats, free: Floats) -> Floats:
    """Summing gradients over data: what the last backward cannot hide, and what hiding the rest costs it."""
    whole, last_chunk = comm.gradient_reduction(fabric, elements)
    found = beside(case.profile, whole - last_chunk, free, wanted=case.beside.gradient_reduction)
    return last_chunk + found.exposed + found.price


def _early(case: Case, fabric: Fabric, elements: Floats, exposed: Floats) -> Floats:
    """What of an update runs while later chunks are still being summed; with clipping all must be known."""
    training = case.training
    if training.optimizer.clip or training.precision == "fp16" or not case.beside.optimizer:
        return 0 * exposed
    whole, last_chunk = comm.gradient_reduction(fabric, elements)
    updated = case.crowding * compute.optimizer(case, elements / fabric.candidates.owners)
    shared = np.divide(last_chunk, whole, out=np.ones_like(whole), where=whole > 0)
    early: Floats = np.minimum(updated * (1 - shared), np.maximum(0, exposed - last_chunk))
    return early
