"""How ranks find each other: rank 0 opens a store on a port the kernel picks and publishes it.

A port chosen beforehand, on another node or from a job id, can be taken. Here nothing is chosen:
rank 0 binds port 0 and writes address and port into the run folder, which all ranks share. What an
earlier try of the same attempt may have left there is recognised by a key: the store must hold the one
that was published with its address, because the port may by now belong to another run.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import struct
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined] # not in its __all__

from hpcdl.engine.ranks import Place
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Rendezvous
from hpcdl.telemetry import write_whole

_POLL_S = 0.05
_CONNECT_S = 5.0  # one try to reach a published address; it may be stale
_SIOCGIFADDR = 0x8915  # asks Linux for an interface's IPv4 address, netdevice(7)
_KEY = "rendezvous key"


def meet(place: Place, rules: Rendezvous, file: Path) -> TCPStore:
    """Join the other ranks; returns when every rank has come.

    Args:
        place: this rank.
        rules: how rank 0 finds its address, and how long to wait.
        file: where rank 0 publishes it.

    Raises:
        EngineError: ranks that never came, by number, or an address that cannot be reached.
    """
    choose_interface(rules)
    deadline = time.monotonic() + rules.timeout_seconds
    store = _open(place, rules, file) if place.rank == 0 else _find(place, file, deadline, rules)
    store.set(f"host/{place.rank}", place.host)
    _wait_for_all(place, store, deadline, rules)
    # Groups are made through the store, by ranks that may be this much apart.
    store.set_timeout(timedelta(seconds=rules.timeout_seconds))
    return store


def choose_interface(rules: Rendezvous) -> None:
    """Tell Gloo and NCCL which network interface to use, unless the environment already does."""
    interface = "lo" if rules.address == "loopback" else rules.interface
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def own_address(rules: Rendezvous) -> str:
    """The address under which other nodes reach this one, by the site's rule.

    Raises:
        EngineError: the interface does not exist here.
    """
    if rules.address == "loopback":
        return "127.0.0.1"
    if rules.address == "hostname" or rules.interface is None:
        return socket.gethostname() + rules.suffix
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", rules.interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise EngineError(
                f"interface {rules.interface!r} has no IPv4 address on {socket.gethostname()}: "
                f"{error.strerror}",
                f"interfaces here: {known}; correct rendezvous.interface in the site file",
            ) from None


def _open(place: Place, rules: Rendezvous, file: Path) -> TCPStore:
    store = TCPStore("0.0.0.0", 0, place.world_size, is_master=True, wait_for_workers=False)  # noqa: S104
    key = secrets.token_hex(8)
    store.set(_KEY, key)
    write_whole(file, json.dumps({"address": own_address(rules), "port": store.port, "key": key}) + "\n")
    return store


def _find(place: Place, file: Path, deadline: float, rules: Rendezvous) -> TCPStore:
    reason = f"{file} never appeared; rank 0 did not start, or the run folder is not shared"
    while time.monotonic() < deadline:
        published = _published(file)
        if published is not None:
            address, port, key = published
            try:
                return _connect(address, port, key)
            except (DistStoreError, RuntimeError, OSError) as error:
                reason = (
                    f"{file} says {address}:{port}, where rank 0 cannot be reached from {place.host}: {error}"
                )
        time.sleep(_POLL_S)
    raise EngineError(
        f"rank {place.rank} did not find rank 0 within {rules.timeout_seconds} s: {reason}",
        "check rendezvous.address, suffix and interface in the site file",
    )


def _published(file: Path) -> tuple[str, int, str] | None:
    """Address, port and key that the newest rank 0 wrote, or an earlier one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content["address"], content["port"], content["key"]
    except (OSError, ValueError, KeyError):
        return None


def _connect(address: str, port: int, key: str) -> TCPStore:
    # A store retries a refused connection for seconds, in which a newer address may be published.
    socket.create_connection((address, port), timeout=_CONNECT_S).close()
    limit = timedelta(seconds=_CONNECT_S)
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit)
    store.wait([_KEY], limit)
    if store.get(_KEY).decode() != key:
        raise DistStoreError("the store there belongs to another run")
    return store


def _wait_for_all(place: Place, store: TCPStore, deadline: float, rules: Rendezvous) -> None:
    """Rank 0 waits for every rank and tells the others; so only rank 0 must count."""
    ready = "everybody is here"
    if place.rank:
        left = timedelta(seconds=max(1.0, deadline - time.monotonic() + _CONNECT_S))
        _await(
            store, [ready], left, f"rank {place.rank} waited {rules.timeout_seconds} s for the others in vain"
        )
        return
    missing = list(range(place.world_size))
    while missing := [rank for rank in missing if not store.check([f"host/{rank}"])]:
        if time.monotonic() > deadline:
            raise EngineError(
                f"{len(missing)} of {place.world_size} ranks never came within {rules.timeout_seconds} s: "
                f"{', '.join(map(str, missing[:16]))}{' …' if len(missing) > 16 else ''}",
                "look at their logs; with transport mpi also check the --mpi= flag of srun",
            )
        time.sleep(_POLL_S)
    store.set(ready, "yes")


def _await(store: TCPStore, keys: list[str], limit: timedelta, message: str) -> None:
    try:
        store.wait(keys, limit)
    except (DistStoreError, RuntimeError):
        raise EngineError(message, "rank 0's log names the ranks that never came") from None
