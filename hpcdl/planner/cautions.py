"""Settings that work but save no memory, which somebody should hear of before a node-hour is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hpcdl.planner import state
from hpcdl.planner.case import Case
from hpcdl.planner.offload import largest_shard
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.training import BREAK_EVEN
from hpcdl.units import format_bytes


def cautions(case: Case, chosen: Decomposition) -> tuple[str, ...]:
    """One sentence each, with the figures."""
    return (*_low_sparsity(case, chosen), *_large_bucket(case, chosen))


def _low_sparsity(case: Case, chosen: Decomposition) -> Iterator[str]:
    pruning = case.training.pruning
    if pruning is None:
        return
    dense_case = replace(case, training=case.training.model_copy(update={"pruning": None}))
    pruned, dense = _state_bytes(case, chosen), _state_bytes(dense_case, chosen)
    if pruning.sparsity >= BREAK_EVEN and pruned < dense:
        return
    yield (
        f"training.pruning.sparsity {pruning.sparsity:g} saves little or no memory: weights, gradients and "
        f"optimizer state take {format_bytes(pruned)} a rank pruned and {format_bytes(dense)} dense; it is "
        f"meant for {BREAK_EVEN:g} and more"
    )


def _state_bytes(case: Case, chosen: Decomposition) -> float:
    c, sparsity = Candidates.of(chosen), state.sparsity(case)
    ends = [state.shard(case, c, is_last=end) for end in (False, True)]
    held = (
        sum(state.on_device(case, c, end, sparsity).values()) + state.on_host(case, c, end, sparsity)
        for end in ends
    )
    return float(np.max(list(held)))


def _large_bucket(case: Case, chosen: Decomposition) -> Iterator[str]:
    c = Candidates.of(chosen)
    parameters, bucket = int(largest_shard(case, c)[0]), state.bucket_elements(case)
    if chosen.offload == "none" or bucket <= parameters:
        return
    mib = case.training.bucket_mib
    yield (
        f"training.bucket_mib {mib:g} is a bucket of {bucket} elements, more than the {parameters} "
        f"parameters that a rank holds: all of the offloaded state is brought to the device at once. A "
        f"bucket_mib below {parameters * 4 / 2**20:.2g} saves more"
    )
