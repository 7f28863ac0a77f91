"""The core of attention, from queries, keys and values to mixed values, by the kind of kernel that runs it.

``naive`` and ``fused`` keep the whole score square in memory, masked half included: two batched products
forward and four backward, and passes over the square between them. ``flash`` never writes it and skips what
the causal mask hides: half of the FLOPs forward, and five products backward where the forward has two
(Dao 2023).
A rank computes heads / x of every microbatch, and 1 / context of the square.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.products import Product, seconds
from hpcdl.planner.space import Candidates, Floats

# Reads and writes of a score, forward and backward, in elements. One kernel for scale, mask and softmax reads
# and writes once, and its backward reads twice and writes once; separate kernels each read and write, the
# mask a byte. Dropout reads, writes, and keeps a byte.
_SOFTMAX = {"fused": (2.0, 3.0), "naive": (6.5, 7.5)}
_DROPOUT = (2.5, 2.5)

# Flash attention gives a thread block 128 queries of one head. Blocks differ in length under a causal mask,
# so a device waits for a tail of so many blocks a processor: least errors over 16 shapes of an A100 in
# benchmarks/planner/calibration/attention.csv.
QUERIES = 128
TAIL, TAIL_BACKWARD = 1.7, 0.9
_BACKWARD_FLOPS = 2.5
_FIRST = 0.53  # 25 to 40 % of an A100's peak, where version 2 reaches 50 to 73 % (Dao 2023, abstract)


class Core(NamedTuple):
    """Seconds a microbatch of one layer."""

    forward: Floats
    backward: Floats


def core(case: Case, c: Candidates) -> Core:
    """Attention between its two projections."""
    return _flash(case, c) if case.attention == "flash" else _materialised(case, c)


def _flash(case: Case, c: Candidates) -> Core:
    model, profile = case.model, case.profile
    queries = c.microbatch * model.sequence / c.context
    pace = {"first": _FIRST, "second": 1.0, "latest": profile.flash_latest}[case.engine.kernels.flash]
    rate = case.peak_flops * profile.site_efficiency * pace
    flops = 4 * queries * model.sequence * model.hidden / c.x / 2
    waves = queries / QUERIES * model.heads / c.x / max(profile.processors, 1)
    tail, tail_backward = (TAIL, TAIL_BACKWARD) if profile.processors else (0.0, 0.0)
    forward = flops / (rate * profile.flash_efficiency)
    backward = _BACKWARD_FLOPS * flops / (rate * profile.flash_backward_efficiency)
    return Core(forward * (1 + tail / waves), backward * (1 + tail_backward / waves))


def _materialised(case: Case, c: Candidates) -> Core:
    model = case.model
    heads = c.microbatch * model.heads / c.x
    queries, keys, width = model.sequence / c.context, float(model.sequence), float(model.head_size)
    scores = seconds(case, Product(queries, keys, width, heads))
    mixed = seconds(case, Product(queries, width, keys, heads))
    dropout = _DROPOUT if case.drops else (0.0, 0.0)
    forward, backward = np.add(_SOFTMAX[case.attention], dropout)
    once = heads * queries * keys * case.element_bytes / case.score_rate
    return Core(scores + mixed + forward * once, 2 * (scores + mixed) + backward * once)
