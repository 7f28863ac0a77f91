"""What a rank communicates: the collectives of every part of a model, in seconds a microbatch or a step.

Volumes are equations 1 to 6 of the SC'24 AxoNN paper (arXiv 2502.08145): for a linear layer O = I·W with
W cut over x·y and sharded over z, the weight is gathered over z (forward and backward), its gradient
reduce-scattered over z, the output all-reduced over y, the input's gradient over x; layers stored
transposed swap x and y.

Sequence parallelism (Korthikanti et al. 2022) makes of each all-reduce over x a gather and a scatter of the
same volume, and gathers each input once more for its weight's gradient. ZeRO-3 and FSDP gather the weights of
a layer over data for forward and again for backward and scatter its gradient, for every microbatch
(Rajbhandari et al. 2020, section 7). A ring of attention passes keys and values on, and in backward their
gradients with them (Liu et al. 2023). Experts take and give back what each token brings to those it goes
through, in forward and in backward (Lepikhin et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hpcdl.planner import state
from hpcdl.planner.fabric import REPLICAS, Fabric
from hpcdl.planner.space import Floats, Ints
from hpcdl.spec.model import Matrix
from hpcdl.units import MIB


class Traffic(NamedTuple):
    """Seconds a microbatch, in each direction."""

    forward: Floats
    backward: Floats

    @property
    def total(self) -> Floats:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Linear:
    """The collectives of one linear layer, seconds a microbatch.

    ``forward`` is along ``inner_axis``, the contraction's, ``backward`` along ``output_axis``. Under sequence
    parallelism both are ``stream``, over x, and ``again`` is a backward's second gather of the input.
    ``gather`` is one gather of the weight over z; the scatter of its gradient takes as long.
    """

    inner_axis: str
    output_axis: str
    forward: Floats
    backward: Floats
    stream: Floats
    again: Floats
    gather: Floats


class Shards(NamedTuple):
    """What sharding over data costs one part of a model, seconds a microbatch."""

    forward: Floats  # a gather of its weights
    backward: Floats  # another one
    scatter: Floats
    copied: Floats  # on the device, for each of them


def linears(fabric: Fabric) -> list[Linear]:
    """The linear layers of one transformer layer, in their order."""
    matrices = fabric.case.model.layer_matrices
    return [linear(fabric, matrix, transposed=place % 2 == 1) for place, matrix in enumerate(matrices)]


def linear(fabric: Fabric, matrix: Matrix, *, transposed: bool) -> Linear:
    """One linear layer: ``matrix.rows`` outputs, of ``matrix.columns`` inputs."""
    case, c = fabric.case, fabric.candidates
    output_axis, inner_axis = ("y", "x") if transposed else ("x", "y")
    tokens = case.tokens(c) * case.element_bytes
    output = fabric.all_reduce(tokens * matrix.rows / fabric.size(output_axis), inner_axis)
    gradient = fabric.all_reduce(tokens * matrix.columns / fabric.size(inner_axis), output_axis)
    stream = 0.0 * output
    if c.sequence_parallel.any():
        whole = tokens * (matrix.rows if transposed else matrix.columns)
        stream = c.sequence_parallel * fabric.gather(whole, "x")
        output, gradient = (np.where(c.sequence_parallel, 0.0, each) for each in (output, gradient))
    again = stream * (not transposed)
    weight = fabric.gather(matrix.rows * matrix.columns / (c.x * c.y) * case.element_bytes, "z")
    return Linear(inner_axis, output_axis, output, gradient, stream, again, weight)


def moments(fabric: Fabric) -> Floats:
    """Two norms of a layer in one direction: the moments of every token summed over y."""
    return 2 * fabric.all_reduce(_tokens(fabric) * 8.0, "y")


def head(fabric: Fabric) -> Linear:
    """LM head."""
    model = fabric.case.model
    return linear(fabric, Matrix("head.weight", model.vocab, model.hidden), transposed=False)


def loss(fabric: Fabric) -> Floats:
    """Cross-entropy over a vocabulary cut over x: the largest logit, the sum, the target's logit."""
    return 3 * fabric.all_reduce(_tokens(fabric) * 4.0, "x")


def embedding(fabric: Fabric) -> dict[str, Traffic]:
    """Token embedding, by tensor axis: rows over x are looked up and summed."""
    case, c = fabric.case, fabric.candidates
    output = fabric.all_reduce(_tokens(fabric) * case.model.hidden / c.y * case.element_bytes, "x")
    weight = case.model.vocab * case.model.hidden / (c.x * c.y) * case.element_bytes
    gathered = fabric.gather(weight, "z")
    return {"x": Traffic(output, 0.0 * output), "z": Traffic(gathered, gathered)}


def shards(fabric: Fabric, elements: Floats) -> Shards:
    """ZeRO-2 and 3 for a part of a model with so many ``elements`` a rank when gathered over data.

    ZeRO-2 scatters the gradient of every microbatch, as no rank keeps all of it; where the engine reshards,
    it gathers weights before the forward and keeps them for the backward.
    """
    case, c = fabric.case, fabric.candidates
    if not (c.zero > 1).any():
        return Shards(*(4 * [0.0 * elements]))
    gathered = fabric.gather(elements * case.element_bytes, REPLICAS)
    scattered = fabric.gather(elements * _gradient_bytes(fabric), REPLICAS)
    forward = (c.zero == 3) | (c.zero == 2) & case.engine.exchange.reshards
    copied = (c.zero > 1) * elements * case.engine.exchange.copied_bytes / case.memory_rate
    return Shards(forward * gathered, (c.zero == 3) * gathered, (c.zero > 1) * scattered, copied)


def layer_elements(fabric: Fabric) -> Floats:
    """Elements of one layer's matrices on a rank that has gathered them, with its share of experts."""
    model, c = fabric.case.model, fabric.candidates
    sizes = [matrix.rows * matrix.columns for matrix in model.layer_matrices]
    experts = model.experts / c.expert * sum(sizes[2:])
    elements: Floats = (sum(sizes[:2]) + experts) / c.tensor
    return elements


def vocabulary_elements(fabric: Fabric) -> Floats:
    """Elements of the embedding, or of the head, on a rank that has gathered them."""
    model = fabric.case.model
    elements: Floats = model.vocab * model.hidden / fabric.candidates.tensor
    return elements


def context(fabric: Fabric) -> Traffic:
    """Context parallelism in one layer: keys and values go round, in backward with their gradients.

    Or all parts are gathered before attention, and their gradients scattered after it.
    """
    case, c = fabric.case, fabric.candidates
    model = case.model
    if not (c.context > 1).any():
        return Traffic(0.0 * c.context, 0.0 * c.context)
    part = _tokens(fabric) * 2 * model.kv_heads * model.head_size / c.x * case.element_bytes
    if case.engine.exchange.gathers_context:
        gathered = fabric.gather(part * c.context, "context")
        return Traffic(gathered, 2 * gathered)
    hops = (c.context - 1) * fabric.send(part, "context")
    return Traffic(hops, 2 * hops)


def experts(fabric: Fabric) -> Traffic:
    """Expert parallelism in one layer: tokens go to their experts and come back, in both directions."""
    case, c = fabric.case, fabric.candidates
    if not (c.expert > 1).any():
        return Traffic(0.0 * c.expert, 0.0 * c.expert)
    routed = case.model.active_experts * _stream(fabric) * case.element_bytes
    both = 2 * fabric.all_to_all(routed, "expert")
    return Traffic(both, both)


def hop(fabric: Fabric) -> Floats:
    """Handing one microbatch to the next pipeline stage, or its gradient back."""
    c, message = fabric.candidates, _stream(fabric) * fabric.case.element_bytes
    if not fabric.case.engine.exchange.splits_messages:
        return fabric.send(message, "pipeline")
    whole = ~c.sequence_parallel  # otherwise it is in parts already
    gathered = whole * (c.pipeline > 1) * fabric.gather(message, "x")
    return fabric.send(message / np.where(whole, c.x, 1), "pipeline") + gathered


def gradient_reduction(fabric: Fabric, elements: Floats) -> tuple[Floats, Floats]:
    """All of a step's reduction of a rank's gradients, so many ``elements``, and its last chunk.

    The last chunk can hide behind nothing: the backward pass is over when it is full. From ZeRO-2 on there
    is none, as every microbatch scattered its own.
    """
    chunks = np.ceil(4 * elements / (fabric.case.training.chunk_mib * MIB))
    chunk_bytes = elements * _gradient_bytes(fabric) / chunks
    summed = fabric.all_reduce(chunk_bytes, REPLICAS)
    chunk = np.select(
        [fabric.candidates.zero == 0, fabric.candidates.zero == 1],
        [summed, fabric.gather(chunk_bytes, REPLICAS)],
        0.0,
    )
    return chunks * chunk, chunk


def parameter_gather(fabric: Fabric, elements: Floats) -> Floats:
    """New weights after an update that data shared; FSDP gathers them when it next uses them."""
    c, engine = fabric.candidates, fabric.case.engine
    after = (c.zero == 1) | (c.zero == 2) & (not engine.exchange.reshards)
    gathered: Floats = after * fabric.gather(elements * fabric.case.element_bytes, REPLICAS)
    return gathered


def tied_embedding(fabric: Fabric) -> Floats:
    """Summing the gradients of a tied weight that the first and the last stage both hold."""
    model, c = fabric.case.model, fabric.candidates
    if not model.tied:
        return np.zeros(len(c))
    count_bytes = model.vocab * model.hidden / c.tensor * _gradient_bytes(fabric)
    return 2 * fabric.send(count_bytes / 2, "pipeline")


def _gradient_bytes(fabric: Fabric) -> Ints:
    """Bytes of an element when gradients are summed over data."""
    kept = state.gradient_bytes(fabric.case, fabric.candidates, state.sparsity(fabric.case))
    return np.minimum(kept, max(fabric.case.engine.exchange.reduced_bytes, fabric.case.element_bytes))


def _tokens(fabric: Fabric) -> Floats:
    return fabric.case.tokens(fabric.candidates)


def _stream(fabric: Fabric) -> Floats:
    """Elements of what one layer hands to the next: cut over y, or along the sequence over x."""
    c = fabric.candidates
    along = np.where(c.sequence_parallel, c.x, 1)
    stream: Floats = _tokens(fabric) * fabric.case.model.hidden / (c.y * along)
    return stream
