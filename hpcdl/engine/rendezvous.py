"""The bundled engine's meeting: rank 0 opens a store on a port the kernel picks, and the others join it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined] # not in its __all__
from torch.distributed.distributed_c10d import Store

from hpcdl.engine.meeting import CONNECT_S, POLL_S, Address, Meeting, choose_interface
from hpcdl.engine.ranks import Place
from hpcdl.spec.experiment import Rendezvous

_KEY = "rendezvous key"
_READY = "everybody is here"


def meet(place: Place, rules: Rendezvous, file: Path) -> TCPStore:
    """Join the other ranks; returns when every rank has come.

    Args:
        place: this rank.
        rules: how rank 0 finds its address, and how long to wait.
        file: where rank 0 publishes it.

    Raises:
        RanksMissingError: on rank 0, they never came; on the others, it never came.
        EngineError: an address that cannot be reached; on the others, that they waited in vain.
    """
    choose_interface(rules)
    meeting = Meeting(place, rules, file)
    store = meeting.find(_connect) if place.rank else _open(meeting)
    store.set(f"host/{place.rank}", place.host)
    if place.rank:
        _wait(store, meeting)
    else:
        _gather(store, meeting)
    # Groups are made through the store, by ranks that may be this much apart.
    store.set_timeout(timedelta(seconds=rules.timeout_seconds))
    return store


def _open(meeting: Meeting) -> TCPStore:
    size = meeting.place.world_size
    store = TCPStore("0.0.0.0", 0, size, is_master=True, wait_for_workers=False)  # noqa: S104
    published = meeting.publish(store.port)
    store.set(_KEY, published.key)
    return store


def _connect(published: Address) -> TCPStore:
    """The store of rank 0. A stranger that accepts and says nothing would hold a store's maker for ever."""
    made: Future[TCPStore] = Future()
    threading.Thread(target=_try, args=(published, made), name="rendezvous", daemon=True).start()
    try:
        return made.result(3 * CONNECT_S)
    except TimeoutError:
        raise DistStoreError("who listens there says nothing") from None


def _try(published: Address, made: Future[TCPStore]) -> None:
    try:
        made.set_result(_joined(published))
    except (OSError, RuntimeError) as error:
        made.set_exception(error)


def _joined(published: Address) -> TCPStore:
    # A store retries a refused connection for seconds, in which a newer address may be published.
    socket.create_connection((published.address, published.port), timeout=CONNECT_S).close()
    limit = timedelta(seconds=CONNECT_S)
    store = TCPStore(
        published.address, published.port, is_master=False, wait_for_workers=False, timeout=limit
    )
    store.wait([_KEY], limit)
    if store.get(_KEY).decode() != published.key:
        raise DistStoreError("the store there belongs to another run")
    return store


def _gather(store: TCPStore, meeting: Meeting) -> None:
    """Rank 0 waits for every rank and tells the others; so only rank 0 must count."""
    missing = list(range(meeting.place.world_size))
    while missing := [rank for rank in missing if not store.check([f"host/{rank}"])]:
        if meeting.seconds_left < 0:
            came = set(range(meeting.place.world_size)) - set(missing)
            raise meeting.never_came(missing, hosts(store, came))
        time.sleep(POLL_S)
    store.set(_READY, "yes")


def hosts(store: Store, ranks: Iterable[int]) -> dict[int, str]:
    """The nodes of ``ranks`` that have come, by rank."""
    return {rank: store.get(f"host/{rank}").decode() for rank in ranks}


def _wait(store: TCPStore, meeting: Meeting) -> None:
    try:
        store.wait([_READY], timedelta(seconds=max(1.0, meeting.seconds_left + CONNECT_S)))
    except (DistStoreError, RuntimeError):
        raise meeting.waited() from None
