"""The batches of a run, cut for one rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hpcdl.engine.data.sampler import Epochs, Mixture, shard_rows, step_positions
from hpcdl.engine.data.windows import IGNORED, Windows
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Experiment

Integers = npt.NDArray[np.int64]

_NOTHING = -1  # in the place of a sequence: a row without targets


@dataclass(frozen=True)
class Portion:
    """One rank's share of a batch. B: rows of one batch shard, L: tokens a sequence."""

    inputs_BL: torch.Tensor
    targets_BL: torch.Tensor  # IGNORED where nothing is to be predicted
    counted: int  # targets of the whole batch that are not ignored
    taken: int  # the same, one that is in several shares as often


@dataclass(frozen=True)
class Share:
    """Which part of every batch a rank takes.

    Args:
        shard: which of ``shards`` parts.
        shards: parts of a batch.
        reads: whether the rank looks at tokens at all; stages in the middle of a pipeline do not.
    """

    shard: int = 0
    shards: int = 1
    reads: bool = True


class Batches:
    """Sequences of next-token prediction, the last ones of each source held out.

    Args:
        sources: their sequences.
        experiment: how they are mixed, split and put into batches.
        share: what this rank takes.
    """

    def __init__(self, sources: Sequence[Windows], experiment: Experiment, share: Share) -> None:
        self._sources = sources
        self._experiment = experiment
        self._share = share
        self._mixture = Mixture(experiment.data.quotas)
        self._trained = [self._split(index) for index in range(len(sources))]
        self._epochs = [
            Epochs(trained, experiment.training.seed, index) for index, trained in enumerate(self._trained)
        ]

    def _split(self, index: int) -> int:
        """How many sequences of a source are trained on; the rest is held out."""
        source = self._experiment.data.all_sources[index]
        sequences, share = len(self._sources[index]), self._experiment.data.validation
        trained = sequences - math.ceil(sequences * share)
        name, length = source.path or source.source, self._experiment.shape.sequence
        if not sequences:
            fit = self._experiment.data.packing == "fit"
            short = "no document of two" if fit else f"less than one sequence of {length} and its target"
            raise EngineError(
                f"the {source.source} in {name} has {self._sources[index].tokens} tokens, {short}",
                "give more of it, or a smaller model.sequence",
            )
        if not trained:
            raise EngineError(
                f"the {source.source} in {name} makes {sequences} sequences of {length}, and data.validation "
                f"{share} holds all of them out",
                "give more of it, or a smaller data.validation",
            )
        return trained

    def rows(self, step: int) -> Portion:
        """This rank's share of one step; the first step is 1."""
        sources, positions = self._mixture.at(step_positions(step, self._experiment.training.global_batch))
        indices = np.empty_like(positions)
        for source in np.unique(sources):
            of_source = sources == source
            indices[of_source] = self._epochs[source].at(positions[of_source])
        return self._read(sources, indices)

    def held_out(self) -> list[Portion]:
        """The sequences to evaluate on, always the same, in pieces no larger than a training batch.

        Sources have the shares that they have in training, and no sequence is taken twice. Where the shards
        cannot share the last piece evenly, rows without targets make up for it: a run that goes on with
        other shards has the same sequences.
        """
        wanted = self._experiment.evaluation.sequences
        sources, positions = self._mixture.at(np.arange(wanted))
        indices = np.array(self._trained)[sources] + positions
        there = indices < np.array([len(source) for source in self._sources])[sources]
        available = wanted if there.all() else int(np.argmin(there))
        padding = (0, -available % self._share.shards)
        sources = np.pad(sources[:available], padding)
        indices = np.pad(indices[:available], padding, constant_values=_NOTHING)
        batch = self._experiment.training.global_batch
        cuts = [slice(start, start + batch) for start in range(0, available, batch)]
        return [self._read(sources[cut], indices[cut]) for cut in cuts]

    def _read(self, sources: Integers, indices: Integers) -> Portion:
        """This rank's share of the batch of ``indices``."""
        own = shard_rows(len(sources), self._share.shard, self._share.shards)
        counted = sum(
            self._sources[source].counted(indices[(sources == source) & (indices != _NOTHING)])
            for source in np.unique(sources)
        )
        own_rows = zip(sources[own].tolist(), indices[own].tolist(), strict=True)
        if not self._share.reads:
            nothing_BL = torch.zeros(
                (own.stop - own.start, self._experiment.shape.sequence), dtype=torch.int64
            )
            return Portion(nothing_BL, nothing_BL, counted, counted)
        read = [self._row(source, index) for source, index in own_rows]
        inputs_BL, targets_BL = (torch.from_numpy(np.stack(part)) for part in zip(*read, strict=True))
        return Portion(inputs_BL, targets_BL, counted, counted)

    def _row(self, source: int, index: int) -> tuple[Integers, Integers]:
        if index == _NOTHING:
            length = self._experiment.shape.sequence
            return np.zeros(length, dtype=np.int64), np.full(length, IGNORED)
        return self._sources[source].read(index)
