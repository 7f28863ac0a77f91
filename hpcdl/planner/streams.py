"""Kernels between the products of a layer: how many elements they read and write.

Forward, in elements of the residual stream: a norm reads and writes it, a residual reads two and writes one,
each twice a layer. Backward a norm reads its input and the gradient for the input's and once more for the
weight's, and writes one; a residual adds two gradients. What attention gives is copied. The activation reads
what ``mlp.up`` gives and writes what ``mlp.down`` takes; its backward reads both and writes one. Rotary
positions turn queries and keys. Where there are biases their gradients read all outputs once.

Dropout after attention and the MLP reads, writes and keeps a byte; fused with the residual (Megatron's jitted
kernels, torch.compile) only the byte is added. Not fused, SwiGLU is two kernels and a rotation five.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Candidates, Floats

_NORMS, _RESIDUALS = (4.0, 10.0), (6.0, 6.0)
_DROPOUT, _DROPOUT_FUSED = (5.0, 5.0), (1.0, 5.0)
_COPY = 2.0
_ROTATION, _ROTATION_FUSED = 10.0, 2.0


class Elements(NamedTuple):
    """Read and written by one layer for one microbatch, on a rank."""

    forward: Floats
    backward: Floats


def elements(case: Case, c: Candidates) -> Elements:
    """Of all kernels of one layer that are neither products nor attention's core."""
    model = case.model
    tokens = case.tokens(c)
    stream = tokens * model.hidden / (c.y * np.where(c.sequence_parallel, c.x, 1))
    inner = tokens / c.x
    dropout = (_DROPOUT_FUSED if case.engine.kernels.fused else _DROPOUT) if case.drops else (0.0, 0.0)
    along, across = (
        np.array(pair) for pair in ((_NORMS, _RESIDUALS, dropout), (_inner(case), _biases(case)))
    )
    (forward, backward), (forward_inner, backward_inner) = along.sum(axis=0), across.sum(axis=0)
    return Elements(stream * forward + inner * forward_inner, stream * backward + inner * backward_inner)


def _inner(case: Case) -> tuple[float, float]:
    """Of widths that x cuts, forward and backward: attention's output, rotation, activation."""
    model, fused = case.model, case.engine.kernels.fused
    up, ffn = model.layer_matrices[2].rows, model.ffn
    forward, backward = _COPY * model.hidden + up + ffn, _COPY * model.hidden + 2 * up + ffn
    if model.family == "gpt":
        return forward, backward
    turned = (model.heads + model.kv_heads) * model.head_size
    turning = (_ROTATION_FUSED if fused else _ROTATION) * turned
    gate, gate_back = (0, 0) if fused else (2 * ffn, 4 * ffn)
    return forward + turning + gate, backward + turning + gate_back


def _biases(case: Case) -> tuple[float, float]:
    outputs = sum(matrix.rows for matrix in case.model.layer_matrices)
    return 0.0, float(outputs) if case.model.family == "gpt" else 0.0
