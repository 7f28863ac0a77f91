"""Recording chosen steps of all ranks, and putting them together.

A rank's clock is its host's, so before the first traced step all ranks leave a few barriers and note when.
Ranks of one host need none; between hosts that is as good as all leave a barrier at the same time.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

from hpcdl.engine.chrome import RankTrace, merged
from hpcdl.engine.ranks import host_name
from hpcdl.engine.timeline import Span, Taken
from hpcdl.engine.transport.observed import Observed
from hpcdl.run_folder import RunFolder
from hpcdl.spec.decomposition import AXES, Decomposition
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import write_whole

_BARRIERS = 5


class Tracer:
    """The traced steps of one rank.

    Args:
        run: which steps, and the decomposition.
        folder: where traces go.
        transport: reaches the other ranks, and holds the timeline.
    """

    def __init__(self, run: ResolvedRun, folder: RunFolder, transport: Observed) -> None:
        wanted = run.experiment.trace
        last = min(wanted.first + wanted.steps - 1, run.experiment.training.steps)
        self._steps = range(wanted.first, last + 1) if wanted.first else range(0)
        self._decomposition = run.decomposition
        self._folder = folder
        self._transport = transport
        self._started: int | None = None
        self._barriers: list[float] = []
        self._taken: list[Taken] = []

    def begin(self, step: int) -> None:
        """Called by all ranks before ``step``; what happened since the step before is let go."""
        timeline = self._transport.timeline
        if step in self._steps and self._started is None:
            self._barriers = [self._left_barrier() for _ in range(_BARRIERS)]
            self._started = step
        if self._started in (None, step):
            timeline.take()

    def keep(self, taken: Taken) -> None:
        """Keep what a step left on the timeline, if it is traced."""
        if self._started is not None:
            self._taken.append(taken)

    def end(self, step: int) -> None:
        """Called by all ranks after ``step`` and what follows it; after the last one the trace is written."""
        if self._started is None:
            return
        self.keep(self._transport.timeline.take())
        if step == self._steps[-1]:
            self._write(self._started)
            self._started = None
            self._taken.clear()

    def _left_barrier(self) -> float:
        self._transport.barrier()
        return self._transport.timeline.now()

    def _write(self, first: int) -> None:
        rank = self._transport.rank
        trace = RankTrace(
            rank=rank,
            host=host_name(os.environ),
            title=title(self._decomposition, rank),
            order=order(self._decomposition, rank),
            barriers=self._barriers,
            spans=[span for taken in self._taken for span in taken.spans],
            flights=[flight for taken in self._taken for flight in taken.flights],
        )
        write_whole(self._folder.rank_trace(rank), json.dumps(asdict(trace)) + "\n")
        self._transport.barrier()
        if rank == 0:
            whole = merged([self._read(each) for each in range(self._decomposition.ranks)])
            write_whole(self._folder.trace(first, self._steps[-1]), json.dumps(whole) + "\n")

    def _read(self, rank: int) -> RankTrace:
        stored: dict[str, Any] = json.loads(self._folder.rank_trace(rank).read_text(encoding="utf-8"))
        for kind in ("spans", "flights"):
            stored[kind] = [Span(**span) for span in stored[kind]]
        return RankTrace(**stored)


def title(decomposition: Decomposition, rank: int) -> str:
    """``rank`` with its position on every axis that has more than one."""
    here = decomposition.coordinate(rank)
    words = [
        f"{'stage' if axis == 'pipeline' else axis} {getattr(here, axis)}"
        for axis in reversed(AXES)
        if getattr(decomposition, axis) > 1
    ]
    return " · ".join([f"rank {rank}", *words])


def order(decomposition: Decomposition, rank: int) -> int:
    """Where ``rank`` stands in a trace: the stages of one pipeline one below the other."""
    here = decomposition.coordinate(rank)
    pipeline = rank % (decomposition.ranks // decomposition.pipeline)
    return pipeline * decomposition.pipeline + here.pipeline
