"""What a search has found: the leaders, and the fastest of each value of each choice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpcdl.planner import steady
from hpcdl.planner.case import Case
from hpcdl.planner.estimate import step_seconds
from hpcdl.planner.rank import CHOICES, order
from hpcdl.planner.space import Bools, Candidates, Floats

_COLUMNS = tuple(CHOICES.values())
_CLOSE = 1 + 1e-9  # times nearer than this are the same; the rest is rounding
_FOR_THE_BEST = 1 << 18  # forwards and backwards that are driven to make sure of it: about two seconds
_FOR_THE_OTHERS = 1 << 15  # and to show how long those after it take


@dataclass
class Leaders:
    """Candidates that fit and matter, the fastest first.

    Attributes:
        case: what they are judged by.
        shown: how many are wanted at least.
        slack: how much longer than its least time the best may turn out to take.
        candidates: those kept.
        seconds: of each; what it takes at least where it is not ``driven``.
        driven: whether its pipeline was driven on the clock, or there is none.
    """

    case: Case
    shown: int
    slack: float
    candidates: Candidates = field(default_factory=Candidates.of)
    seconds: Floats = field(default_factory=lambda: np.zeros(0))
    driven: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def limit(self) -> float:
        """What takes longer at least is neither the best nor shown."""
        if len(self) < self.shown:
            return np.inf
        return _CLOSE * max(float(self.seconds[self.shown - 1]), self.slack * float(self.seconds[0]))

    def matter(self, candidates: Candidates, least: Floats, columns: tuple[str, ...] = _COLUMNS) -> Bools:
        """Which may be among those shown, or the fastest that differs from the first in one of ``columns``.

        Args:
            candidates: any.
            least: seconds that each takes at least.
            columns: what of them is final.
        """
        verdict: Bools = least <= self.limit
        for column in columns if len(self) else ():
            values = getattr(self.candidates, column)
            others = self.seconds[values != values[0]]
            nearest = others[0] if len(others) else np.inf
            verdict |= (getattr(candidates, column) != values[0]) & (least < nearest)
        return verdict

    def add(self, candidates: Candidates, least: Floats) -> None:
        """Take in what fits, and let go of what no longer matters."""
        near = self.matter(candidates, least)
        new = candidates.take(near)
        self._sort(
            Candidates.joined([self.candidates, new]),
            np.concatenate([self.seconds, least[near]]),
            np.concatenate([self.driven, new.pipeline == 1]),
        )
        wanted = self.seconds <= self.limit
        for column in _COLUMNS:
            wanted[np.unique(getattr(self.candidates, column), return_index=True)[1]] = True
        self._keep(wanted)

    def settle(self) -> Floats:
        """Drive pipelines until the first is the fastest for certain, then those after it.

        Returns:
            What takes less at least than the best, but was too much to drive. It is let go of.
        """
        self._drive(1, _FOR_THE_BEST)
        self._drive(self.shown, _FOR_THE_OTHERS)
        best = self.seconds[self.driven].min(initial=np.inf)
        doubtful = ~self.driven & (self.seconds < best) & self.driven.any()
        found: Floats = self.seconds[doubtful]
        self._keep(~doubtful)
        return found

    def _drive(self, count: int, operations: int) -> None:
        """Drive the first ``count``, and what comes before them then, as far as ``operations`` last."""
        while not self.driven[:count].all():
            place = int(np.argmin(self.driven[:count]))
            flow = self.candidates.flow(place, self.case.training.global_batch)
            operations -= steady.operations(flow)
            if operations < 0:
                return
            one = self.candidates.take(np.array([place]))
            self.seconds[place] = max(self.seconds[place], step_seconds(self.case, one)[0])
            self.driven[place] = True
            self._sort(self.candidates, self.seconds, self.driven)

    def _sort(self, candidates: Candidates, seconds: Floats, driven: Bools) -> None:
        ordered = order(candidates, seconds)
        self.candidates, self.seconds = candidates.take(ordered), seconds[ordered]
        self.driven = driven[ordered]

    def _keep(self, wanted: Bools) -> None:
        self.candidates, self.seconds = self.candidates.take(wanted), self.seconds[wanted]
        self.driven = self.driven[wanted]
