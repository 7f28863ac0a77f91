"""The messages of one batch between a rank and its two neighbours in the pipeline.

A message names itself: in front of its tensors stand the chunk and the microbatch it is meant for, because
with several chunks a rank the receiver cannot know what comes next. At most one receive is outstanding in
each direction, and it is posted again as soon as its message arrived (Singh and Bhatele, IPDPS 2022, section
IV).

Nobody waits for a send while the batch runs: who waits does not receive, and around a ring all could wait for
each other. Instead every message says how many of the other direction have arrived, which proves that so many
sends are finished and their memory is free.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import LANES, Handle, Transport
from hpcdl.engine.transport.packet import Packet
from hpcdl.stage import Kind, Message

NUMBERS = 4
"""Integers in front of the tensors: chunk, microbatch, rows, and how many of the other kind have arrived."""

Packets = tuple[Packet, ...]  # by chunk of the receiver; all of one size
_KINDS = tuple(Kind)
_OTHER = {Kind.ACTIVATION: Kind.GRADIENT, Kind.GRADIENT: Kind.ACTIVATION}


@dataclass(frozen=True)
class Mail:
    """A message and what it carries."""

    message: Message
    tensors: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class _Posted:
    handle: Handle
    buffer: torch.Tensor


@dataclass
class _Way:
    """Messages of one kind: those from one neighbour to here, and those from here to the other."""

    inbound: Packets
    outbound: Packets
    source: int
    target: int
    expected: int
    received: int = 0
    sent: int = 0
    posted: _Posted | None = None
    under_way: deque[Handle] = field(default_factory=deque)  # sends that are not known to be finished


@dataclass(frozen=True)
class Layouts:
    """The layout of the messages of one kind, of those that come here and of those that leave."""

    inbound: Packets
    outbound: Packets


class Mailbox:
    """What one rank receives and sends during one batch; the first receives are posted at once.

    Args:
        transport: reaches the neighbours.
        topology: says who they are.
        layouts: of each kind of message.
        expected: how many of each kind arrive here.
    """

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        layouts: dict[Kind, Layouts],
        expected: dict[Kind, int],
    ) -> None:
        self._transport = transport
        before, after = topology.previous, topology.next
        self._ways = {
            kind: _Way(layouts[kind].inbound, layouts[kind].outbound, source, target, expected[kind])
            for kind, source, target in (
                (Kind.ACTIVATION, before, after),
                (Kind.GRADIENT, after, before),
            )
        }
        for kind in _KINDS:
            self._post(kind)

    def look(self) -> Mail | None:
        """A message that has arrived, if there is one."""
        posted = self._posted()
        index = self._transport.arrived([one.handle for _, one in posted])
        return None if index is None else self._open(*posted[index])

    def wait(self) -> Mail:
        """The next message to arrive."""
        posted = self._posted()
        return self._open(*posted[self._transport.first([one.handle for _, one in posted])])

    def send(self, message: Message, rows: int, tensors: tuple[torch.Tensor, ...]) -> None:
        """Send ``tensors``, of ``rows`` rows each, to the neighbour that expects ``message``."""
        way = self._ways[message.kind]
        arrived = self._ways[_OTHER[message.kind]].received
        buffer = way.outbound[message.chunk].pack((message.chunk, message.microbatch, rows, arrived), tensors)
        handle = self._transport.send(buffer, way.target, _tag(message.kind, way.sent))
        way.under_way.append(handle)
        way.sent += 1

    def close(self) -> None:
        """Return when everything that was sent has left."""
        for kind in _KINDS:
            self._settle(kind, self._ways[kind].sent)

    def _posted(self) -> list[tuple[Kind, _Posted]]:
        return [(kind, way.posted) for kind, way in self._ways.items() if way.posted]

    def _post(self, kind: Kind) -> None:
        way = self._ways[kind]
        if way.received == way.expected:
            return
        buffer = way.inbound[0].empty()
        handle = self._transport.receive(buffer, way.source, _tag(kind, way.received))
        way.posted = _Posted(handle, buffer)

    def _open(self, kind: Kind, posted: _Posted) -> Mail:
        way = self._ways[kind]
        posted.handle.wait()
        way.posted = None
        way.received += 1
        self._post(kind)
        chunk, microbatch, rows, arrived = way.inbound[0].numbers(posted.buffer)
        self._settle(_OTHER[kind], arrived)
        return Mail(Message(kind, chunk, microbatch), way.inbound[chunk].tensors(posted.buffer, rows))

    def _settle(self, kind: Kind, arrived: int) -> None:
        """Let go of the sends of which ``arrived`` are known to have arrived."""
        way = self._ways[kind]
        while way.sent - len(way.under_way) < arrived:
            way.under_way.popleft().wait()


def _tag(kind: Kind, number: int) -> int:
    """Each kind in a lane of its own, and each message by its place there."""
    return LANES * number + _KINDS.index(kind)
