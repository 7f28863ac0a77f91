"""Lines of many logs as one text: in the order of time, and said by many only once. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hpcdl.runs.logs.reading import Line
from hpcdl.runs.logs.stamps import said

_TOGETHER_S = 2.0  # the same words of two ranks within this are one line
_WAITING = 20_000  # lines that wait for others to say the same


def woven(logs: Iterable[Iterable[Line]]) -> Iterator[Line]:
    """The lines of several logs by attempt, then by time; of each log in its order.

    Args:
        logs: each in its own order; of two lines of one time that of the earlier log comes first.
    """
    return heapq.merge(*logs, key=lambda line: (line.attempt, line.time))


@dataclass
class Saying:
    """What one or several ranks say.

    Args:
        line: as the first of them says it.
        ranks: who; empty for the batch script and the scheduler.
    """

    line: Line
    ranks: set[int] = field(default_factory=set)


@dataclass
class _Words:
    """The same words, as often as some rank says them, while others may still say so too."""

    sayings: deque[Saying] = field(default_factory=deque)
    gone: int = 0  # sayings that nobody can join any more
    counts: dict[int, int] = field(default_factory=dict)  # rank → the saying that it joins next

    def by(self, line: Line, rank: int) -> Saying | None:
        """Add a line of a rank; returns a new saying if it joins none."""
        place = max(self.counts.get(rank, 0), self.gone)
        self.counts[rank] = place + 1
        new = place == self.gone + len(self.sayings)
        if new:
            self.sayings.append(Saying(line))
        self.sayings[place - self.gone].ranks.add(rank)
        return self.sayings[-1] if new else None


def together(lines: Iterable[Line]) -> Iterator[Saying]:
    """Lines of which several ranks say the same within two seconds as one, where the first says it.

    Words count as the same that differ only in the time stamp before them. What a rank says twice stays
    twice. The batch script speaks for itself.

    Args:
        lines: in the order of time.
    """
    waiting: deque[Saying] = deque()
    words: dict[str, _Words] = {}
    for line in lines:
        while waiting and (len(waiting) >= _WAITING or not _is_near(waiting[0].line, line)):
            yield _closed(waiting.popleft(), words)
        if line.rank is None:
            waiting.append(Saying(line))
        elif new := words.setdefault(said(line.text), _Words()).by(line, line.rank):
            waiting.append(new)
    yield from waiting


def _closed(saying: Saying, words: dict[str, _Words]) -> Saying:
    """The oldest saying that waits; nobody joins it from here on."""
    if saying.ranks:
        same = words[said(saying.line.text)]
        same.sayings.popleft()
        same.gone += 1
        if not same.sayings:
            del words[said(saying.line.text)]
    return saying


def _is_near(first: Line, line: Line) -> bool:
    return first.attempt == line.attempt and line.time - first.time <= _TOGETHER_S
