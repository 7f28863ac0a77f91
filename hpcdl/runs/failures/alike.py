"""The ends of many logs shown once: ranks that ended with the same words belong together. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_PREFIX = re.compile(r"\[rank\d+\]:\s?")  # torch puts it before every line of a traceback
_EXIT = re.compile(r"exit code \d+")  # what a rank's log has of a program that was started in its place
_VARIES = re.compile(
    r"0x[0-9a-fA-F]+|\d+"
)  # addresses, times, ports, and numbers of ranks, hosts and processes


@dataclass(frozen=True)
class Ending:
    """Ranks whose logs end alike.

    Args:
        ranks: in order.
        lines: how the log of the first of them ends.
    """

    ranks: tuple[int, ...]
    lines: tuple[str, ...]

    @property
    def last_line(self) -> str:
        """Where Python names the exception: the last line that is neither empty nor only an exit code."""
        told = [line.strip() for line in self.lines if line.strip()]
        said = [line for line in told if not _EXIT.fullmatch(line)]
        return (said or told or [""])[-1]


def closing(lines: Sequence[str]) -> list[str]:
    """The part of a log that tells of its end: from its last traceback on, or everything if there is none.

    Tracebacks that Python chains to the last one, because one exception led to the other, belong to it.
    """
    bare = [_PREFIX.sub("", line, count=1) if line.startswith("[rank") else line for line in lines]
    starts = [number for number, line in enumerate(bare) if line == _TRACEBACK]
    while len(starts) > 1 and _is_chained(bare[starts[-2] : starts[-1]]):
        starts.pop()
    return bare[starts[-1] :] if starts else bare


def _is_chained(between: Sequence[str]) -> bool:
    return any(line.startswith(_CHAINED) for line in between)


def masked(lines: Iterable[str]) -> tuple[str, ...]:
    """Lines without what differs between ranks that fail in the same way."""
    return tuple(_VARIES.sub("#", line.rstrip()) for line in lines)


def alike(logs: Mapping[int, Sequence[str]], first: int | None = None) -> list[Ending]:
    """Ranks grouped by how their logs end.

    Args:
        logs: the last lines of each rank's log.
        first: the rank whose group comes first, shown with its own lines; the others follow by rank.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for rank in sorted(logs):
        groups[masked(closing(logs[rank]))].append(rank)
    endings = []
    for ranks in groups.values():
        shown = first if first in ranks else ranks[0]
        endings.append(Ending(tuple(ranks), tuple(closing(logs[shown]))))
    return sorted(endings, key=lambda ending: (first not in ending.ranks, ending.ranks))


def spans(ranks: Iterable[int]) -> str:
    """Ranks in few words: ``rank 3``, ``ranks 0-3, 7``."""
    ordered = sorted(set(ranks))
    runs = [list(run) for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])]
    parts = [f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs]
    return f"{'rank' if len(ordered) == 1 else 'ranks'} {', '.join(parts)}"
