"""Looking for signs of life of the other ranks, once this one has stood still for too long.

Every rank would read every other one's file, so the lowest that lives does it for all. Who is lower is looked
at one after the other, one more at each look, until one is found alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hpcdl.engine.ranks import Place
from hpcdl.engine.suspecting import Sight
from hpcdl.telemetry import Heartbeat


@dataclass(frozen=True)
class _Seen:
    heartbeat: Heartbeat | None
    since: float
    moved: bool = False  # whether it was ever another one


class Inquest:
    """What this rank saw of the others since it began to look.

    Args:
        place: this rank.
        read: the newest sign of life of a rank.
        longest_silence: seconds without a sign of life after which a rank counts as silent.
    """

    def __init__(self, place: Place, read: Callable[[int], Heartbeat | None], longest_silence: float) -> None:
        self._rank = place.rank
        self._ranks = place.world_size
        self._read = read
        self._silence = longest_silence
        self._seen: dict[int, _Seen] = {}
        self._lower = 1

    def look(self, now: float) -> list[Sight] | None:
        """What is known of all ranks; None while that is too little, or while a lower one sees to it.

        Args:
            now: seconds of this rank's own clock.
        """
        if not self._leads(now):
            return None
        self._observe((rank for rank in range(self._ranks) if rank != self._rank), now)
        others = [Sight(rank, seen.heartbeat, now - seen.since) for rank, seen in sorted(self._seen.items())]
        known = all(seen.moved or self._is_silent(seen, now) for seen in self._seen.values())
        return others if known else None

    def _leads(self, now: float) -> bool:
        """Whether no lower rank lives."""
        for rank in range(min(self._lower, self._rank)):
            self._observe([rank], now)
            if self._seen[rank].moved and not self._is_silent(self._seen[rank], now):
                return False
        self._lower += 1
        return all(
            rank in self._seen and self._is_silent(self._seen[rank], now) for rank in range(self._rank)
        )

    def _observe(self, ranks: Iterable[int], now: float) -> None:
        for rank in ranks:
            before, heartbeat = self._seen.get(rank), self._read(rank)
            if before is None:
                self._seen[rank] = _Seen(heartbeat, now)
            elif _beat(heartbeat) != _beat(before.heartbeat):
                self._seen[rank] = _Seen(heartbeat, now, moved=True)

    def _is_silent(self, seen: _Seen, now: float) -> bool:
        return now - seen.since >= self._silence


def _beat(heartbeat: Heartbeat | None) -> int | None:
    return heartbeat.beat if heartbeat else None
