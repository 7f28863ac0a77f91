"""Weights, gradients and optimizer state of a rank: how many bytes, on its device and in its host's memory.

Bytes a parameter (weights + gradients + optimizer): fp32 4 + 4 + 8 (Adam's two moments); bf16 2 + 4 + 12,
with fp32 gradients and a fp32 main copy. Where memory is saved gradients have the type of the model.

``offload: optimizer`` keeps the 12 bytes of main copy and moments on the host and brings them over bucket by
bucket: 4 bytes a parameter and 16 an element of a bucket (Singh and Bhatele, IPDPS 2022, section V-B).
``offload: parameters`` keeps matrices and their gradients there too, but for the matrix in use and the next;
in fp32 they are their own main copy there.

Pruning keeps dense weights, and of everything else only what is not pruned, with an index of 4 bytes: 2 + 20f
bytes a parameter in bf16, f the kept share (SAMO, IPDPS 2023, equations 1 to 5: 2 + 24f with fp32 gradients
of all at once, of which here a bucket is enough).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import pairwise

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Candidates, Floats, Ints
from hpcdl.spec.model import Model
from hpcdl.spec.partition import stage_layers
from hpcdl.spec.training import Pruning
from hpcdl.units import MIB

TERMS = ("weights", "gradients", "optimizer state", "sparse index", "update staging")
"""What ``on_device`` gives."""

OPTIMIZER, PARAMETERS = 1, 2
"""Levels of offload, as ``Candidates.offloaded`` has them."""

_STATE = 12  # bytes on the host: fp32 main copy and Adam's moments
_STAGED = 16  # the same and a fp32 gradient, of one bucket on the device
_INDEX = 4


@dataclass(frozen=True)
class Shard:
    """Parameters of one rank of the first or the last stage, for every candidate."""

    layers: Ints
    layer: Floats  # the matrices of one layer
    embedding: Floats
    head: Floats  # 0 where it is the embedding itself
    vectors: Floats  # norms, biases and positions
    in_use: Floats  # the largest two matrices that are used one after the other
    pruned: Floats  # of the matrices, those that lose elements, before they do

    @property
    def matrices(self) -> Floats:
        """All of them."""
        return self.layers * self.layer + self.embedding + self.head

    @property
    def parameters(self) -> Floats:
        """All together."""
        return self.matrices + self.vectors


def layers_of_stages(case: Case, c: Candidates) -> tuple[Ints, Ints]:
    """Layers of the first rank of a pipeline, and of the last, over all their virtual stages."""
    chunks = int(c.interleave.max(initial=1)) + 1
    pipelines, where = np.unique(c.pipeline * chunks + c.interleave, return_inverse=True)
    ends = [_layers_of_ends(case.model, *divmod(int(pipeline), chunks)) for pipeline in pipelines]
    first, last = np.array(ends, dtype=np.int64).reshape(-1, 2)[where].T
    return first, last


@lru_cache(maxsize=4096)
def _layers_of_ends(model: Model, ranks: int, chunks: int) -> tuple[int, int]:
    stages = min(ranks * chunks, model.layers)  # more are refused, but still shown with an estimate
    first, last = (
        sum(len(stage_layers(model, stages, stage)) for stage in range(rank, stages, ranks))
        for rank in (0, ranks - 1)
    )
    return first, last


def shard(case: Case, c: Candidates, *, is_last: bool) -> Shard:
    """What one rank of the first or the last stage holds: matrices over x·y·z, vectors over x or y."""
    model = case.model
    layers = layers_of_stages(case, c)[1 if is_last else 0]
    alone = c.pipeline == 1
    begins, ends = (alone, True) if is_last else (True, alone)
    vocabulary = model.vocab * model.hidden / c.tensor
    positions = model.embedding_parameters - model.vocab * model.hidden
    norm = model.head_parameters - (0 if model.tied else model.vocab * model.hidden)
    # A tied head is the embedding itself in a pipeline of one stage and a copy of it otherwise.
    own_head = ends * (~alone if model.tied else np.ones(len(c), dtype=np.bool_))
    layer = sum(_sizes(model)) / c.tensor
    held = (layers * layer, begins * vocabulary, own_head * vocabulary)
    return Shard(
        layers=layers,
        layer=layer,
        embedding=held[1],
        head=held[2],
        vectors=layers * _layer_vectors(case, c) + begins * (positions / c.y) + ends * (norm / c.y),
        in_use=_in_use(model, c, held[1], ends * vocabulary),
        pruned=sum(
            (share * part for share, part in zip(_pruned_shares(case), held, strict=True)), 0.0 * layer
        ),
    )


def kept(held: Shard, sparsity: float) -> Floats:
    """Elements that are trained."""
    return held.parameters - sparsity * held.pruned


def sparsity(case: Case) -> float:
    """Share of pruned matrices that goes in the end; 0 without pruning."""
    pruning = case.training.pruning
    return pruning.sparsity if pruning else 0.0


def phases(case: Case) -> tuple[float, ...]:
    """The sparsities between which memory must be enough: before the pruning everything is dense."""
    pruning = case.training.pruning
    if pruning is None:
        return (0.0,)
    return (0.0, pruning.sparsity) if begins_dense(pruning) else (pruning.sparsity,)


def begins_dense(pruning: Pruning) -> bool:
    """Whether there are steps before the full sparsity is reached."""
    return pruning.begin > 0 or pruning.schedule != "once"


def pruned_layer(case: Case, c: Candidates) -> Floats:
    """Elements of one layer's matrices that lose some, before they do."""
    layer: Floats = _pruned_shares(case)[0] * sum(_sizes(case.model)) / c.tensor
    return layer


def gradient_bytes(case: Case, c: Candidates, sparsity: float) -> Ints:
    """Bytes of one element of a gradient."""
    lean = (c.offloaded > 0) | (sparsity > 0)
    return np.where(lean, case.element_bytes, 4)


def on_device(case: Case, c: Candidates, held: Shard, sparsity: float) -> dict[str, Floats]:
    """Bytes by TERMS."""
    element, gradient = case.element_bytes, gradient_bytes(case, c, sparsity)
    away = c.offloaded == PARAMETERS
    trained, copies = kept(held, sparsity), _copies(held, sparsity)
    weights = held.vectors + np.where(away, held.in_use, held.matrices + copies)
    gradients = np.where(away, held.vectors, trained)
    return {
        "weights": element * weights,
        "gradients": gradient * gradients,
        "optimizer state": (c.offloaded == 0) * (8 if element == 4 else 12) * trained / c.owners,
        "sparse index": _INDEX * copies,
        "update staging": _staged_bytes(case, c, sparsity)
        * _bucket(case, c, np.where(away, held.vectors, trained)),
    }


def on_host(case: Case, c: Candidates, held: Shard, sparsity: float) -> Floats:
    """Bytes that lie in the memory of the host instead."""
    element, gradient = case.element_bytes, gradient_bytes(case, c, sparsity)
    trained, copies = kept(held, sparsity), _copies(held, sparsity)
    state = _STATE * trained / c.owners
    matrices = trained - held.vectors
    mains = (4 if element == 4 else 0) * matrices / c.owners
    weights = element * (held.matrices + copies) + gradient * matrices
    return np.select([c.offloaded == OPTIMIZER, c.offloaded == PARAMETERS], [state, state - mains + weights])


def bucket_elements(case: Case) -> int:
    """What the optimizer updates at once."""
    return int(case.training.bucket_mib * MIB) // 4


def _bucket(case: Case, c: Candidates, trained: Floats) -> Floats:
    return np.minimum(bucket_elements(case), trained) / c.owners


def _staged_bytes(case: Case, c: Candidates, sparsity: float) -> Ints:
    """Bytes on the device of one element of the bucket that is being updated."""
    gradient = 4 if sparsity > 0 and case.element_bytes == 2 else 0
    return np.where(c.offloaded > 0, _STAGED, gradient)


def _copies(held: Shard, sparsity: float) -> Floats:
    """Kept elements of pruned matrices, which lie side by side as well as in the dense weights."""
    return (1 - sparsity if sparsity else 0.0) * held.pruned


def _sizes(model: Model) -> list[int]:
    """Elements of the matrices of a layer, in the order of their use."""
    return [matrix.rows * matrix.columns for matrix in model.layer_matrices]


def _in_use(model: Model, c: Candidates, embedding: Floats, head: Floats) -> Floats:
    """The largest two neighbours; ``head`` also where it is the embedding."""
    sizes = _sizes(model)
    within = max(one + following for one, following in pairwise([*sizes, sizes[0]])) / c.tensor
    at_ends = np.maximum(embedding + sizes[0] / c.tensor, head + sizes[-1] / c.tensor)
    return np.maximum(within, at_ends)


def _layer_vectors(case: Case, c: Candidates) -> Floats:
    """Of one layer: norms over y, biases over their outputs' axis."""
    model = case.model
    if model.family == "llama":
        return 2 * model.hidden / c.y
    biases = [matrix.rows / (c.y if n % 2 else c.x) for n, matrix in enumerate(model.layer_matrices)]
    return sum(biases, 4 * model.hidden / c.y)


def _pruned_shares(case: Case) -> tuple[float, float, float]:
    """Of layers, embedding and head the share of elements whose names no pattern excludes."""
    pruning, model = case.training.pruning, case.model
    if pruning is None:
        return (0.0, 0.0, 0.0)

    def goes(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in pruning.exclude)

    sizes = _sizes(model)
    gone = sum(
        size * goes(f"layers.{layer}.{matrix.name}.weight")
        for layer in range(model.layers)
        for size, matrix in zip(sizes, model.layer_matrices, strict=True)
    )
    embedding = float(goes("embedding.tokens"))
    return (
        gone / (model.layers * sum(sizes)),
        embedding,
        embedding if model.tied else float(goes("head.weight")),
    )
