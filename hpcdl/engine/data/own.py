"""The batches of a program's own datasets, in an order that is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from hpcdl.engine.data.loader import Portion, Share
from hpcdl.engine.data.sampler import Epochs, shard_rows, step_positions
from hpcdl.engine.program import Program
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Experiment


class OwnBatches:
    """Samples of a program; the counterpart of ``Batches``.

    Args:
        program: brings the datasets.
        experiment: how large batches are.
        share: what this rank takes.
    """

    def __init__(self, program: Program, experiment: Experiment, share: Share) -> None:
        self._program = program
        self._experiment = experiment
        self._share = share
        self._epochs = Epochs(_length(program.data), experiment.training.seed)

    def rows(self, step: int) -> Portion:
        """This rank's share of one step; the first step is 1."""
        positions = step_positions(step, self._experiment.training.global_batch)
        return self._read(self._program.data, self._epochs.at(positions).tolist())

    def held_out(self) -> list[Portion]:
        """The first samples of the validation set, in pieces no larger than a training batch.

        Raises:
            EngineError: there is none, or less than one for each batch shard.
        """
        data, shards = self._program.validation, self._share.shards
        available = 0 if data is None else min(_length(data), self._experiment.evaluation.sequences)
        if available < shards:
            raise EngineError(
                f"the program has {available} samples to evaluate on, not one for each of {shards} shards",
                "give Program.validation, or take evaluation: out of the experiment",
            )
        batch = self._experiment.training.global_batch
        usable = available // shards * shards
        return [
            self._read(data, range(start, min(start + batch, usable))) for start in range(0, usable, batch)
        ]

    def _read(self, data: Any, indices: Sequence[int]) -> Portion:
        own = shard_rows(len(indices), self._share.shard, self._share.shards)
        # A stage in the middle only needs to know how many samples there are.
        chosen = indices[own] if self._share.reads else np.resize(indices[:1], own.stop - own.start).tolist()
        samples = {index: data[index] for index in dict.fromkeys(chosen)}
        inputs, targets = default_collate([samples[index] for index in chosen])
        return Portion(inputs, torch.as_tensor(targets), counted=len(indices), size=len(indices))


def _length(data: Any) -> int:
    return len(data)
