"""Ranks as threads of one process, for tests and for a look at one's model under a debugger."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import torch

from hpcdl.engine.transport.base import Group, Handle, Reduction

_Key = tuple[tuple[int, ...], str, int]  # ranks, lane, the how manieth
Together = Callable[[dict[int, tuple[torch.Tensor, ...]]], None]


class World:
    """What the threads share.

    Args:
        ranks: how many transports will be asked for.
        timeout_seconds: a wait longer than this raises; a deadlock in a test should fail it.
    """

    def __init__(self, ranks: int, timeout_seconds: float = 60.0) -> None:
        self.ranks = ranks
        self._timeout = timeout_seconds
        self._changed = threading.Condition()
        self._failed = False
        self._mail: dict[tuple[int, int, int], deque[torch.Tensor]] = defaultdict(deque)
        self._meetings: dict[_Key, dict[int, tuple[torch.Tensor, ...]]] = {}
        self._finished: set[_Key] = set()

    def transport(self, rank: int) -> MemoryTransport:
        """The door of one rank."""
        return MemoryTransport(self, rank)

    def fail(self) -> None:
        """Make every wait, present and future, raise: one rank is gone."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Return when ``ready`` holds."""
        with self._changed:
            if not self._changed.wait_for(lambda: ready() or self._failed, self._timeout):
                raise TimeoutError(f"nothing arrived within {self._timeout} s")
            if self._failed:
                raise ConnectionError("another rank is gone")

    def arrive(
        self, key: _Key, rank: int, tensors: tuple[torch.Tensor, ...], do: Together
    ) -> Callable[[], bool]:
        """Bring ``tensors`` to a meeting; who comes last does the work for all. Answers: is it done?"""
        with self._changed:
            meeting = self._meetings.setdefault(key, {})
            meeting[rank] = tensors
            if len(meeting) == len(key[0]):
                with torch.no_grad():
                    do(self._meetings.pop(key))
                self._finished.add(key)
                self._changed.notify_all()
        return lambda: key in self._finished

    def post(self, key: tuple[int, int, int], tensor: torch.Tensor) -> None:
        """Put a message into a box."""
        with self._changed:
            self._mail[key].append(tensor.detach().clone())
            self._changed.notify_all()

    def has_mail(self, key: tuple[int, int, int]) -> bool:
        """Whether a message lies in a box."""
        return bool(self._mail[key])

    def take(self, key: tuple[int, int, int]) -> torch.Tensor:
        """Take the oldest message out of a box."""
        with self._changed:
            return self._mail[key].popleft()


class _Meeting:
    """A collective that is done when all have come."""

    def __init__(self, world: World, done: Callable[[], bool]) -> None:
        self._world = world
        self._done = done

    def wait(self) -> None:
        self._world.wait_for(self._done)


class _Sent:
    """A message that was copied when it was sent."""

    def wait(self) -> None:
        return


class _Receive:
    """A message to come."""

    def __init__(self, world: World, key: tuple[int, int, int], buffer: torch.Tensor) -> None:
        self._world = world
        self._key = key
        self._buffer = buffer
        self._finished = False

    def arrived(self) -> bool:
        return self._world.has_mail(self._key)

    def wait(self) -> None:
        if self._finished:
            return
        self._finished = True
        self._world.wait_for(self.arrived)
        with torch.no_grad():
            self._buffer.copy_(self._world.take(self._key))


def _reduce(contributions: list[torch.Tensor], reduction: Reduction) -> torch.Tensor:
    stacked = torch.stack(contributions)
    return stacked.sum(0) if reduction is Reduction.SUM else stacked.amax(0)


class MemoryTransport:
    """One rank's door to a ``World``; reductions add in rank order, so every run is the same."""

    name = "threads"

    def __init__(self, world: World, rank: int) -> None:
        self.rank = rank
        self._world = world
        self._sequence: dict[tuple[tuple[int, ...], str], int] = defaultdict(int)

    def group(self, ranks: tuple[int, ...], lane: str = "") -> Group:
        """The group of ``ranks``; nobody needs to be asked."""
        return Group(ranks, lane)

    def _meet(self, group: Group, tensors: tuple[torch.Tensor, ...], do: Together) -> Handle:
        self._sequence[group.ranks, group.channel] += 1
        key = (group.ranks, group.channel, self._sequence[group.ranks, group.channel])
        return _Meeting(self._world, self._world.arrive(key, self.rank, tensors, do))

    def connect(self, peers: Sequence[int]) -> None:
        """Threads need nothing."""

    def all_reduce(self, tensor: torch.Tensor, group: Group, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce ``tensor`` in place over ``group``."""

        def together(brought: dict[int, tuple[torch.Tensor, ...]]) -> None:
            total = _reduce([brought[rank][0] for rank in group.ranks], reduction)
            for (mine,) in brought.values():
                mine.copy_(total)

        return self._meet(group, (tensor.detach(),), together)

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor, group: Group) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``."""

        def together(brought: dict[int, tuple[torch.Tensor, ...]]) -> None:
            joined = torch.cat([brought[rank][1] for rank in group.ranks])
            for mine, _ in brought.values():
                mine.copy_(joined)

        return self._meet(group, (whole, shard.detach()), together)

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor, group: Group) -> Handle:
        """Sum the flat ``whole`` over ``group`` and keep this rank's part in ``shard``."""

        def together(brought: dict[int, tuple[torch.Tensor, ...]]) -> None:
            total = _reduce([brought[rank][1] for rank in group.ranks], Reduction.SUM)
            for rank, part in zip(group.ranks, total.chunk(len(group.ranks)), strict=True):
                brought[rank][0].copy_(part)

        return self._meet(group, (shard, whole.detach()), together)

    def broadcast(self, tensor: torch.Tensor, group: Group) -> Handle:
        """Copy ``tensor`` of the group's first rank to all others."""

        def together(brought: dict[int, tuple[torch.Tensor, ...]]) -> None:
            source = brought[group.ranks[0]][0].clone()
            for (mine,) in brought.values():
                mine.copy_(source)

        return self._meet(group, (tensor.detach(),), together)

    def barrier(self) -> None:
        """Return when every rank of the run has come here."""
        everyone = self.group(tuple(range(self._world.ranks)))
        self._meet(everyone, (), lambda brought: None).wait()

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Handle:
        """Send a copy of ``tensor`` to rank ``peer``."""
        self._world.post((self.rank, peer, tag), tensor)
        return _Sent()

    def receive(self, buffer: torch.Tensor, peer: int, tag: int) -> Handle:
        """Receive what ``peer`` sends with ``tag`` into ``buffer``."""
        return _Receive(self._world, (peer, self.rank, tag), buffer)

    def first(self, receives: Sequence[Handle]) -> int:
        """Wait until one of the posted ``receives`` is finished, and say which."""
        posted = [receive for receive in receives if isinstance(receive, _Receive)]
        self._world.wait_for(lambda: any(receive.arrived() for receive in posted))
        index = next(i for i, receive in enumerate(posted) if receive.arrived())
        posted[index].wait()
        return index

    def arrived(self, receives: Sequence[Handle]) -> int | None:
        """Which of the posted ``receives`` is finished, if any is; returns at once."""
        posted = [receive for receive in receives if isinstance(receive, _Receive)]
        index = next((i for i, receive in enumerate(posted) if receive.arrived()), None)
        if index is not None:
            posted[index].wait()
        return index

    def close(self) -> None:
        """Leave the run; threads need nothing."""
