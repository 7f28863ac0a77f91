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
from functools import cached_property
from itertools import pairwise

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.keeping import FP32
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.planner.stages import layers_of_ranks
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning
from hpcdl.units import MIB

TERMS = ("weights", "gradients", "optimizer state", "main gradients", "sparse index", "update staging")
"""What ``on_device`` gives."""

OPTIMIZER, PARAMETERS = 1, 2
"""Levels of offload, as ``Candidates.offloaded`` has them."""

_STATE = 12  # bytes on the host: fp32 main copy and Adam's moments
_STAGED = 16  # the same and a fp32 gradient, of one bucket on the device
_INDEX = 4


@dataclass(frozen=True)
class Shard:
    """Parameters of one rank, for every candidate."""

    layers: Ints
    layer: Floats  # the matrices of one layer, with its experts
    embedding: Floats
    head: Floats  # 0 where it is the embedding itself
    routed: Floats  # of the layers', what belongs to experts
    vectors: Floats  # norms, biases and positions
    pruned: Floats  # of the matrices, those that lose elements, before they do

    @cached_property
    def matrices(self) -> Floats:
        """All of them."""
        return self.layers * self.layer + self.embedding + self.head

    @cached_property
    def parameters(self) -> Floats:
        """All together."""
        return self.matrices + self.vectors


def layers_of_stages(case: Case, c: Candidates) -> tuple[Ints, Ints]:
    """Layers of the first rank of a pipeline, and of the last, over all their virtual stages."""
    first, _, last = layers_of_ranks(case, c)
    return first, last


def shard(case: Case, c: Candidates, *, is_last: bool) -> Shard:
    """What one rank of the first or the last stage holds: matrices over x·y·z, vectors over x or y."""
    alone = c.pipeline == 1
    begins, ends = (alone, True) if is_last else (True, alone)
    return _shard(case, c, layers_of_stages(case, c)[1 if is_last else 0], begins=begins, ends=ends)


def inner_shard(case: Case, c: Candidates) -> Shard:
    """What the fullest rank between the first and the last stage holds."""
    nowhere = np.zeros(len(c), dtype=np.bool_)
    return _shard(case, c, layers_of_ranks(case, c).inner, begins=nowhere, ends=nowhere)


def _shard(case: Case, c: Candidates, layers: Ints, *, begins: Bools | bool, ends: Bools | bool) -> Shard:
    model, alone, tensor = case.model, c.pipeline == 1, c.tensor
    vocabulary = model.vocab * model.hidden / tensor
    positions = model.embedding_parameters - model.vocab * model.hidden
    norm = model.head_parameters - (0 if model.tied else model.vocab * model.hidden)
    # A tied head is the embedding itself in a pipeline of one stage and a copy of it otherwise.
    own_head = ends * (~alone if model.tied else np.ones(len(c), dtype=np.bool_))
    routed = sum(_routed_sizes(model)) / (tensor * c.expert)
    layer = sum(_dense_sizes(model)) / tensor + routed
    held = (layers * layer, begins * vocabulary, own_head * vocabulary)
    return Shard(
        layers=layers,
        layer=layer,
        embedding=held[1],
        head=held[2],
        routed=layers * routed,
        vectors=layers * _layer_vectors(case, c) + begins * (positions / c.y) + ends * (norm / c.y),
        pruned=_pruned(case, held),
    )


def _pruned(case: Case, held: tuple[Floats, ...]) -> Floats:
    """Elements of layers, embedding and head that lose some."""
    nothing: Floats = np.zeros(len(held[0]))
    if case.training.pruning is None:
        return nothing
    return sum((share * part for share, part in zip(_pruned_shares(case), held, strict=True)), nothing)


def kept(held: Shard, sparsity: float) -> Floats:
    """Elements that are trained."""
    return held.parameters - sparsity * held.pruned if sparsity else held.parameters


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
    return np.where(lean, case.element_bytes, case.engine.keeps.recipe(case.training.precision).gradients)


def on_device(case: Case, c: Candidates, held: Shard, sparsity: float) -> dict[str, Floats]:
    """Bytes by TERMS, all there at any time but "main gradients", which are made for the update."""
    keeps = case.engine.keeps
    recipe = keeps.recipe(case.training.precision)
    away = c.offloaded == PARAMETERS
    trained, copies = kept(held, sparsity), _copies(held, sparsity)
    weights = held.vectors + np.where(away, 0.0, held.matrices + copies)
    gradients = np.where(away, held.vectors, trained)
    # Sharded fp32 weights are their own main copy.
    own_main = (c.zero == 3) & keeps.fp32_shards & (recipe.weights < FP32.weights)
    weight = np.where(own_main, FP32.weights, recipe.weights)
    optimizer = np.where(own_main, FP32.optimizer, recipe.optimizer)
    return {
        "weights": weight * _shared(c, weights, held, c.zero == 3),
        "gradients": gradient_bytes(case, c, sparsity) * _shared(c, gradients, held, c.zero >= 2),
        "optimizer state": (c.offloaded == 0) * optimizer * _shared(c, trained, held, c.zero >= 1),
        "main gradients": (c.offloaded == 0) * recipe.updating * _shared(c, trained, held, c.zero >= 1),
        "sparse index": _INDEX * copies,
        "update staging": _staged(case, c, sparsity, np.where(away, held.vectors, trained)),
    }


def _shared(c: Candidates, elements: Floats, held: Shard, shared: Bools) -> Floats:
    """What of ``elements`` a rank keeps where replicas share them; those of an expert are fewer."""
    if not shared.any():
        return elements
    replicas = c.data * c.context
    routed = np.minimum(held.routed, elements)
    part = (elements + routed * (c.expert - 1)) / replicas
    return np.where(shared, part, elements)


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


def _staged(case: Case, c: Candidates, sparsity: float, trained: Floats) -> Floats:
    """Bytes on the device of the bucket that is being updated."""
    gradient = 4 if sparsity > 0 and case.element_bytes == 2 else 0
    offloaded = c.offloaded > 0
    if not (gradient or offloaded.any()):
        return np.zeros(len(c))
    bucket = np.minimum(bucket_elements(case), trained) / c.owners
    return np.where(offloaded, _STAGED, gradient) * bucket


def _copies(held: Shard, sparsity: float) -> Floats:
    """Kept elements of pruned matrices, which lie side by side as well as in the dense weights."""
    return (1 - sparsity if sparsity else 0.0) * held.pruned


def _sizes(model: Model) -> list[int]:
    """Elements of the matrices of a layer, in the order of their use; of one expert."""
    return [matrix.rows * matrix.columns for matrix in model.layer_matrices]


def _dense_sizes(model: Model) -> list[int]:
    """Those that all tokens go through: attention, and the MLP where there is one, or the router."""
    return _sizes(model) if model.experts == 1 else [*_sizes(model)[:2], model.router_parameters]


def _routed_sizes(model: Model) -> list[int]:
    """Those of all experts of a layer."""
    return [] if model.experts == 1 else [model.experts * size for size in _sizes(model)[2:]]


def in_use(case: Case, c: Candidates) -> tuple[Floats, Floats]:
    """With offloaded parameters, bytes of two matrices used in turn: within a layer, at the vocabulary."""
    sizes = _sizes(case.model)
    within = max(one + following for one, following in pairwise([*sizes, sizes[0]]))
    vocabulary = case.model.vocab * case.model.hidden + max(sizes[0], sizes[-1])
    each = (c.offloaded == PARAMETERS) * case.element_bytes / c.tensor
    return within * each, vocabulary * each


def _layer_vectors(case: Case, c: Candidates) -> Floats:
    """Of one layer: norms over y, biases over their outputs' axis."""
    model = case.model
    if model.family == "llama":
        return 2 * model.hidden / c.y
    qkv, out, up, down = (matrix.rows for matrix in model.layer_matrices)
    return (qkv + up) / c.x + (out + down + 4 * model.hidden) / c.y


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
