"""A port of this node that is free, and stays so for the program that is to listen on it.

The port is bound but not listened on, first so that nothing else may be bound to it, then so that a socket
with SO_REUSEADDR may, which torch's store has, like most servers. Who looks for a port as is done here never
gets one that is held. Ports that the system gives to outgoing connections are passed over.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpcdl.errors import EngineError

_FIRST, _LAST = 10_000, 65_535
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ANY = 0  # the kernel chooses


def hold(ports: Iterable[int] | None = None) -> socket.socket:
    """A socket that holds a free port until it is closed.

    Args:
        ports: in the order in which they are tried; all that no outgoing connection is given if not said.

    Raises:
        EngineError: no port of this node is free.
    """
    for port in candidates(_outgoing()) if ports is None else ports:
        held = _bound(port)
        if held is not None:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return held
    raise EngineError(f"no port from {_FIRST} to {_LAST} is free on {socket.gethostname()}")


def candidates(outgoing: range) -> Iterator[int]:
    """Ports in an order that two processes hardly share; the kernel's own choice where all are outgoing."""
    ports = [port for port in range(_FIRST, _LAST + 1) if port not in outgoing]
    random.SystemRandom().shuffle(ports)
    yield from [*ports, _ANY]


def _outgoing() -> range:
    try:
        first, last = map(int, _OUTGOING.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return range(32_768, 61_000)  # Linux's default
    return range(first, last + 1)


def _bound(port: int) -> socket.socket | None:
    dual = socket.has_dualstack_ipv6()
    free = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    try:
        if dual:
            free.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        free.bind(("", port))
    except OSError as error:
        free.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    return free
