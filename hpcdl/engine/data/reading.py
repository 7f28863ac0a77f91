"""From an experiment to the batches of one rank, whoever brings the data."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from hpcdl.engine.data.loader import Batches, Portion, Share
from hpcdl.engine.data.own import OwnBatches
from hpcdl.engine.data.prepare import Prepared, agreed
from hpcdl.engine.program import load_program
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.experiment import Experiment


class Readable(Protocol):
    """One rank's share of every batch."""

    def rows(self, step: int) -> Portion:
        """Of one step; the first step is 1."""

    def held_out(self) -> list[Portion]:
        """What is evaluated on, in pieces no larger than a training batch."""


class Reading:
    """The data of one run as one rank sees them; rank 0 prepares text while others go on.

    Args:
        experiment: what is read.
        folder: where prepared data lie.
        first: whether this is rank 0.
    """

    def __init__(self, experiment: Experiment, folder: Path, *, first: bool) -> None:
        self._experiment = experiment
        self._folder = folder
        self._first = first
        self._worker = ThreadPoolExecutor(max_workers=1)
        prepares = first and not isinstance(experiment.model, EntryModel)
        self._making: Future[int] = self._worker.submit(self._prepared().make if prepares else int)

    def _prepared(self) -> Prepared:
        return Prepared(self._folder, self._experiment.data, self._experiment.shape)

    def batches(self, of_rank_0: Callable[[int], int], share: Share) -> Readable:
        """The batches, once rank 0 has prepared what they are made of; called by all ranks.

        Args:
            of_rank_0: called by every rank; returns the number that rank 0 called it with.
            share: what this rank takes.
        """
        model = self._experiment.model
        with self._worker:
            if isinstance(model, EntryModel):
                return OwnBatches(load_program(model), self._experiment, share)
            number = agreed(self._making, of_rank_0)
        prepared = self._prepared()
        batches = Batches(prepared.open(number), self._experiment, share)
        if self._first:  # only now: data that nothing could be trained on may be mended, and looked at anew
            prepared.begin(number)
        return batches
