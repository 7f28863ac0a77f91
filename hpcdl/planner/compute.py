"""What computing costs a rank: matrix products under a roofline, attention, streaming kernels, the host.

A product of m×k and k×n takes max(2mkn / (peak · efficiency), bytes / memory rate); its backward is two
such products. No kernel takes less than a floor, and launching a layer's kernels from Python takes the host
a fixed time, which small layers on fast devices never get below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Candidates, Floats

# A backward launches about 1.3 times the forward's kernels: two products for one, but no re-reading of inputs
# (fitted to vTrain's single-node A100 step times).
_HOST_BACKWARD = 1.3
# Flash attention's backward recomputes the scores: five products where the forward has two (Dao 2023).
_ATTENTION_BACKWARD = 2.5
# Kernels of one forward: 4 products, attention, 2 norms, 2 residuals, activation, 2 biases or rotations.
_LAYER_KERNELS = 12


@dataclass(frozen=True)
class Work:
    """Seconds a microbatch."""

    forward: Floats
    backward: Floats
    weight: Floats  # what of the backward is for gradients of weights


def layer(case: Case, c: Candidates) -> Work:
    """One transformer layer on the device."""
    tokens = case.tokens(c)
    products = np.zeros(len(c))
    for position, matrix in enumerate(case.model.layer_matrices):
        over_rows, over_columns = (c.y, c.x) if position % 2 else (c.x, c.y)
        products += _product(case, tokens, matrix.rows / over_rows, matrix.columns / over_columns)
    attention = _attention(case, c)
    streams = _streamed_elements(case, c) * case.element_bytes / case.memory_rate
    floor = np.full(len(c), _LAYER_KERNELS * case.profile.kernel_floor_s)
    forward = np.maximum(products + attention + streams, floor)
    backward = np.maximum(2 * products + _ATTENTION_BACKWARD * attention + 2 * streams, 2 * floor)
    return Work(forward, backward, products)


def core(case: Case, c: Candidates) -> Floats:
    """What selective recomputation does again in one layer: attention's core and the activation."""
    elements = case.tokens(c) * (case.model.layer_matrices[2].rows + case.model.ffn) / c.x
    return _attention(case, c) + elements * case.element_bytes / case.memory_rate


def head(case: Case, c: Candidates) -> Work:
    """LM head and loss: one product, and reading and writing fp32 logits twice."""
    model, tokens = case.model, case.tokens(c)
    product = _product(case, tokens, model.vocab / c.x, model.hidden / c.y)
    logits = 4 * 4 * tokens * model.vocab / c.x / case.memory_rate
    return Work(product + logits, 2 * product + logits, product)


def host(case: Case, work: Work) -> Work:
    """What the host adds to one layer when it launches kernels slower than the device runs them."""
    floor = case.profile.host_floor_s
    forward, backward = floor - work.forward, _HOST_BACKWARD * floor - work.backward
    return Work(np.maximum(0, forward), np.maximum(0, backward), 0 * forward)


def optimizer(case: Case, parameters: Floats) -> Floats:
    """Clipping and AdamW on a rank's ``parameters``: memory traffic only."""
    return parameters * case.profile.optimizer_bytes / case.memory_rate


def _product(case: Case, tokens: Floats, rows: Floats, columns: Floats) -> Floats:
    """Forward of one linear layer as a rank holds it, m = tokens, n = rows, k = columns."""
    flops = 2 * tokens * rows * columns
    elements = tokens * columns + columns * rows + tokens * rows
    at_peak = flops / (case.peak_flops * case.profile.gemm_efficiency)
    return np.maximum(at_peak, elements * case.element_bytes / case.memory_rate)


def _attention(case: Case, c: Candidates) -> Floats:
    """Causal attention over heads cut over x: half the score square is computed.

    ``score_passes`` counts the passes of an attention that is not fused over the whole square.
    """
    model = case.model
    square = c.microbatch * float(model.sequence) ** 2
    flops = 4 * square * model.hidden / c.x / 2
    passes = case.profile.score_passes * square * model.heads / c.x * case.element_bytes
    return flops / (case.peak_flops * case.profile.attention_efficiency) + passes / case.memory_rate


def _streamed_elements(case: Case, c: Candidates) -> Floats:
    """Elements that norms, residuals and the activation read and write in one forward.

    Norms read and write the stream twice, residuals read two and write one, twice; the activation reads all
    that ``mlp.up`` gives and writes what ``mlp.down`` takes.
    """
    model = case.model
    up = model.layer_matrices[2].rows
    return case.tokens(c) * (10 * model.hidden / c.y + (up + model.ffn) / c.x)
