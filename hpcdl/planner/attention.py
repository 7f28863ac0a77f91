"""The core of attention, from queries, keys and values to mixed values, by the kind of kernel that runs it.

``naive`` and ``fused`` keep the whole score square in memory, masked half included: two batched products
forward and four backward, and passes over the square between them. ``flash`` never writes it and skips what the
causal mask hides: half of the FLOPs forward, and five products backward where the forward has two (Dao 2023).
A rank computes heads / x of every microbatch, and 1 / context of the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.products import product
from hpcdl.planner.space import Candidates, Floats

# Reads and writes of a score a forward and a backward, in elements. One kernel for scale, mask and softmax reads
# and writes once, and its backward reads twice and writes once; separate kernels read and write once each
# (and the mask is a byte). Dropout reads, writes, and keeps a byte.
_SOFTMAX = {"fused": (2.0, 3.0), "naive": (6.5, 5.5)}
_DROPOUT = (2.5, 2.5)

# Flash attention gives a thread block 128 queries of one head; blocks differ in length under a causal mask,
# so the last one is waited for: by least errors over 24 shapes of an A100 (SimuMax, a100_pcie.json).
_QUERIES = 128
_TAIL_FORWARD, _TAIL_BACKWARD = 1.4, 0.7
_FLASH_BACKWARD = 2.5
S2 = 1.0


@dataclass(frozen=True)
class Core:
    """Seconds a microbatch of one layer."""

    forward: Floats
    backward: Floats


def core(case: Case, c: Candidates) -> Core:
    """Attention between its two projections."""
    return _flash(case, c) if case.attention == "flash" else _materialised(case, c)


def _flash(case: Case, c: Candidates) -> Core:
    model, profile = case.model, case.profile
    rows = c.microbatch * model.sequence / c.context
    flops = 4 * rows * model.sequence * model.hidden / c.x / 2
    seconds = flops / (case.peak_flops * profile.attention_efficiency * profile.site_efficiency)
    blocks = rows / _QUERIES * model.heads / c.x / max(profile.processors, 1)
    tails = (_TAIL_FORWARD, _TAIL_BACKWARD) if profile.processors else (0.0, 0.0)
    forward, backward = (seconds * (1 + tail / blocks) for tail in tails)
    return Core(forward, _FLASH_BACKWARD / profile.flash_backward * backward)


def _materialised(case: Case, c: Candidates) -> Core:
    model = case.model
    heads = c.microbatch * model.heads / c.x
    queries, keys, width = model.sequence / c.context, model.sequence, model.head_size
    scores = product(case, queries, keys, width, heads)
    mixed = product(case, queries, width, keys, heads)
    gradients = 2 * scores + 2 * mixed
    dropped = np.array(_DROPOUT) if case.drops else np.zeros(2)
    forward, backward = np.array(_SOFTMAX[case.attention]) + dropped
    rate = case.memory_rate / case.profile.memory_efficiency * case.profile.score_efficiency
    one = (S2 if keys > 1024 else 1) * heads * queries * keys * case.element_bytes / rate
    return Core(scores + mixed + forward * one, gradients + backward * one)
