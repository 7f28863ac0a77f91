"""What computing costs a rank: matrix products, attention, kernels that stream, and the host that launches them.

Products are those of ``products``, attention's core that of ``attention``. Norms, residuals, dropout, the
activation and gradients of biases take the time of the bytes that they read and write. Launching a layer's
kernels from Python takes the host a fixed time, which small layers on fast devices never get below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdl.planner import attention
from hpcdl.planner.case import Case
from hpcdl.planner.products import product
from hpcdl.planner.space import Candidates, Floats

# A backward launches about 1.3 times the forward's kernels: two products for one, but no re-reading of inputs
# (fitted to vTrain's single-node A100 step times).
_HOST_BACKWARD = 1.3
# Kernels of one forward: 4 products, attention, 2 norms, 2 residuals, activation, 2 biases or rotations.
_LAYER_KERNELS = 12
# Bytes a logit of a loss in fp32: to fp32, largest, shifted, exponential, sum, quotient; backward scaled and
# rounded. As Megatron-LM's and hpcdl's vocabulary-parallel losses run them.
_LOSS_FORWARD, _LOSS_BACKWARD = 36, 14


@dataclass(frozen=True)
class Work:
    """Seconds a microbatch."""

    forward: Floats
    backward: Floats
    weight: Floats  # what of the backward is for gradients of weights


def layer(case: Case, c: Candidates) -> Work:
    """One transformer layer on the device."""
    products, core = _products(case, c), attention.core(case, c)
    reads, gradients = (elements * case.element_bytes / case.memory_rate for elements in _streams(case, c))
    floor = np.full(len(c), _LAYER_KERNELS * case.profile.kernel_floor_s)
    forward = products.forward + core.forward + reads + floor
    backward = products.backward + core.backward + gradients + 2 * floor
    return Work(forward, backward, products.weight)


def core(case: Case, c: Candidates) -> Floats:
    """What selective recomputation does again in one layer: attention's core and the activation."""
    elements = case.tokens(c) * (case.model.layer_matrices[2].rows + case.model.ffn) / c.x
    return attention.core(case, c).forward + elements * case.element_bytes / case.memory_rate


def head(case: Case, c: Candidates) -> Work:
    """LM head and loss."""
    model, tokens = case.model, case.tokens(c)
    work = _linear(case, tokens, model.vocab / c.x, model.hidden / c.y)
    logits = tokens * model.vocab / c.x / case.memory_rate
    return Work(work.forward + _LOSS_FORWARD * logits, work.backward + _LOSS_BACKWARD * logits, work.weight)


def host(case: Case, c: Candidates, forward: Floats, backward: Floats) -> Work:
    """What the host adds to one layer when it launches kernels slower than the device runs them.

    Args:
        case: what runs, and how.
        c: the candidates.
        forward: seconds of a layer's kernels on the device, collectives included.
        backward: the same with what is recomputed before it.
    """
    floor = case.profile.host_floor_s * case.engine.eager
    launching = floor * (_HOST_BACKWARD + c.full_recompute)
    return Work(np.maximum(0, floor - forward), np.maximum(0, launching - backward), 0 * forward)


def optimizer(case: Case, parameters: Floats) -> Floats:
    """Clipping and AdamW on a rank's ``parameters``: memory traffic only."""
    return parameters * case.engine.update_bytes / case.memory_rate


def _products(case: Case, c: Candidates) -> Work:
    """The products of one layer; an expert's are one kernel over all experts that a rank holds."""
    model, tokens = case.model, case.tokens(c)
    total = Work(np.zeros(len(c)), np.zeros(len(c)), np.zeros(len(c)))
    for position, matrix in enumerate(model.layer_matrices):
        over_rows, over_columns = (c.y, c.x) if position % 2 else (c.x, c.y)
        experts, share = 1.0, 1.0
        if model.experts > 1 and position >= 2:
            experts, share = model.experts / c.expert, model.active_experts * c.expert / model.experts
        work = _linear(case, tokens * share, matrix.rows / over_rows, matrix.columns / over_columns, experts)
        total = _sum(total, work)
    return total


def _linear(case: Case, tokens: Floats, rows: Floats, columns: Floats, count: Floats | float = 1.0) -> Work:
    """One linear layer as a rank holds it: its output, the gradient of its input, and of its weight."""
    forward = product(case, tokens, rows, columns, count)
    inputs = product(case, tokens, columns, rows, count)
    weight = product(case, rows, columns, tokens, count, adding=True)
    return Work(forward, inputs + weight, weight)


def _sum(one: Work, other: Work) -> Work:
    return Work(one.forward + other.forward, one.backward + other.backward, one.weight + other.weight)


def _streams(case: Case, c: Candidates) -> tuple[Floats, Floats]:
    """Elements that kernels between the products read and write, forward and backward.

    Forward a norm reads and writes the stream, a residual reads two and writes one, and what attention gives is
    copied. Backward a norm reads its input and two gradients' worth twice, a residual adds two gradients. The
    activation reads what ``mlp.up`` gives and writes what ``mlp.down`` takes; its backward reads both and
    writes one. Where there are biases, their gradients read all outputs once.
    """
    model = case.model
    qkv, out, up, down = (matrix.rows for matrix in model.layer_matrices)
    tokens = case.tokens(c)
    stream = tokens * model.hidden / c.y / np.where(c.sequence_parallel, c.x, 1)
    inner = tokens / c.x
    drop, drop_back = (2 * 2.5, 2 * 2.5) if case.drops else (0.0, 0.0)
    if case.engine.fused:
        drop = drop / 5
    forward = stream * (4 + 6 + drop) + inner * (2 * model.hidden + up + model.ffn)
    biases = qkv + up if model.family == "gpt" else 0
    backward = stream * (10 + 6 + drop_back + (2 if biases else 0))
    backward = backward + inner * (2 * model.hidden + 2 * up + model.ffn + biases)
    return forward, backward
