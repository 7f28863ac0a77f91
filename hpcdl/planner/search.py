"""The exact best of a space, most of which is never looked at closely.

Blocks of nodes (``planner.choices``) come in one after the other. Of each node a time is known that none of
its schedules can beat, with as little offloaded as its leanest form allows. Nodes are taken from the least
such time on. Of those that can still matter all schedules are made, with what is offloaded where that can
matter (``planner.offload``); they are judged by memory, and those that fit by the least time of each
(``planner.bound``). At the end the pipelines of the leaders are driven on the clock, from the least time on,
until no other can be as fast.

What can matter is what may be faster than the best, than the last of those shown, or than the fastest known
that differs from the best in some choice. Nothing else is left out, so the best is the best of all, by the
clock. tests/planner/test_planner_search.py compares it with judging everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hpcdl.planner import memory, offload
from hpcdl.planner.case import Case
from hpcdl.planner.choices import Space
from hpcdl.planner.estimate import least_over_schedules, least_step
from hpcdl.planner.leaders import Leaders
from hpcdl.planner.offload import Judged
from hpcdl.planner.space import Candidates, Floats
from hpcdl.spec.decomposition import AXES

Watch = Callable[[int, int], None]
"""Told how many parts of how many of the space are done, where it has several."""

MEMORY = "memory"
"""Why something is refused that keeps all rules."""

_SLACK = 1.25  # times its least time that the best takes on the clock, mostly; otherwise all is done again
_PIECE = 1 << 12  # nodes whose schedules are made at once
_FIXED = (*AXES, "context", "expert", "microbatch", "recomputed", "zero", "ordered", "sequence_parallel")


@dataclass
class Search:
    """One search, and what came of it so far.

    Attributes:
        case: what is asked.
        space: where.
        leaders: those that fit and matter.
        doubtful: what is faster at least than the best, but was too much to drive.
        levels: of offload that there are to choose from.
        activations: whether activations wait on the host, which is tried where nothing fits otherwise.
        fitting, misfits: candidates that were judged by memory.
        slower: those that were not, as they cannot matter.
        leanest: of those that do not fit, the closest without and with something offloaded.
        done: parts of the space that were dealt with.
        interrupted: whether it was stopped.
    """

    case: Case
    space: Space
    leaders: Leaders
    levels: tuple[int, ...]
    activations: bool = False
    fitting: int = 0
    misfits: int = 0
    slower: int = 0
    leanest: dict[bool, Judged] = field(default_factory=dict)
    doubtful: Floats = field(default_factory=lambda: np.zeros(0))
    done: int = 0
    interrupted: bool = False

    @classmethod
    def through(
        cls,
        case: Case,
        shown: int,
        levels: tuple[int, ...] | None = None,
        *,
        activations: bool = False,
        watch: Watch | None = None,
    ) -> Search:
        """The search of all that the engine can run.

        Args:
            case: what is asked.
            shown: how many of the best are wanted.
            levels: of offload, by default all that can help.
            activations: as above.
            watch: told how much is done.
        """
        levels, slack = levels or offload.offload_levels(case), _SLACK
        while True:
            search = cls(case, _space(case), Leaders(case, shown, slack), levels, activations)
            search._run(watch)
            taken = search._settle()
            if taken <= slack or search.interrupted:
                return search
            slack = taken

    def _settle(self) -> float:
        """Make sure of the best; how many times its least time that may be as fast take."""
        leaders = self.leaders
        if not len(leaders):
            return 0.0
        least, reach = float(leaders.seconds[0]), leaders.limit
        self.doubtful = leaders.settle()
        best = float(leaders.seconds[0])
        return 0.0 if best <= reach else best / least

    @property
    def refused(self) -> dict[str, int]:
        """How many cannot run, by the reason."""
        return {**self.space.refused, **({MEMORY: self.misfits} if self.misfits else {})}

    def _run(self, watch: Watch | None) -> None:
        """Go through the whole space; for who watches Ctrl-C ends that, and what was found stands."""
        try:
            for block in self.space.blocks():
                self._go_through(block)
                self.done += 1
                if watch and self.space.parts > 1:
                    watch(self.done, self.space.parts)
        except KeyboardInterrupt:
            if watch is None:
                raise
            self.interrupted = True

    def _go_through(self, block: Candidates) -> None:
        """Look at what matters of a block, the most promising first."""
        if self.activations:
            block = block.take(block.full_recompute)
        floors = self._floors(block, self.levels)
        ordered = np.argsort(floors, kind="stable")
        for first in range(0, len(ordered), _PIECE):
            places = ordered[first : first + _PIECE]
            self._judge(self._worth_a_look(block.take(places), floors[places]))

    def _worth_a_look(self, nodes: Candidates, floors: Floats) -> Candidates:
        """Nodes of which some schedule may fit and matter, with whatever it may have to offload."""
        found = []
        for place, level in enumerate(self.levels):
            if place:
                floors = self._floors(nodes, self.levels[place:])
            matters = self.leaders.matter(nodes, floors, _FIXED)
            self.slower += self._count(nodes.take(~matters))
            nodes = nodes.take(matters)
            roomy = memory.may_fit(self.case, nodes.offloading(level))
            found.append(nodes.take(roomy))
            nodes = nodes.take(~roomy)
        self.misfits += self._count(nodes)
        for level in {self.levels[0], self.levels[-1]} if len(nodes) else ():
            self._note_leanest(Judged.of(self.case, nodes.offloading(level, activations=self.activations)))
        return Candidates.joined(found)

    def _judge(self, nodes: Candidates) -> None:
        """All schedules of these, with what they may have to offload."""
        candidates = self.space.schedules(nodes)
        if not len(candidates):
            return
        judged = offload.variants(self.case, candidates, self.levels, activations=self.activations)
        fits = judged.fitting
        self.fitting += int(fits.sum())
        self.misfits += int((~fits).sum())
        self._note_leanest(judged.take(~fits))
        fitting = judged.candidates.take(fits)
        self.leaders.add(fitting, least_step(self.case, fitting))

    def _floors(self, nodes: Candidates, levels: tuple[int, ...]) -> Floats:
        """What each takes at least that offloads the first of ``levels`` or more, whatever its schedule."""
        level, *more = levels
        floors = self._floor(nodes.offloading(level, activations=self.activations))
        for other in more:
            faster = offload.may_be_faster(self.case, nodes, other)
            floors[faster] = np.minimum(
                floors[faster],
                self._floor(nodes.take(faster).offloading(other, activations=self.activations)),
            )
        return floors

    def _floor(self, nodes: Candidates) -> Floats:
        return least_over_schedules(self.case, nodes) if len(nodes) else np.zeros(0)

    def add_misfits(self, other: Search) -> None:
        """Count what an earlier search of the same found not to fit."""
        self.misfits += other.misfits
        for judged in other.leanest.values():
            self._note_leanest(judged)

    def _count(self, nodes: Candidates) -> int:
        return int(self.space.schedule_counts(nodes).sum())

    def _note_leanest(self, misfits: Judged) -> None:
        """Keep what comes closest to the memory there is, without and with something offloaded."""
        for plain in (True, False):
            places = np.flatnonzero(misfits.candidates.plain == plain)
            if len(places):
                one = misfits.take(places[[np.argmin(misfits.need[places])]])
                known = self.leanest.get(plain)
                self.leanest[plain] = one if known is None or one.need[0] < known.need[0] else known


def _space(case: Case) -> Space:
    """Where to search. On a CPU ranks that wait lend their cores, and what they run is kept simple."""
    batch = case.training.global_batch
    return Space(case.layout.ranks, case.model, batch, case.engine, schedules_matter=not case.on_cpu)
