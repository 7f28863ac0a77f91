"""What a rank holds: its state (``planner.state``), activations, and what comes on top of tensors.

Elements that autograd keeps a token and layer, with h, f and the key-value width cut as the engine cuts
them (the stream h/y, heads and ffn over x):

    norm inputs and outputs   4h/y                      attention: q, k, v and output   (qkv + h)/x
    mlp.up's output           f/x, SwiGLU 2f/x          mlp.down's input                f/x, SwiGLU 2f/x

which for a classic block is 16h, Korthikanti et al. 2022's 34sbh bytes less their dropout masks and score
square. Selective recompute drops what comes after mlp.up and inside attention; full recompute keeps h/y for
every ``recompute_every`` layers, and so many layers' worth while it works. Offloaded, the device has the h/y
that is in use and the next one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcdl.planner import state
from hpcdl.planner.case import Case
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.units import GIB, MIB

TERMS = (
    *state.TERMS, "activations", "logits", "working weights", "reduction buckets", "allocator slack",
    "framework",
)  # fmt: skip
"""In this order they sum to the device's memory; all but the last two are allocated tensors."""

MARGIN = 0.05
"""Share of a memory that a plan leaves free."""


def device_memory(case: Case, c: Candidates) -> dict[str, Floats]:
    """Bytes by TERMS on the stage that needs most: the first, or the last with head and logits.

    With pruning, at the time that needs most: before it or after.
    """
    found = [_fuller_stage(case, c, sparsity) for sparsity in state.phases(case)]
    most = np.argmax([total(terms) for terms in found], axis=0)
    return {term: np.choose(most, [terms[term] for terms in found]) for term in TERMS}


def host_memory(case: Case, c: Candidates) -> Floats:
    """Bytes that the rank which offloads most keeps in the memory of its host."""
    ends = (False, True)
    held = [
        state.on_host(case, c, state.shard(case, c, is_last=end), sparsity) + _waiting(case, c, is_last=end)
        for end in ends
        for sparsity in state.phases(case)
    ]
    most: Floats = np.max(held, axis=0)
    return most


def _fuller_stage(case: Case, c: Candidates, sparsity: float) -> dict[str, Floats]:
    first, last = (_stage(case, c, sparsity, is_last=end) for end in (False, True))
    # A pipeline of one stage is first and last at once; ``_stage`` gives its last all of both.
    take_last = (total(last) >= total(first)) | (c.pipeline == 1)
    return {term: np.where(take_last, last[term], first[term]) for term in TERMS}


def need(case: Case, c: Candidates) -> Floats:
    """What is needed of the scarcer of device and host memory, as a share of what a plan may use of it."""
    device, host = total(device_memory(case, c)), host_memory(case, c)
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
    together: Floats = np.sum(list(memory.values()), axis=0)
    return together


def budget(case: Case) -> float:
    """Bytes of a rank's memory that a plan may use."""
    return case.memory_bytes * (1 - MARGIN)


def host_budget(case: Case) -> float:
    """Bytes of its host's memory that a rank may use in a plan."""
    return case.host_memory_bytes * (1 - MARGIN)


def _stage(case: Case, c: Candidates, sparsity: float, *, is_last: bool) -> dict[str, Floats]:
    gradient = state.gradient_bytes(case, c, sparsity)
    terms = {
        **state.on_device(case, c, state.shard(case, c, is_last=is_last), sparsity),
        "activations": _activations(case, c, is_last=is_last),
        "logits": _logits(case, c) * (np.ones(len(c)) if is_last else (c.pipeline == 1)),
        "working weights": _working_weights(case, c),
        "reduction buckets": 2.0 * case.training.chunk_mib * MIB / 4 * gradient * (c.batch_shards > 1),
    }
    terms["allocator slack"] = case.profile.allocator_slack * total(terms)
    terms["framework"] = np.full(len(c), case.profile.context_gib * GIB)
    return terms


def _activations(case: Case, c: Candidates, *, is_last: bool) -> Floats:
    """What autograd keeps between a forward and its backward."""
    model = case.model
    tokens = case.tokens(c)
    stream = tokens * model.hidden / c.y
    qkv, _, up, _ = (matrix.rows for matrix in model.layer_matrices)
    selective = c.selective_recompute
    mlp = np.where(selective, up, 2 * up if model.family == "llama" else up + model.ffn)
    working = 4 * stream + tokens * (qkv + model.hidden + mlp) / c.x
    statistics = 4 * tokens * model.heads / c.x  # bytes: fp32 row sums of fused attention
    core = np.where(selective, 0.0, statistics + _unfused_scores(case, c))
    layer = working * case.element_bytes + core
    layers = state.layers_of_stages(case, c)[1 if is_last else 0]
    kept = _held(case, c, is_last=is_last) * layers * layer
    boundaries = np.where(c.offload_activations, 2 * boundary(case, c), _boundaries(case, c, is_last=is_last))
    checkpoints = boundaries + c.recompute_every * layer
    held: Floats = np.where(c.full_recompute, np.minimum(checkpoints, kept), kept)
    return held


def boundary(case: Case, c: Candidates) -> Floats:
    """Bytes of what full recomputation keeps of one microbatch before one layer."""
    return case.tokens(c) * case.model.hidden / c.y * case.element_bytes


def _boundaries(case: Case, c: Candidates, *, is_last: bool) -> Floats:
    """All that full recomputation keeps at once."""
    layers = state.layers_of_stages(case, c)[1 if is_last else 0]
    kept = np.ceil(layers / c.recompute_every)
    return _held(case, c, is_last=is_last) * kept * boundary(case, c)


def _waiting(case: Case, c: Candidates, *, is_last: bool) -> Floats:
    """Activations on the host."""
    return c.offload_activations * _boundaries(case, c, is_last=is_last)


def _held(case: Case, c: Candidates, *, is_last: bool) -> Ints:
    """Microbatches of which a rank keeps activations.

    The last stage goes straight on to backward, so it holds one, unless it holds other chunks or owes weight
    gradients.
    """
    straight = is_last & (c.interleave == 1) & ~c.defer_weights
    in_flight = c.in_flight(case.training.global_batch)
    held: Ints = np.where(straight | (c.pipeline == 1), 1, in_flight)
    return held


def _unfused_scores(case: Case, c: Candidates) -> Floats:
    """Score squares that an attention which is not fused keeps: 5as²b bytes, Korthikanti et al. 2022."""
    unfused = 2.5 * case.element_bytes if case.attention != "flash" else 0.0
    return unfused * c.microbatch * float(case.model.sequence) ** 2 * case.model.heads / c.x


def _logits(case: Case, c: Candidates) -> Floats:
    """fp32 logits and their gradient, and in bf16 the product as it left the head."""
    copy = case.element_bytes if case.element_bytes == 2 else 0
    return case.tokens(c) * case.model.vocab / c.x * (4 + 4 + copy)


def _working_weights(case: Case, c: Candidates) -> Floats:
    """One layer's weights gathered over z while it computes, and one matrix's whole gradient."""
    model = case.model
    sizes = [matrix.rows * matrix.columns for matrix in model.layer_matrices]
    vocabulary = model.vocab * model.hidden
    held = max(sum(sizes), vocabulary)
    largest = max(*sizes, vocabulary)
    gathered = np.where(c.z > 1, held / (c.x * c.y), 0.0)
    return (gathered + largest / (c.x * c.y)) * case.element_bytes
