"""What is allocated at the moments of a step that may be the fullest, on each stage that may be.

    layer        a layer works: activations that wait, its own, its gathered weights and one gradient
    loss         activations that wait, logits, and the head's weights
    vocabulary   the gradient of the head's matrix, or of the embedding's on the first stage
    update       state, and fp32 copies of 16-bit gradients

``state`` says what is there all the time, ``activations`` what waits and works.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from hpcdl.planner import state
from hpcdl.planner.activations import Layer
from hpcdl.planner.case import Case
from hpcdl.planner.keeping import FP32
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.units import MIB

TENSORS = (*state.TERMS, "activations", "layer backward", "logits", "working weights", "reduction buckets")
"""What is allocated, by name."""

StageName = Literal["first", "inner", "last"]
MomentName = Literal["layer", "loss", "vocabulary", "update"]


class Moment(NamedTuple):
    """What is allocated on one stage at one moment of a step."""

    stage: StageName
    name: MomentName
    tensors: dict[str, Floats]  # bytes by TENSORS; what is not there has no key


@dataclass(frozen=True)
class Stage:
    """One rank of a pipeline, for every candidate."""

    name: StageName
    shard: state.Shard
    held: Floats  # microbatches of which activations wait
    embeds: Bools
    ends: Bools  # with the loss


def moments(case: Case, c: Candidates) -> Iterator[Moment]:
    """Every moment of every stage that may be the fullest, with pruning before it and after."""
    layer = Layer.of(case, c)
    for stage in stages(case, c):
        for sparsity in state.phases(case):
            yield from _of_stage(case, c, stage, layer, sparsity)


def stages(case: Case, c: Candidates) -> Iterator[Stage]:
    """The last, the first, and between them the fullest, if that can hold more than the first.

    A pipeline of one stage is first and last at once; the last has all of both then.
    """
    every, none = np.ones(len(c), dtype=np.bool_), np.zeros(len(c), dtype=np.bool_)
    alone = c.pipeline == 1
    yield Stage("last", state.shard(case, c, is_last=True), _held(case, c, c.pipeline - 1), alone, every)
    if alone.all():
        return
    yield Stage("first", state.shard(case, c, is_last=False), _held(case, c, 0 * c.pipeline), every, alone)
    if case.engine.tables and (c.pipeline > 2).any():
        second = np.minimum(1, c.pipeline - 1)
        yield Stage("inner", state.inner_shard(case, c), _held(case, c, second), none, none)


def _of_stage(case: Case, c: Candidates, stage: Stage, layer: Layer, sparsity: float) -> Iterator[Moment]:
    lasting = state.on_device(case, c, stage.shard, sparsity)
    updated = lasting.pop("main gradients")
    lasting["reduction buckets"] = _buckets(case, c, sparsity)
    waiting = _waiting(case, c, stage, layer)
    vocabulary = stage.embeds | stage.ends
    gathered, reduced = (vocabulary * part for part in _at_vocabulary(case, c, stage.shard))
    brought, brought_ends = state.in_use(case, c)
    at_layer = {
        "weights": lasting["weights"] + brought,
        "activations": waiting + layer.made_again(c, stage.shard.layers),
        "layer backward": layer.backward(),
        "working weights": _at_layer(case, c, stage.shard),
    }
    yield Moment(stage.name, "layer", {**lasting, **at_layer})
    at_vocabulary = {
        **lasting,
        "weights": lasting["weights"] + vocabulary * brought_ends,
        "activations": waiting,
    }
    logits, gradients = (stage.ends * part for part in _logits(case, c, layer))
    yield Moment(stage.name, "loss", {**at_vocabulary, "logits": logits, "working weights": gathered})
    made = {"logits": gradients, "working weights": gathered + reduced}
    yield Moment(stage.name, "vocabulary", {**at_vocabulary, **made})
    if case.engine.keeps.recipe(case.training.precision).updating:
        yield Moment(stage.name, "update", {**lasting, "main gradients": updated})


def _waiting(case: Case, c: Candidates, stage: Stage, layer: Layer) -> Floats:
    """What autograd keeps on the device between a forward and its backward."""
    kept = layer.kept(c, stage.shard.layers, stage.held)
    if case.engine.keeps.outputs:
        kept = kept + (c.pipeline > 1) * stage.held * layer.boundary
    return kept + stage.embeds * layer.masks(case, stage.held) if case.drops else kept


def _held(case: Case, c: Candidates, index: Ints) -> Floats:
    """Microbatches of which the rank ``index`` of a pipeline keeps activations; a chunk's count as a part.

    In hpcdl's engine the last goes straight on to backward, so it holds one, unless it holds other chunks or
    owes weight gradients; all others hold what is in flight. By 1F1B's tables rank i holds p - i, and with v
    chunks 2(p - 1 - i) + (v - 1)p + 1 of those (Narayanan et al. 2021, section 2.2); deferred weight
    gradients keep as many on every rank as are in flight (Qi et al., arXiv 2401.10241, table 2).
    """
    batch = case.training.global_batch
    ranks, chunks = c.pipeline, c.interleave
    if not case.engine.tables:
        straight = (index == ranks - 1) & (chunks == 1) & ~c.defer_weights
        return np.where(straight | (ranks == 1), 1, c.in_flight(batch))
    asked = np.where(c.asked_in_flight > 0, c.asked_in_flight, ranks)
    ahead = (2 * (ranks - 1 - index) + (chunks - 1) * ranks + 1) / chunks
    if c.asked_in_flight.any():
        ahead = np.where(c.asked_in_flight > 0, np.minimum(ahead, asked), ahead)
    table = np.where(chunks > 1, ahead, np.maximum(asked - index, 1))
    return np.minimum(np.where(c.defer_weights, asked, table), c.microbatches(batch))


def _logits(case: Case, c: Candidates, layer: Layer) -> tuple[Floats, Floats]:
    """Logits on their way to the loss and back, and what is left of them while the head's gradient is made.

    The head's input and its norm's are there as well.
    """
    keeps, element = case.engine.keeps, case.element_bytes
    each = np.where(c.x > 1, keeps.split_logit_bytes, keeps.logit_bytes)
    if element == FP32.weights:
        each = each - 2  # no copy in 16 bits
    logits = case.tokens(c) * case.model.vocab / c.x
    inputs = 2 * layer.boundary
    return logits * each + inputs, logits * element + inputs


def _at_layer(case: Case, c: Candidates, shard: state.Shard) -> Floats:
    """Weights gathered and gradients not yet added up while a layer works.

    FSDP gathers layers and reduces their gradients at once, in fp32 where the shards are; z and DeepSpeed
    reduce matrix by matrix.
    """
    keeps, element = case.engine.keeps, case.element_bytes
    largest = max(matrix.rows * matrix.columns for matrix in case.model.layer_matrices) / (c.x * c.y)
    by_layer = (c.zero >= 2) & (keeps.layers_gathered > 0)
    made = np.where(by_layer, _reduced_bytes(case) * shard.layer, element * largest)
    whole = np.where(by_layer, keeps.layers_gathered * shard.layer, np.maximum(largest, keeps.live_weights))
    gathered = np.where(c.z > 1, c.z * shard.layer, 0.0) + (c.zero == 3) * whole
    return np.where(_resident(case, c), _whole_stage(case, shard), element * gathered + made)


def _at_vocabulary(case: Case, c: Candidates, shard: state.Shard) -> tuple[Floats, Floats]:
    """The same while embedding or head work: what is gathered, and the gradient that comes after it."""
    vocabulary = case.model.vocab * case.model.hidden / c.tensor
    gathered = (np.where(c.z > 1, c.z, 0) + (c.zero == 3)) * case.element_bytes * vocabulary
    made = np.where(c.zero >= 2, _reduced_bytes(case), case.element_bytes * c.z) * vocabulary
    resident = _resident(case, c)
    return np.where(resident, _whole_stage(case, shard), gathered), np.where(resident, 0.0, made)


def _reduced_bytes(case: Case) -> int:
    """Bytes of an element of a gradient that is summed up: as it was made, and in fp32 if the shards are."""
    return case.element_bytes + 4 * case.engine.keeps.fp32_shards


def _resident(case: Case, c: Candidates) -> Bools:
    """Whether a stage's gathered weights and whole gradients stay from one microbatch to the next."""
    verdict: Bools = case.engine.keeps.stage_gathered & (c.zero == 3) & (c.pipeline > 1)
    return verdict


def _whole_stage(case: Case, shard: state.Shard) -> Floats:
    return (case.element_bytes + 4.0) * shard.parameters


def _buckets(case: Case, c: Candidates, sparsity: float) -> Floats:
    """Room in which gradients are reduced over data."""
    room = case.engine.keeps.bucket_bytes
    if room is not None:
        return float(room) * (c.data > 1)
    gradient = state.gradient_bytes(case, c, sparsity)
    return 2.0 * case.training.chunk_mib * MIB / 4 * gradient * (c.batch_shards > 1)
