"""A door that keeps account of the time spent at it.

Each operation leaves two things on the rank's timeline: a span for the time that the rank was blocked in
it, in the category of its kind, and the operation's whole life from its start to the end of its wait. Where
the second is longer than the first, the rest was hidden behind other work. Waiting for a message that
another rank sends is idling: nothing is on its way before the sender has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hpcdl.engine.timeline import (
    ALL_GATHER,
    ALL_REDUCE,
    BARRIER,
    BROADCAST,
    IDLE,
    P2P,
    REDUCE_SCATTER,
    Timeline,
)
from hpcdl.engine.transport.base import Group, Handle, Reduction, Transport


class _Watched:
    """An operation under way, with the moment at which it was started."""

    __slots__ = ("_category", "_facts", "_finished", "_name", "_start", "_timeline", "inner")

    def __init__(self, timeline: Timeline, category: str, name: str, facts: Mapping[str, int]) -> None:
        self._timeline = timeline
        self._category = category
        self._name = name
        self._facts = facts
        self._finished = False
        timeline.opened.append((category, name, facts))  # to start it may already be to wait for others
        self._start = timeline.mark()

    def of(self, inner: Handle) -> _Watched:
        """Watch ``inner``, which was just started."""
        self._timeline.opened.pop()
        self.inner = inner
        return self

    def wait(self) -> None:
        if self._finished:
            return
        blocked = IDLE if self._name == "receive" else self._category
        with self._timeline.span(blocked, self._name, **self._facts):
            self.inner.wait()
        self._finished = True
        self._timeline.landed(self._category, self._name, self._start, self._facts)


class Observed:
    """``inner``, timed.

    Args:
        inner: does the work.
        timeline: of this rank.
    """

    def __init__(self, inner: Transport, timeline: Timeline) -> None:
        self.rank = inner.rank
        self.timeline = timeline
        self._inner = inner

    @property
    def name(self) -> str:
        """The runtime behind it."""
        return self._inner.name

    def group(self, ranks: tuple[int, ...], lane: str = "") -> Group:
        """The group of ``ranks``."""
        with self.timeline.waiting(f"making a group of {len(ranks)} ranks"):
            return self._inner.group(ranks, lane)

    def connect(self, peers: Sequence[int]) -> None:
        """Get ready for messages."""
        with self.timeline.waiting("connecting"):
            self._inner.connect(peers)

    def all_reduce(self, tensor: torch.Tensor, group: Group, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce ``tensor`` in place over ``group``."""
        watched = self._collective(ALL_REDUCE, group, tensor)
        return watched.of(self._inner.all_reduce(tensor, group, reduction))

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor, group: Group) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``."""
        watched = self._collective(ALL_GATHER, group, whole)
        return watched.of(self._inner.all_gather(whole, shard, group))

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor, group: Group) -> Handle:
        """Sum the flat ``whole`` over ``group`` and keep this rank's part in ``shard``."""
        watched = self._collective(REDUCE_SCATTER, group, whole)
        return watched.of(self._inner.reduce_scatter(shard, whole, group))

    def broadcast(self, tensor: torch.Tensor, group: Group) -> Handle:
        """Copy ``tensor`` of the group's first rank to all others."""
        watched = self._collective(BROADCAST, group, tensor)
        return watched.of(self._inner.broadcast(tensor, group))

    def barrier(self) -> None:
        """Return when every rank of the run has come here."""
        with self.timeline.span(BARRIER, "barrier"):
            self._inner.barrier()

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Handle:
        """Send ``tensor`` to rank ``peer``."""
        watched = self._message("send", tensor, peer, tag)
        return watched.of(self._inner.send(tensor, peer, tag))

    def receive(self, buffer: torch.Tensor, peer: int, tag: int) -> Handle:
        """Receive what ``peer`` sends with ``tag`` into ``buffer``."""
        watched = self._message("receive", buffer, peer, tag)
        return watched.of(self._inner.receive(buffer, peer, tag))

    def first(self, receives: Sequence[Handle]) -> int:
        """Wait until one of the posted ``receives`` is finished, and say which."""
        posted = [receive.inner for receive in receives if isinstance(receive, _Watched)]
        with self.timeline.span(IDLE, "first"):
            return self._inner.first(posted)

    def arrived(self, receives: Sequence[Handle]) -> int | None:
        """Which of the posted ``receives`` is finished, if any is; returns at once."""
        return self._inner.arrived([one.inner for one in receives if isinstance(one, _Watched)])

    def close(self) -> None:
        """Leave the run."""
        self._inner.close()

    def _collective(self, kind: str, group: Group, tensor: torch.Tensor) -> _Watched:
        return _Watched(self.timeline, kind, kind, {"ranks": len(group.ranks), "bytes": tensor.nbytes})

    def _message(self, name: str, tensor: torch.Tensor, peer: int, tag: int) -> _Watched:
        return _Watched(self.timeline, P2P, name, {"peer": peer, "tag": tag, "bytes": tensor.nbytes})
