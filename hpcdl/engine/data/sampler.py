"""Which sequences a step trains on: a pure function of the seed and the step, nothing else."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hpcdl.errors import EngineError


def step_indices(step: int, global_batch: int, sequences: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of the sequences of one step, shape (global_batch,).

    Every epoch is a permutation of all sequences, drawn from (seed, epoch); steps take consecutive
    pieces of the endless row of epochs. So the order depends neither on how many ranks read it nor
    on where a run was interrupted.

    Args:
        step: the first is 1.
        global_batch: sequences a step.
        sequences: how many there are.
        seed: of the run.
    """
    positions = np.arange((step - 1) * global_batch, step * global_batch, dtype=np.int64)
    epochs, within = np.divmod(positions, sequences)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        indices[epochs == epoch] = _epoch_order(seed, int(epoch), sequences)[within[epochs == epoch]]
    return indices


@lru_cache(maxsize=2)  # a step rarely spans more; a million sequences take tens of milliseconds to permute
def _epoch_order(seed: int, epoch: int, sequences: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(sequences)


def shard_rows(global_batch: int, shard: int, shards: int) -> slice:
    """The rows of a step that batch shard ``shard`` of ``shards`` takes.

    Raises:
        EngineError: they cannot be shared evenly.
    """
    rows, left = divmod(global_batch, shards)
    if left:
        raise EngineError(
            f"training.global_batch {global_batch} cannot be shared evenly by {shards} batch shards",
            "choose a multiple of data times z",
        )
    return slice(shard * rows, (shard + 1) * rows)
