"""What computing costs a rank: products, attention, kernels that stream, and the host that launches them.

Products are those of ``products``, attention's core that of ``attention``. Norms, residuals, dropout, the
activation and gradients of biases take the time of the bytes that they read and write, and each kernel its
launch. Launching a layer's kernels from Python takes the host a fixed time, which small layers on fast
devices never get below. Of many candidates every shape is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import numpy as np

from hpcdl.planner import attention
from hpcdl.planner.case import Case
from hpcdl.planner.products import Product, is_near, seconds
from hpcdl.planner.space import Candidates, Floats, Ints
from hpcdl.planner.streams import elements
from hpcdl.sites.measured import INPUT, OUTPUT, WEIGHT

# A backward launches about 1.3 times the forward's kernels: two products for one, but no re-reading of inputs
# (fitted to vTrain's single-node A100 step times).
_HOST_BACKWARD = 1.3
# Kernels of one forward: 4 products, attention, 2 norms, 2 residuals, activation, 2 biases or rotations.
_LAYER_KERNELS = 12
_PAD = 128  # words of a rank's vocabulary, Megatron-LM's make_vocab_size_divisible_by
# Bytes a logit of a loss in fp32: to fp32, largest, shifted, exponential, sum, quotient; backward scaled and
# rounded. As Megatron-LM's and hpcdl's vocabulary-parallel losses run them.
_LOSS_FORWARD, _LOSS_BACKWARD = 36, 14


class Work(NamedTuple):
    """Seconds a microbatch."""

    forward: Floats
    backward: Floats
    weight: Floats  # what of the backward is for gradients of weights

    def __add__(self, other: object) -> Work:
        """Both, one after the other."""
        if not isinstance(other, Work):
            return NotImplemented
        return Work(*(mine + its for mine, its in zip(self, other, strict=True)))


_SHAPE = ("x", "y", "context", "expert", "microbatch", "sequence_parallel")


def _once_a_shape(function: Callable[[Case, Candidates], Work]) -> Callable[[Case, Candidates], Work]:
    """The same, computed for candidates of different shapes only; the others take the result of theirs."""

    @wraps(function)
    def computed(case: Case, c: Candidates) -> Work:
        key: Ints = np.zeros(len(c), dtype=np.int64)
        for name in _SHAPE:
            column = getattr(c, name).astype(np.int64)
            key = key * (int(column.max(initial=0)) + 1) + column
        _, first, place = np.unique(key, return_index=True, return_inverse=True)
        return Work(*(part[place] for part in function(case, c.take(first))))

    return computed


@_once_a_shape
def layer(case: Case, c: Candidates) -> Work:
    """One transformer layer on the device."""
    products, core = _products(case, c), attention.core(case, c)
    forward, backward = (count * case.element_bytes / case.memory_rate for count in elements(case, c))
    launches = _LAYER_KERNELS * case.profile.kernel_launch_s
    return Work(
        products.forward + core.forward + forward + launches,
        products.backward + core.backward + backward + 2 * launches,
        products.weight,
    )


def core(case: Case, c: Candidates) -> Floats:
    """Forward of attention's core in one layer."""
    return _core(case, c).forward


@_once_a_shape
def _core(case: Case, c: Candidates) -> Work:
    forward, backward = attention.core(case, c)
    return Work(forward, backward, 0 * forward)


def again(case: Case, c: Candidates) -> Floats:
    """What selective recomputation does once more in one layer, as the engine has it."""
    if case.engine.keeps.selective == "operators":
        one = layer(case, c)
        products = one.weight / 2  # as many FLOPs as all products forward
        return products + np.maximum(0, one.forward - 2 * products - core(case, c))
    if case.engine.keeps.selective == "core":
        return core(case, c)
    activated = case.tokens(c) * (case.model.layer_matrices[2].rows + case.model.ffn) / c.x
    return core(case, c) + activated * case.element_bytes / case.memory_rate


@_once_a_shape
def head(case: Case, c: Candidates) -> Work:
    """LM head and loss; the vocabulary is taken for padded, as Megatron-LM does it."""
    model, tokens = case.model, case.tokens(c)
    work = _linear(case, Product(tokens, _PAD * np.ceil(model.vocab / c.x / _PAD), model.hidden / c.y))
    logits = tokens * model.vocab / c.x / case.memory_rate
    return work + Work(_LOSS_FORWARD * logits, _LOSS_BACKWARD * logits, 0 * logits)


def embedding(case: Case, c: Candidates) -> Work:
    """Token embedding: rows looked up; backward a whole gradient cleared, rows added, and the sum kept."""
    stream = case.tokens(c) * case.model.hidden / c.y * case.element_bytes
    table = case.model.vocab * case.model.hidden / (c.x * c.y)
    summed = 2 * (case.element_bytes + case.engine.keeps.recipe(case.training.precision).gradients) * table
    return Work(2 * stream / case.memory_rate, (3 * stream + summed) / case.memory_rate, 0 * stream)


def host(case: Case, c: Candidates, forward: Floats, backward: Floats) -> tuple[Floats, Floats]:
    """What the host adds to one layer, forward and backward, when it launches slower than the device runs.

    Args:
        case: what runs, and how.
        c: the candidates.
        forward: seconds of a layer on the device, collectives included.
        backward: the same with what is recomputed before it.
    """
    floor = case.profile.host_floor_s * case.engine.kernels.eager
    launching = floor * (_HOST_BACKWARD + c.full_recompute)
    return np.maximum(0, floor - forward), np.maximum(0, launching - backward)


def optimizer(case: Case, parameters: Floats) -> Floats:
    """Clipping and AdamW on a rank's ``parameters``: memory traffic only."""
    return parameters * case.engine.kernels.update_bytes / case.memory_rate


def linears(case: Case, c: Candidates) -> dict[str, Product]:
    """The forward products of a layer as a rank holds them, by the name of their weight.

    An expert's products are one kernel over all experts of a rank, each with its even share of the tokens
    that the ranks of an expert group route.
    """
    model, tokens, one = case.model, case.tokens(c), np.ones(len(c))
    found = {}
    for position, matrix in enumerate(model.layer_matrices):
        over_rows, over_columns = (c.y, c.x) if position % 2 else (c.x, c.y)
        experts, share = one, one
        if model.experts > 1 and position >= 2:
            experts, share = model.experts / c.expert, model.active_experts * c.expert / model.experts
        sizes = tokens * share, matrix.rows / over_rows, matrix.columns / over_columns, experts
        found[matrix.name] = Product(*sizes)
    return found


def unmeasured(case: Case, c: Candidates) -> tuple[str, ...]:
    """Weights whose forward product has none near that was measured, of the first candidate."""
    return tuple(name for name, one in linears(case, c).items() if not is_near(case, one, OUTPUT)[0])


def _products(case: Case, c: Candidates) -> Work:
    first, *others = (_linear(case, one) for one in linears(case, c).values())
    return sum(others, first)


def _linear(case: Case, one: Product) -> Work:
    """One linear layer: its output, the gradient of its input, and the gradient of its weight."""
    tokens, rows, columns, number = one
    inputs = seconds(case, Product(tokens, columns, rows, number), INPUT)
    weight = seconds(case, Product(rows, columns, tokens, number), WEIGHT)
    return Work(seconds(case, one, OUTPUT), inputs + weight, weight)
