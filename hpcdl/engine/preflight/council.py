"""All ranks tell rank 0 something, and hear what it makes of it, through the store where they met."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import Store

from hpcdl.engine.nodelist import suspects
from hpcdl.engine.ranks import Place
from hpcdl.engine.rendezvous import hosts
from hpcdl.engine.timeline import Timeline
from hpcdl.errors import HangError, PeerLostError
from hpcdl.units import ranges

_POLL_S = 0.05
_LEAVE_S = 10.0  # how long rank 0, which keeps the store, stays for those that have not heard
_LONGER = 2  # times as long do the others wait: rank 0 knows for whom it waits, so it is to speak first
_NAMED = 8  # nodes in a message


class Council:
    """One rank's seat in it.

    Args:
        store: where the ranks met.
        place: this rank.
        timeline: of this rank; is told where it waits for others.
        seconds: that rank 0 waits for the others.
    """

    def __init__(self, store: Store, place: Place, timeline: Timeline, seconds: int) -> None:
        self._store, self._place, self._timeline, self._seconds = store, place, timeline, seconds

    def tell(self, what: str, words: str) -> list[str]:
        """Say ``words`` of ``what``; rank 0 gets those of all ranks in their order, the others nothing.

        Raises:
            PeerLostError: another rank is gone.
            HangError: on rank 0; some said nothing in that time.
        """
        with self._waiting(what):
            self._store.set(f"preflight/{what}/{self._place.rank}", words)
            if self._place.rank:
                return []
            keys = [f"preflight/{what}/{rank}" for rank in range(self._place.world_size)]
            try:
                self._store.wait(keys, timedelta(seconds=self._seconds))
            except DistStoreError as error:
                late = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                raise self._missing(what, late) from error
            return [told.decode() for told in self._store.multi_get(keys)]

    def hear(self, what: str, words: str) -> str:
        """What rank 0 says of ``what``, the same to all; only its own ``words`` count.

        Raises:
            PeerLostError: rank 0 is gone, or says nothing.
        """
        with self._waiting(what):
            if self._place.rank == 0:
                self._store.set(f"preflight/{what}", words)
                return words
            return self._answer(f"preflight/{what}")

    def hear_each(self, what: str, words: Sequence[str]) -> str:
        """What rank 0 says of ``what`` to this rank; only its own ``words`` count, one a rank.

        Raises:
            PeerLostError: rank 0 is gone, or says nothing.
        """
        with self._waiting(what):
            for rank, own in enumerate(words if self._place.rank == 0 else ()):
                self._store.set(f"preflight/{what}/to {rank}", own)
            return self._answer(f"preflight/{what}/to {self._place.rank}")

    def await_heard(self) -> None:
        """Return on rank 0 when all have come here, or after a while; on the others at once."""
        with self._waiting("leaving"):
            heard = self._store.add("preflight/heard", 1)
            deadline = time.monotonic() + _LEAVE_S
            while self._place.rank == 0 and heard < self._place.world_size and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                heard = self._store.add("preflight/heard", 0)

    def _answer(self, key: str) -> str:
        self._store.wait([key], timedelta(seconds=_LONGER * self._seconds))
        return self._store.get(key).decode()

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        try:
            with self._timeline.waiting(f"{what} of the pre-flight"):
                yield
        except DistStoreError as error:
            raise PeerLostError(
                f"rank 0 said nothing in the pre-flight ({what})", "rank 0's log says what it was at"
            ) from error
        except RuntimeError as error:  # torch's errors of connections are some
            said = str(error).splitlines()[0]
            raise PeerLostError(
                f"another rank went away in the pre-flight ({what}): {said}",
                "the exit records name the rank that failed first",
            ) from error

    def _missing(self, what: str, late: Sequence[int]) -> HangError:
        """What rank 0 says of ranks that came to the meeting and not so far.

        A node is suspected only where it is the one of all that are late: of two that were to exchange
        something, either may have waited for the other.
        """
        of_rank, found = hosts(self._store, range(self._place.world_size)), defaultdict(list)
        for rank in late:
            found[of_rank.pop(rank)].append(rank)
        why = f"did not come to the end of the pre-flight ({what}) within {self._seconds} s"
        who = {host: f"rank{'s' * (len(ranks) > 1)} {ranges(ranks)}" for host, ranks in found.items()}
        named = [f"{ranks} (on {host})" for host, ranks in who.items()]
        alone = suspects({host: tuple(ranks) for host, ranks in found.items()}, of_rank.values())
        return HangError(
            f"{', '.join(named[:_NAMED])}{', …' * (len(named) > _NAMED)} {why}",
            "look at their logs: a device that does not answer, or a network that is up and carries nothing",
            {host: f"{who[host]} {why}" for host in alone} if len(found) == 1 else {},
        )
