"""The estimate of a step: a tree of named terms, each with its formula, for many candidates at once.

Ranking, explanation and tests all read this tree. A leaf holds seconds (or bytes) of every candidate; a
branch is the sum of its children, so nothing is counted that is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hpcdl.planner import block, comm, compute, memory, offload, state, steady
from hpcdl.planner.block import Block
from hpcdl.planner.bound import Bound, Costs, Split
from hpcdl.planner.case import Case
from hpcdl.planner.fabric import Fabric
from hpcdl.planner.moments import TENSORS
from hpcdl.planner.overlap import beside
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.planner.stages import layers_of_ranks
from hpcdl.stage import Flow

FORMULAS = {
    "forward": "m · layers · (products in waves of tiles + attention + streams / memory rate + launches)",
    "backward": "products for gradients of inputs and weights, attention's core, streams, twice the launches",
    "recompute": "full: forward once more, with its communication; selective: as the engine does it",
    "host launches": "m · layers · (host floor - device time), where positive; backward 1.3 times",
    "embedding": "m · (2 + 3 streams and twice the table's gradient) / memory rate, first stage",
    "head and loss": "m · (3 products in waves of tiles + 50 bytes a logit / memory rate), last stage",
    "tensor x": "m · all-reduces over x that no product hides: start + hops + 2·(x-1)/x·bytes/bandwidth",
    "tensor y": "m · all-reduces over y that no product hides: start + hops + 2·(y-1)/y·bytes/bandwidth",
    "weights z": "m · what products leave of 2 gathers and 1 scatter over z, (z-1)/z·P/(x·y)·bytes/bandwidth",
    "weights data": "m · what a layer leaves of 2 gathers (ZeRO-3), 1 scatter (ZeRO-2) over data, and copies",
    "context": "m · layers · keys and values to context-1 neighbours, thrice with backward, less attention",
    "experts": "m · layers · 4 all-to-alls of tokens·h·active experts",
    "overlapped compute": "m · what computing loses beside collectives: overlap price · their time there",
    "host copies": "m · layers · what copies over the host link take longer than the layer beside them",
    "gradient compression": "pruning: m · bytes of a gradient, its index and what is kept / memory rate",
    "pipeline bubble": "what the schedule, on a clock, takes beyond the busiest stage and messages",
    "pipeline messages": "(start + hop + tokens·h/y·bytes/bandwidth) · messages the busiest rank waits for",
    "shared cores": "waiting for a core: the work of all ranks / cores, less the time already counted",
    "gradient reduction": "over data: what the last backward leaves, its last chunk at least, and price",
    "parameter gather": "ZeRO-1 and 2: new parameters over data, less the next forward where engines do so",
    "tied embedding": "all-reduce of V·h/(x·y·z) gradients between the first and the last stage",
    "world all-reduce": "loss and gradient norm: start and hops only",
    "optimizer": "parameters of a rank · bytes an update of the engine / memory rate",
    "offloaded update": "12 bytes a parameter / host link + half of optimizer; or 40 bytes / host rate",
    "expansion": "pruning: bytes of the weights, the index and what is kept / memory rate",
    "step overhead": "once a step, from the profile",
    "weights": "parameters of a rank · (fp32 4, else 2) bytes; kept elements of pruned ones once more",
    "gradients": "kept parameters of a rank · 4 bytes; pruned or offloaded those of the model's type",
    "optimizer state": "kept parameters of a rank · (fp32 8, else 12) bytes, with ZeRO-1 / data",
    "main gradients": "fp32 copies of 16-bit gradients, of engines that make them for the update",
    "sparse index": "kept elements of pruned matrices · 4 bytes",
    "update staging": "one training.bucket_mib · (offload: optimizer 16, pruning in bf16 4) bytes an element",
    "activations": "microbatches in flight · layers · what autograd keeps, and layers that are made again",
    "layer backward": "gradients of one layer's activations, and what selective recomputation makes again",
    "logits": "at the loss: tokens · V/x · (fp32 8, bf16 10) bytes; 2 while the head's gradient is made",
    "working weights": "gathered over z, or by ZeRO-3; gradients that are not yet added up",
    "reduction buckets": "two chunks of training.bucket_mib · buckets_per_chunk",
    "allocator slack": "reserved beyond tensors: slack · allocated, as far as there is room",
    "framework": "device context and libraries, from the profile",
    "communicators": "groups with collectives · the profile's communicator_gib",
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
    tensors = len(TENSORS)
    allocated = Term.total("allocated", *leaves[:tensors])
    reserved = Term.total("reserved", allocated, leaves[tensors])
    return Term.total("device", reserved, *leaves[tensors + 1 :])


def step_tree(case: Case, c: Candidates, *, drive: Bools | bool = True) -> Term:
    """Seconds of one optimizer step.

    Args:
        case: what is trained, and where.
        c: what is estimated.
        drive: whose pipelines are driven on a clock; of others it is the least that they take.
    """
    stage = _Stage(case, Fabric(case, c))
    within = Term.total("busiest stage", *stage.terms)
    seconds = stage.on_the_clock(np.broadcast_to(drive, (len(c),)))
    messages = stage.bound.seconds - replace(stage.bound, hop=0 * stage.hop).seconds
    return Term.total(
        "step",
        within,
        Term("pipeline bubble", np.maximum(0, seconds - messages - within.value)),
        Term("pipeline messages", messages),
        Term("shared cores", stage.waiting(seconds)),
        *stage.after_backward,
    )


def step_seconds(case: Case, c: Candidates) -> Floats:
    """The same without its parts; all pipelines are driven."""
    stage = _Stage(case, Fabric(case, c))
    return stage.step(stage.on_the_clock(np.ones(len(c), dtype=np.bool_)))


def least_step(case: Case, c: Candidates) -> Floats:
    """Seconds that a step takes at least, in closed form."""
    stage = _Stage(case, Fabric(case, c))
    return stage.step(stage.bound.seconds)


def least_over_schedules(case: Case, c: Candidates) -> Floats:
    """Seconds that a step takes at least, whatever chunks and deferral that leave each end its layers."""
    stage = _Stage(case, Fabric(case, c))
    return stage.step(stage.bound.over_schedules)


class Undisturbed(NamedTuple):
    """What a pipeline is simulated from: seconds of a microbatch on each virtual stage, and of the rest."""

    flow: Flow
    forward: tuple[float, ...]
    backward: tuple[float, ...]  # all of it, recomputation included
    weight: tuple[float, ...]  # what of it is for gradients of weights
    hop: float
    after: float  # what of a step follows the last backward


def undisturbed(case: Case, c: Candidates) -> Undisturbed:
    """That of the first of ``c``."""
    stage = _Stage(case, Fabric(case, c))
    after = sum(float(term.value[0]) for term in stage.after_backward)
    flow = c.flow(0, case.training.global_batch)
    return Undisturbed(flow, *stage.bound.by_stage(0), float(stage.hop[0]), after)


@dataclass(frozen=True)
class _Stage:
    """The stage that paces the pipeline: the last with head and loss, or the first with the embedding."""

    case: Case
    fabric: Fabric

    @property
    def candidates(self) -> Candidates:
        """What is estimated."""
        return self.fabric.candidates

    @cached_property
    def blocks(self) -> tuple[Block, Block, Block]:
        """What comes before the layers, a layer, and what comes after them."""
        embedding, layer, head = (
            make(self.case, self.candidates, self.fabric)
            for make in (block.of_embedding, block.of_layer, block.of_head)
        )
        return embedding, layer, head

    @cached_property
    def microbatches(self) -> Ints:
        """Of one step."""
        return self.candidates.microbatches(self.case.training.global_batch)

    @cached_property
    def hop(self) -> Floats:
        """Seconds that a message is under way."""
        return comm.hop(self.fabric)

    @cached_property
    def ends(self) -> tuple[Ints, Ints]:
        """Layers of the first rank, or of one between that has more, and of the last."""
        first, inner, last = layers_of_ranks(self.case, self.candidates)
        return np.maximum(first, inner), last  # the embedding takes hardly any time

    @cached_property
    def at_last(self) -> Bools:
        """Whether it is the last stage."""
        begin, layer, end = self.blocks
        first, last = self.ends
        verdict: Bools = last * layer.seconds + end.seconds >= first * layer.seconds + begin.seconds
        verdict |= self.candidates.pipeline == 1
        return verdict

    @cached_property
    def layers(self) -> Ints:
        """Layers on it."""
        first, last = self.ends
        return np.where(self.at_last, last, first)

    @property
    def free(self) -> Floats:
        """Computing of one backward beside which nothing runs."""
        return self.layers * self.blocks[1].free

    @property
    def ahead(self) -> Floats:
        """The same of one forward."""
        return self.layers * self.blocks[1].ahead

    @property
    def terms(self) -> tuple[Term, ...]:
        """What it does in a step."""
        begin, layer, end = self.blocks
        begins = ~self.at_last | (self.candidates.pipeline == 1)
        return tuple(
            Term(
                name,
                self.microbatches
                * (
                    self.layers * layer.parts[name]
                    + begins * begin.parts[name]
                    + self.at_last * end.parts[name]
                ),
            )
            for name in block.PARTS
        )

    @cached_property
    def bound(self) -> Bound:
        """The least that the pipelines take."""
        forward, backward, weight = (
            Costs(*(getattr(one, part) for one in self.blocks)) for part in ("forward", "backward", "weight")
        )
        return Bound(
            split=Split.of(self.case.model, self.case.engine, self.candidates),
            microbatches=self.microbatches,
            in_flight=self.candidates.in_flight(self.case.training.global_batch),
            deferred=self.candidates.defer_weights.astype(np.int64),
            forward=forward,
            backward=backward,
            weight=weight,
            hop=self.hop,
        )

    @cached_property
    def after_backward(self) -> list[Term]:
        """What follows the pipeline."""
        return _after_backward(self.case, self.fabric, self)

    @property
    def in_tables(self) -> Bools:
        """Whose chunks follow Megatron's interleaved table, whatever arrives first."""
        c = self.candidates
        verdict: Bools = self.case.engine.tables & (c.interleave > 1) & ~c.defer_weights
        return verdict

    def on_the_clock(self, drive: Bools) -> Floats:
        """Seconds of the pipelines by the engine's own machine where ``drive`` is; of others the least.

        An interleaved table has no bubble but that of the least, (p-1)/v microbatches (Narayanan et al. 2021,
        section 2.2.2); to it come the messages of every chunk, both ways, where an engine waits for them.
        """
        c, found = self.candidates, self.bound.seconds
        if not self.case.engine.exchange.sends_ahead:
            found = found + self.in_tables * 2 * self.microbatches * c.interleave * self.hop
        # More stages than layers are refused, but still shown with an estimate.
        real = drive & (c.pipeline > 1) & (c.pipeline * c.interleave <= self.case.model.layers)
        real &= ~self.in_tables
        for place in map(int, np.flatnonzero(real)):
            flow = c.flow(place, self.case.training.global_batch)
            found[place] = steady.seconds(flow, *self.bound.by_stage(place), float(self.hop[place]))
        return found

    def waiting(self, seconds: Floats) -> Floats:
        """What ranks that share cores take beyond ranks that have their own, which take ``seconds``."""
        if self.case.crowding == 1:
            return 0 * seconds
        return np.maximum(0, self.bound.crowded_seconds(self.case.crowding) - seconds)

    def step(self, seconds: Floats) -> Floats:
        """A whole step whose pipelines take ``seconds``."""
        return seconds + self.waiting(seconds) + sum(term.value for term in self.after_backward)


def _after_backward(case: Case, fabric: Fabric, stage: _Stage) -> list[Term]:
    """What follows the pipeline: gradient reduction that the last backward cannot hide, and the update."""
    c = fabric.candidates
    elements = offload.largest_shard(case, c)
    reduction = _reduction(case, fabric, elements, stage.free)
    own = elements / c.owners
    updated = case.crowding * compute.optimizer(case, own) - _early(case, fabric, elements, reduction)
    pruned = np.maximum(*(state.shard(case, c, is_last=end).pruned for end in (False, True)))
    same: Ints = np.ones(len(c), dtype=np.int64)
    return [
        Term("gradient reduction", reduction),
        Term("parameter gather", _new_weights(case, fabric, elements, stage.ahead)),
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


def _new_weights(case: Case, fabric: Fabric, elements: Floats, ahead: Floats) -> Floats:
    """Gathering them after the update, or beside the next forward where the engine does that."""
    gathered = comm.parameter_gather(fabric, elements)
    found = beside(case.profile, gathered, ahead, wanted=case.engine.exchange.gathers_ahead)
    return found.exposed + found.price


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
