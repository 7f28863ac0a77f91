"""What a rank holds at the fullest moment of a step: state, activations, and what comes on top of tensors.

A step has three moments that may be the fullest, and what is never there together is never added:

    layers       a layer works: all activations that wait, its own, its gathered weights and one gradient
    vocabulary   the loss on the last stage, or the embedding's backward on the first: activations that wait,
                 logits, the vocabulary matrix gathered and its gradient
    update       weights are updated: state, and what is staged of it

The peak is that of the fullest stage at its fullest moment. ``state`` says what is there all the time,
``activations`` what waits and works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hpcdl.planner import state
from hpcdl.planner.activations import Layer
from hpcdl.planner.case import Case
from hpcdl.planner.engines import FP32
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.units import GIB, MIB

TENSORS = (*state.TERMS, "activations", "layer backward", "logits", "working weights", "reduction buckets")
TERMS = (*TENSORS, "allocator slack", "framework", "communicators")
"""In this order they sum to the device's memory; ``TENSORS`` are allocated."""

MARGIN = 0.05
"""Share of a memory that a plan leaves free."""


def device_memory(case: Case, c: Candidates) -> dict[str, Floats]:
    """Bytes by TERMS at the fullest moment of the fullest stage.

    With pruning, at the time that needs most: before it or after.
    """
    nothing: dict[str, Floats] = {term: np.zeros(len(c)) for term in TENSORS}
    fullest, most = nothing, np.full(len(c), -1.0)
    for moment in _moments(case, c):
        tensors = total(moment)
        more = tensors > most
        most = np.where(more, tensors, most)
        fullest = {term: np.where(more, moment.get(term, 0.0), fullest[term]) for term in TENSORS}
    return {**fullest, **_beyond_tensors(case, c, most)}


def device_bytes(case: Case, c: Candidates) -> Floats:
    """All of ``device_memory`` together, without the parts."""
    most = np.zeros(len(c))
    for moment in _moments(case, c):
        np.maximum(most, total(moment), out=most)
    return most + total(_beyond_tensors(case, c, most))


def _beyond_tensors(case: Case, c: Candidates, allocated: Floats) -> dict[str, Floats]:
    """What comes on top of ``allocated`` bytes.

    An allocator keeps freed blocks for later, but where the device is full it gives them back before it gives
    up, so its slack is no more than there is room for.
    """
    framework = np.full(len(c), case.profile.context_gib * GIB)
    communicators = _communicators(case, c)
    room = case.memory_bytes - 1 - framework - communicators - allocated  # a byte less than rounding may add
    slack = np.minimum(case.profile.allocator_slack * allocated, np.maximum(room, 0.0))
    return {"allocator slack": slack, "framework": framework, "communicators": communicators}


def host_memory(case: Case, c: Candidates) -> Floats:
    """Bytes that the rank which offloads most keeps in the memory of its host."""
    if not (c.offloaded.any() or c.offload_activations.any()):
        return np.zeros(len(c))
    layer = Layer.of(case, c)
    held = [
        state.on_host(case, c, stage.shard, sparsity)
        + c.offload_activations * layer.boundaries(c, stage.shard.layers, stage.held)
        for stage in _stages(case, c)
        for sparsity in state.phases(case)
    ]
    most: Floats = np.max(held, axis=0)
    return most


def need(case: Case, c: Candidates) -> Floats:
    """What is needed of the scarcer of device and host memory, as a share of what a plan may use of it."""
    device, host = device_bytes(case, c), host_memory(case, c)
    if case.one_memory:
        return device / budget(case) + host / budget(case)
    scarcer: Floats = np.maximum(device / budget(case), host / host_budget(case))
    return scarcer


def fits(case: Case, c: Candidates) -> Bools:
    """Whether device and host hold everything with the margin free."""
    verdict: Bools = need(case, c) <= 1
    return verdict


def may_fit(case: Case, c: Candidates) -> Bools:
    """Whether the device might hold some schedule of these, whatever lies between checkpoints.

    It does not if it holds them not even with one microbatch in flight and checkpoints on the host.
    """
    leanest = c.having(asked_in_flight=1, defer_weights=False, recompute_every=1)
    leanest = leanest.having(offload_activations=c.full_recompute)
    verdict: Bools = total(device_memory(case, leanest)) <= budget(case)
    return verdict


def total(memory: Mapping[str, Floats]) -> Floats:
    """Bytes of all terms together."""
    together: Floats = sum(memory.values(), np.zeros(()))
    return together


def budget(case: Case) -> float:
    """Bytes of a rank's memory that a plan may use."""
    return case.memory_bytes * (1 - MARGIN)


def host_budget(case: Case) -> float:
    """Bytes of its host's memory that a rank may use in a plan."""
    return case.host_memory_bytes * (1 - MARGIN)


def _moments(case: Case, c: Candidates) -> Iterator[dict[str, Floats]]:
    """Allocated bytes by TENSORS at every moment of every stage that may be the fullest."""
    layer = Layer.of(case, c)
    for stage in _stages(case, c):
        for sparsity in state.phases(case):
            yield from _moments_of(case, c, stage, layer, sparsity)


@dataclass(frozen=True)
class _Stage:
    """One rank of a pipeline, for every candidate."""

    shard: state.Shard
    held: Floats  # microbatches of which activations wait
    embeds: Bools
    ends: Bools  # with the loss


def _stages(case: Case, c: Candidates) -> Iterator[_Stage]:
    """The last, the first, and between them the fullest, if that can hold more than the first.

    A pipeline of one stage is first and last at once; the last has all of both then.
    """
    every, none = np.ones(len(c), dtype=np.bool_), np.zeros(len(c), dtype=np.bool_)
    alone = c.pipeline == 1
    yield _Stage(state.shard(case, c, is_last=True), _held(case, c, c.pipeline - 1), alone, every)
    if alone.all():
        return
    yield _Stage(state.shard(case, c, is_last=False), _held(case, c, 0 * c.pipeline), every, alone)
    if case.engine.even_stages:
        yield _Stage(state.inner_shard(case, c), _held(case, c, np.minimum(1, c.pipeline - 1)), none, none)


def _moments_of(
    case: Case, c: Candidates, stage: _Stage, layer: Layer, sparsity: float
) -> Iterator[dict[str, Floats]]:
    lasting = state.on_device(case, c, stage.shard, sparsity)
    updated = lasting.pop("main gradients")
    lasting["reduction buckets"] = _buckets(case, c, sparsity)
    waiting = _waiting(case, c, stage, layer)
    vocabulary = stage.embeds | stage.ends
    gathered, reduced = (vocabulary * part for part in _at_vocabulary(case, c, stage.shard))
    brought, brought_ends = state.in_use(case, c)
    yield {
        **lasting,
        "weights": lasting["weights"] + brought,
        "activations": waiting + layer.made_again(c, stage.shard.layers),
        "layer backward": layer.backward(),
        "working weights": _at_layer(case, c, stage.shard),
    }
    at_vocabulary = {
        **lasting,
        "weights": lasting["weights"] + vocabulary * brought_ends,
        "activations": waiting,
    }
    yield {**at_vocabulary, "logits": stage.ends * _logits(case, c, layer), "working weights": gathered}
    yield {
        **at_vocabulary,
        "logits": stage.ends * _logit_gradients(case, c, layer),
        "working weights": gathered + reduced,
    }
    if case.engine.recipe(case.training.precision).updating:
        yield {**lasting, "main gradients": updated}


def _waiting(case: Case, c: Candidates, stage: _Stage, layer: Layer) -> Floats:
    """What autograd keeps on the device between a forward and its backward."""
    kept = layer.kept(c, stage.shard.layers, stage.held)
    return kept + layer.outside(case, c, stage.held) + stage.embeds * layer.masks(case, stage.held)


def _held(case: Case, c: Candidates, index: Ints) -> Floats:
    """Microbatches of which the rank ``index`` of a pipeline keeps activations; a chunk's count as a part.

    In hpcdl's engine the last goes straight on to backward, so it holds one, unless it holds other chunks or
    owes weight gradients; all others hold what is in flight. By 1F1B's tables rank i holds p - i, and with v
    chunks 2(p - 1 - i) + (v - 1)p + 1 of those (Narayanan et al. 2021, section 2.2); deferred weight
    gradients keep as many on every rank as are in flight (Qi et al., arXiv 2401.10241, table 2).
    """
    batch = case.training.global_batch
    ranks, chunks = c.pipeline, c.interleave
    if not case.engine.warm_up:
        straight = (index == ranks - 1) & (chunks == 1) & ~c.defer_weights
        return np.where(straight | (ranks == 1), 1, c.in_flight(batch))
    asked = np.where(c.asked_in_flight > 0, c.asked_in_flight, ranks)
    ahead = (2 * (ranks - 1 - index) + (chunks - 1) * ranks + 1) / chunks
    if c.asked_in_flight.any():
        ahead = np.where(c.asked_in_flight > 0, np.minimum(ahead, asked), ahead)
    table = np.where(chunks > 1, ahead, np.maximum(asked - index, 1))
    return np.minimum(np.where(c.defer_weights, asked, table), c.microbatches(batch))


def _logits(case: Case, c: Candidates, layer: Layer) -> Floats:
    """Logits on their way to the loss and back, and the head's input and its norm's."""
    engine = case.engine
    each = np.where(c.x > 1, engine.split_logit_bytes, engine.logit_bytes)
    if case.element_bytes == FP32.weights:
        each = each - 2  # no copy in 16 bits
    return case.tokens(c) * case.model.vocab / c.x * each + 2 * layer.boundary


def _logit_gradients(case: Case, c: Candidates, layer: Layer) -> Floats:
    """What is left of the logits while the head's gradient is made: their own, and the head's input."""
    return case.element_bytes * case.tokens(c) * case.model.vocab / c.x + 2 * layer.boundary


def _at_layer(case: Case, c: Candidates, shard: state.Shard) -> Floats:
    """Weights gathered and gradients not yet added up while a layer works.

    FSDP gathers layers and reduces their gradients at once, in fp32 where the shards are; z and DeepSpeed
    reduce matrix by matrix.
    """
    engine, element = case.engine, case.element_bytes
    largest = max(matrix.rows * matrix.columns for matrix in case.model.layer_matrices) / (c.x * c.y)
    by_layer = (c.zero >= 2) & (engine.gathered > 0)
    made = np.where(by_layer, _reduced_bytes(case) * shard.layer, element * largest)
    sharded = np.where(by_layer, engine.gathered * shard.layer, np.maximum(largest, engine.live_weights))
    gathered = np.where(c.z > 1, c.z * shard.layer, 0.0) + (c.zero == 3) * sharded
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
    return case.element_bytes + 4 * case.engine.fp32_shards


def _resident(case: Case, c: Candidates) -> Bools:
    """Whether a stage's gathered weights and whole gradients stay from one microbatch to the next."""
    verdict: Bools = case.engine.keeps_gathered & (c.zero == 3) & (c.pipeline > 1)
    return verdict


def _whole_stage(case: Case, shard: state.Shard) -> Floats:
    return (case.element_bytes + 4.0) * shard.parameters


def _buckets(case: Case, c: Candidates, sparsity: float) -> Floats:
    """Room in which gradients are reduced over data."""
    if case.engine.bucket_bytes is not None:
        return float(case.engine.bucket_bytes) * (c.data > 1)
    gradient = state.gradient_bytes(case, c, sparsity)
    return 2.0 * case.training.chunk_mib * MIB / 4 * gradient * (c.batch_shards > 1)


def _communicators(case: Case, c: Candidates) -> Floats:
    """Buffers of collectives: of each axis that has any, and where several are in use of groups over those.

    Stages send to each other, which takes far less (NVIDIA/nccl issue 1450: one buffer for all channels).
    """
    collective: Ints = np.sum([axis > 1 for axis in (c.x, c.y, c.z, c.context, c.data)], axis=0)
    several = collective + (c.pipeline > 1) > 1
    return case.profile.communicator_gib * GIB * (collective + case.engine.groups * several)
