"""The batches of a program's own datasets, in an order that is a function of the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
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
        """The first samples of the validation set, the same for any number of shards, in pieces.

        The loss of a program knows no sample that does not count. So those that the shards cannot share
        evenly are a piece of their own, in which each stands as often as makes the shares even.

        Raises:
            EngineError: there is none.
        """
        data, shards = self._program.validation, self._share.shards
        available = 0 if data is None else min(_length(data), self._experiment.evaluation.sequences)
        if not available:
            raise EngineError(
                "the program has no samples to evaluate on",
                "give Program.validation, or take evaluation: out of the experiment",
            )
        batch, left = self._experiment.training.global_batch, available % shards
        even = available - left
        pieces = [range(start, min(start + batch, even)) for start in range(0, even, batch)]
        portions = [self._read(data, piece) for piece in pieces]
        if left:
            times = shards // math.gcd(left, shards)
            repeated = self._read(data, np.repeat(range(even, available), times).tolist())
            portions.append(replace(repeated, counted=left))
        return portions

    def _read(self, data: Any, indices: Sequence[int]) -> Portion:
        own = shard_rows(len(indices), self._share.shard, self._share.shards)
        # A stage in the middle only needs to know how many samples there are.
        chosen = indices[own] if self._share.reads else np.resize(indices[:1], own.stop - own.start).tolist()
        samples = {index: data[index] for index in dict.fromkeys(chosen)}
        inputs, targets = default_collate([samples[index] for index in chosen])
        return Portion(inputs, torch.as_tensor(targets), counted=len(indices), taken=len(indices))


def _length(data: Any) -> int:
    return len(data)
