"""What a rank holds: parameters, gradients, optimizer state, activations, and what comes on top of tensors.

Bytes a parameter (weights + gradients + optimizer): fp32 4 + 4 + 8 (Adam's two moments); bf16 2 + 4 + 12,
with fp32 gradients and a fp32 main copy. Matrices are cut over x·y and sharded over z with all their state.

Elements that autograd keeps a token and layer, with h, f and the key-value width cut as the engine cuts
them (the stream h/y, heads and ffn over x):

    norm inputs and outputs   4h/y                      attention: q, k, v and output   (qkv + h)/x
    mlp.up's output           f/x, SwiGLU 2f/x          mlp.down's input                f/x, SwiGLU 2f/x

which for a classic block is 16h, Korthikanti et al. 2022's 34sbh bytes less their dropout masks and score
square. Selective recompute drops what comes after mlp.up and inside attention; full recompute keeps h/y for
every ``recompute_every`` layers, and so many layers' worth while it works.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.spec.partition import stage_layers
from hpcdl.units import GIB, MIB

TERMS = (
    "weights", "gradients", "optimizer state", "activations", "logits", "working weights",
    "reduction buckets", "allocator slack", "framework",
)  # fmt: skip
"""In this order they sum to the device's memory; all but the last two are allocated tensors."""

MARGIN = 0.05
"""Share of the device that a plan leaves free."""


def layers_of_stages(case: Case, c: Candidates) -> tuple[Ints, Ints]:
    """Layers of the first rank of a pipeline, and of the last, over all their virtual stages."""
    ranks, where = np.unique(c.pipeline, return_inverse=True)
    ends = [_layers_of_ends(case, int(count), c.interleave) for count in ranks]
    first, last = np.array(ends, dtype=np.int64).reshape(-1, 2)[where].T
    return first, last


def _layers_of_ends(case: Case, ranks: int, chunks: int) -> tuple[int, int]:
    stages = min(ranks * chunks, case.model.layers)  # more are refused, but still shown with an estimate
    first, last = (
        sum(len(stage_layers(case.model, stages, stage)) for stage in range(rank, stages, ranks))
        for rank in (0, ranks - 1)
    )
    return first, last


def device_memory(case: Case, c: Candidates) -> dict[str, Floats]:
    """Bytes by TERMS on the stage that needs most: the first, or the last with head and logits."""
    first, last = _stage(case, c, is_last=False), _stage(case, c, is_last=True)
    # A pipeline of one stage is first and last at once; ``_stage`` gives its last all of both.
    take_last = (total(last) >= total(first)) | (c.pipeline == 1)
    return {term: np.where(take_last, last[term], first[term]) for term in TERMS}


def fits(case: Case, memory: Mapping[str, Floats]) -> Bools:
    """Whether a rank's memory holds all terms with the margin free."""
    verdict: Bools = total(memory) <= budget(case)
    return verdict


def total(memory: Mapping[str, Floats]) -> Floats:
    """Bytes of all terms together."""
    together: Floats = np.sum(list(memory.values()), axis=0)
    return together


def budget(case: Case) -> float:
    """Bytes of a rank's memory that a plan may use."""
    return case.memory_bytes * (1 - MARGIN)


def stage_parameters(case: Case, c: Candidates, *, is_last: bool) -> Floats:
    """Parameters whose gradients and optimizer state one rank of the first or the last stage holds."""
    model = case.model
    layers = layers_of_stages(case, c)[1 if is_last else 0]
    parameters = layers * _layer_parameters(case, c)
    alone = c.pipeline == 1
    begins, ends = (alone, True) if is_last else (True, alone)
    positions = model.embedding_parameters - model.vocab * model.hidden
    vocabulary = model.vocab * model.hidden / c.tensor
    parameters = parameters + begins * (vocabulary + positions / c.y)
    # A tied head is the embedding itself in a pipeline of one stage and a copy of it otherwise.
    own_head = ~alone if model.tied else np.ones(len(c), dtype=np.bool_)
    norm = model.head_parameters - (0 if model.tied else model.vocab * model.hidden)
    return parameters + ends * (own_head * vocabulary + norm / c.y)


def _stage(case: Case, c: Candidates, *, is_last: bool) -> dict[str, Floats]:
    parameters = stage_parameters(case, c, is_last=is_last)
    weight = case.element_bytes
    terms = {
        "weights": weight * parameters,
        "gradients": 4 * parameters,
        "optimizer state": (8 if weight == 4 else 12) * parameters / (c.data if c.zero else 1),
        "activations": _activations(case, c, is_last=is_last),
        "logits": _logits(case, c) * (np.ones(len(c)) if is_last else (c.pipeline == 1)),
        "working weights": _working_weights(case, c),
        "reduction buckets": 2.0 * case.training.chunk_mib * MIB * (c.batch_shards > 1),
    }
    terms["allocator slack"] = case.profile.allocator_slack * total(terms)
    terms["framework"] = np.full(len(c), case.profile.context_gib * GIB)
    return terms


def _layer_parameters(case: Case, c: Candidates) -> Floats:
    """One layer on a rank: matrices over x·y·z, norms over y, biases over their outputs' axis."""
    model = case.model
    matrices = sum(matrix.rows * matrix.columns for matrix in model.layer_matrices)
    if model.family == "llama":
        return matrices / c.tensor + 2 * model.hidden / c.y
    biases = [matrix.rows / (c.y if n % 2 else c.x) for n, matrix in enumerate(model.layer_matrices)]
    return matrices / c.tensor + sum(biases) + 4 * model.hidden / c.y


def _activations(case: Case, c: Candidates, *, is_last: bool) -> Floats:
    """What autograd keeps between a forward and its backward."""
    model = case.model
    tokens = c.microbatch * float(model.sequence)
    stream = tokens * model.hidden / c.y
    qkv, _, up, _ = (matrix.rows for matrix in model.layer_matrices)
    selective = c.common.recompute == "selective"
    mlp = up if selective else 2 * up if model.family == "llama" else up + model.ffn
    working = 4 * stream + tokens * (qkv + model.hidden + mlp) / c.x
    statistics = 4 * tokens * model.heads / c.x  # bytes: fp32 row sums of fused attention
    core = np.zeros(len(c)) if selective else statistics + _unfused_scores(case, c)
    layer = working * case.element_bytes + core
    layers = layers_of_stages(case, c)[1 if is_last else 0]
    held = _held(case, c, is_last=is_last)
    kept = held * layers * layer
    every = c.common.recompute_every
    checkpoints = held * np.ceil(layers / every) * stream * case.element_bytes + every * layer
    return np.where(c.full_recompute, np.minimum(checkpoints, kept), kept)


def _held(case: Case, c: Candidates, *, is_last: bool) -> Ints:
    """Microbatches of which a rank keeps activations.

    The last stage goes straight on to backward, so it holds one, unless it holds other chunks or owes weight
    gradients.
    """
    straight = is_last and c.interleave == 1 and not c.common.defer_weights
    held: Ints = np.where(c.pipeline == 1, 1, 1 if straight else c.in_flight(case.training.global_batch))
    return held


def _unfused_scores(case: Case, c: Candidates) -> Floats:
    """Score squares that an attention which is not fused keeps: 5as²b bytes, Korthikanti et al. 2022."""
    unfused = 2.5 * case.element_bytes if case.profile.score_passes else 0.0
    return unfused * c.microbatch * float(case.model.sequence) ** 2 * case.model.heads / c.x


def _logits(case: Case, c: Candidates) -> Floats:
    """fp32 logits and their gradient, and in bf16 the product as it left the head."""
    copy = case.element_bytes if case.element_bytes == 2 else 0
    return c.microbatch * float(case.model.sequence) * case.model.vocab / c.x * (4 + 4 + copy)


def _working_weights(case: Case, c: Candidates) -> Floats:
    """One layer's weights gathered over z while it computes, and one matrix's whole gradient."""
    model = case.model
    sizes = [matrix.rows * matrix.columns for matrix in model.layer_matrices]
    vocabulary = model.vocab * model.hidden
    held = max(sum(sizes), vocabulary)
    largest = max(*sizes, vocabulary)
    gathered = np.where(c.z > 1, held / (c.x * c.y), 0.0)
    return (gathered + largest / (c.x * c.y)) * case.element_bytes
