"""The same meeting without torch: every rank connects to rank 0, and all hear one word when all are there.

A rank says ``KEY RANK HOST`` and what it has to tell, hears ``here`` at once, which tells it that nobody else
has taken over a stale address, and then one more line: rank 0's word. Where rank 0 gives up it hangs up.
"""

from __future__ import annotations

import resource
import selectors
import socket
from contextlib import suppress
from io import BufferedReader
from typing import Self

from hpcdl.engine.meeting import CONNECT_S, Address, Meeting

_LONGEST_LINE = 1 << 16
_HERE = b"here\n"
_OTHER_FILES = 64  # open ones that are no connections


def lead(meeting: Meeting, word: str) -> list[str]:
    """As rank 0, wait for all the others and tell them ``word``, one line; returns what they told, by rank.

    Raises:
        RanksMissingError: some never came.
        EngineError: this node has no address.
    """
    _allow_files(meeting.place.world_size + _OTHER_FILES)
    with socket.create_server(("0.0.0.0", 0), backlog=socket.SOMAXCONN) as server:  # noqa: S104
        published = meeting.publish(server.getsockname()[1])
        with _Guests(server, published.key, meeting) as guests:
            guests.await_all()
            guests.tell(f"{word}\n".encode())
            return guests.told


def follow(meeting: Meeting, told: str = "") -> str:
    """As another rank, find rank 0, tell it one line, and return its word, when every rank has come.

    Raises:
        RanksMissingError: rank 0 never came.
        EngineError: it was not found, or hung up because somebody never came.
    """
    with meeting.find(lambda published: _greet(published, meeting, told)) as lines:
        try:
            word = lines.readline(_LONGEST_LINE).decode()
        except OSError:
            word = ""
    if not word.endswith("\n"):
        raise meeting.waited()
    return word.rstrip("\n")


def _greet(published: Address, meeting: Meeting, told: str) -> BufferedReader:
    """Rank 0's lines, once it has answered."""
    connection = socket.create_connection((published.address, published.port), timeout=CONNECT_S)
    with connection:  # what is made of it below keeps it open
        place = meeting.place
        connection.sendall(f"{published.key} {place.rank} {place.host} {told}\n".encode())
        lines = connection.makefile("rb")
        if lines.readline(len(_HERE)) != _HERE:
            lines.close()
            raise OSError("somebody else listens there")
        connection.settimeout(max(0.0, meeting.seconds_left) + CONNECT_S)
    return lines


class _Guests:
    """Who has connected to rank 0, and who of them said a rank."""

    def __init__(self, server: socket.socket, key: str, meeting: Meeting) -> None:
        self._server, self._key, self._meeting = server, key.encode(), meeting
        self._ranks: dict[int, socket.socket] = {}
        self._said: dict[socket.socket, bytes] = {}
        self._told: dict[int, tuple[str, str]] = {}  # host and line
        self._ready = selectors.DefaultSelector()
        server.settimeout(0.0)
        self._ready.register(server, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.close()
        for guest in self._said:
            guest.close()

    @property
    def told(self) -> list[str]:
        """What the others told, by rank."""
        return [self._told[rank][1] for rank in sorted(self._told)]

    def await_all(self) -> None:
        """Return when every other rank is connected.

        Raises:
            RanksMissingError: some did not come in time.
        """
        wanted = range(1, self._meeting.place.world_size)
        while missing := [rank for rank in wanted if rank not in self._ranks]:
            if self._meeting.seconds_left < 0:
                came = {rank: self._told[rank][0] for rank in self._ranks}
                raise self._meeting.never_came(missing, came | {0: self._meeting.place.host})
            for event, _ in self._ready.select(min(1.0, self._meeting.seconds_left)):
                self._hear(event.fileobj)

    def tell(self, line: bytes) -> None:
        """Say the same to everybody."""
        for guest in self._ranks.values():
            with suppress(OSError):  # its end is told by its own record
                guest.sendall(line)

    def _hear(self, source: object) -> None:
        if source is self._server:
            try:
                guest, _ = self._server.accept()
            except OSError:
                return  # it has hung up already
            self._said[guest] = b""
            self._ready.register(guest, selectors.EVENT_READ)
            return
        assert isinstance(source, socket.socket)  # noqa: S101 - for mypy
        try:
            part = source.recv(_LONGEST_LINE)
        except OSError:
            part = b""
        self._said[source] += part
        if not part or len(self._said[source]) > _LONGEST_LINE:
            self._dismiss(source)
        elif b"\n" in self._said[source]:
            self._admit(source)

    def _admit(self, guest: socket.socket) -> None:
        """Let in whoever knows the key; a rank that comes again replaces its first connection."""
        key, rank, host, told = [*self._said[guest].rstrip(b"\n").split(b" ", 3), *[b""] * 3][:4]
        if key != self._key or not rank.isdigit():
            self._dismiss(guest)
            return
        self._said[guest] = b""
        if guest is not (before := self._ranks.get(int(rank), guest)):
            self._dismiss(before)
        self._ranks[int(rank)] = guest
        self._told[int(rank)] = host.decode(), told.decode()
        try:
            guest.sendall(_HERE)
        except OSError:
            self._dismiss(guest)

    def _dismiss(self, guest: socket.socket) -> None:
        self._ready.unregister(guest)
        del self._said[guest]
        for rank in [rank for rank, known in self._ranks.items() if known is guest]:
            del self._ranks[rank]
        guest.close()


def _allow_files(count: int) -> None:
    """As many open files as the system lets this process have, if it needs more than it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
